"""Coverage of the expected cells: how many are in each state, and which are missing.

Missing cells with the same state, cause, model and task form one group, so that a report names them in few
lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.reporting import About, CellFacts
from orchestrator.study import paper
from orchestrator.study.tables.results import Result, languages_of

ABSENT, PARTIAL = "no rows", "rows of some languages"
"""States of cells that lack rows, beside the states of a sweep."""

_MOST_REASONS = 4
Entry = Mapping[str, Any]


def expected(about: About | None) -> list[dict[str, Any]] | None:
    """Return the cells that the rows should contain, in the form that `missing` takes.

    The result is None if the expected cells are unknown. This is so without facts of a sweep, and for a
    sweep with a cell that has no model or no task. Such a sweep is not the study's.
    """
    if about is None:
        return None
    cells = [_named(cell) for cell in about.cells]
    return cells if all(cell["model"] and cell["task"] for cell in cells) else None


def _named(cell: CellFacts) -> dict[str, Any]:
    """Return the columns that a cell's rows will have: the config's names, else the axes' labels."""
    named = {**cell.columns, **cell.axes}
    found: dict[str, Any] = {"cell": cell.cell, "languages": cell.config.get("languages")}
    for key in ("model", "task"):
        section = cell.config.get(key)
        found[key] = (section.get("name") if isinstance(section, Mapping) else section) or named.get(key)
    found["seed"] = cell.config.get("seed")
    return found


def status(numbers: Mapping[str, Any], about: About | None) -> dict[str, Any]:
    """Return the number of cells in each state, and the missing cells both in groups and one by one.

    Args:
        numbers: the report so far.
        about: facts of the sweep. Without them, only absent rows show that a cell is missing.
    """
    lacking: Sequence[Entry] = numbers["missing"]
    num_tested = len({entry["eval_language"] for entry in (*numbers["fig8"], *numbers["baselines"])})
    if about is None:
        entries = [_of_table(entry, num_tested) for entry in lacking]
        num_absent = sum(entry["state"] == ABSENT for entry in entries)
        states = {"done": numbers["num_cells"], ABSENT: num_absent}
        num_cells = numbers["num_cells"] + num_absent
    else:
        states = dict(Counter(cell.state for cell in about.cells))
        num_cells = len(about.cells)
        # A cell that is not done needs no further reason. Only a done cell can lack rows that it should
        # have.
        entries = [_of_cell(cell) for cell in about.cells if cell.state != "done"]
        done = {cell.cell for cell in about.cells if cell.state == "done"}
        entries += [_of_table(entry, num_tested) for entry in lacking if entry["cell"] in done]
    return {
        "num_cells": num_cells,
        "num_done": states.get("done", 0),
        "num_rows": numbers["num_rows"],
        "states": {state: num for state, num in states.items() if num},
        "groups": _groups(entries),
        "cells": entries,
    }


def _of_cell(cell: CellFacts) -> dict[str, Any]:
    """Return the entry of a cell that the sweep reports as not done."""
    named = _named(cell)
    other = [
        f"{axis}={label}" for axis, label in cell.axes.items() if axis not in ("model", "task", "mixture")
    ]
    mixture = cell.axes.get("mixture")
    if mixture is None and isinstance(named["languages"], list | tuple):
        mixture = paper.label_of(paper.in_order([str(name) for name in named["languages"]]))
    return {
        "cell": cell.cell,
        "model": str(named["model"] or ""),
        "task": str(named["task"] or ""),
        "name": " ".join(filter(None, [mixture, *other])) or cell.cell,
        "state": cell.state,
        "cause": cell.cause,
        "reason": cell.reason,
    }


def _of_table(entry: Entry, num_tested: int) -> dict[str, Any]:
    """Return the entry of a cell whose rows are missing, in whole or for some languages."""
    languages = entry["eval_languages"]
    is_absent = len(languages) >= num_tested
    return {
        "cell": entry["cell"] or "",
        "model": entry["model"],
        "task": entry["task"],
        "name": entry["mixture"] + (f" (seed {entry['seed']})" if entry["seed"] else ""),
        "state": ABSENT if is_absent else PARTIAL,
        "cause": "",
        "reason": "" if is_absent else f"{entry['mixture']} lacks {', '.join(languages)}",
    }


def _groups(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the entries by state, cause, model and task, failed cells first."""
    groups: dict[tuple[str, str, str, str], list[Entry]] = {}
    for entry in entries:
        key = (entry["state"], entry["cause"], entry["model"], entry["task"])
        groups.setdefault(key, []).append(entry)
    listed = [
        {
            "state": state,
            "cause": cause,
            "model": model,
            "task": task,
            "num_cells": len(found),
            "names": [entry["name"] for entry in found],
            "reasons": [reason for reason, _ in _reasons(found) if reason],
        }
        for (state, cause, model, task), found in groups.items()
    ]
    return sorted(listed, key=lambda group: (group["state"] != "failed", group["state"], group["cause"]))


def _reasons(entries: Sequence[Entry]) -> list[tuple[str, int]]:
    return Counter(entry["reason"] for entry in entries).most_common(_MOST_REASONS)


Cell = tuple[str, str, tuple[str, ...], str | None]
"""Model, task, languages, and the seed if it is known."""


def missing(
    read: Sequence[Result], expected: Iterable[Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Return the expected cells without rows, and the evaluation languages that other cells lack.

    Args:
        read: the results.
        expected: the cells that there should be. By default every model and task of the rows is expected
            with every mixture. If the rows have a mixture of four languages or more, these are the study's
            22 and the baseline. Otherwise they are the mixtures that occur.
    """
    have: dict[Cell, set[str]] = {}
    for result in read:
        # An expected cell without a seed is present if any seed has rows.
        for seed in (result.seed, None):
            have.setdefault((result.model, result.task, result.languages, seed), set()).add(
                result.eval_language
            )
    tested = paper.in_order(sorted({result.eval_language for result in read})) or paper.EVAL_LANGUAGES
    entries = []
    for cell, name in _expected(read, expected).items():
        # A table from elsewhere may have no column for the seed, which then reads as an empty text.
        found = have.get(cell) or have.get((*cell[:3], ""), set())
        lacking = [language for language in tested if language not in found]
        if lacking:
            model, task, languages, seed = cell
            entries.append(
                {
                    "cell": name,
                    "model": model,
                    "task": task,
                    "mixture": paper.label_of(languages),
                    "languages": list(languages),
                    "seed": seed,
                    "eval_languages": lacking,
                }
            )
    return entries


def _expected(read: Sequence[Result], given: Iterable[Mapping[str, Any]] | None) -> dict[Cell, str | None]:
    if given is None:
        return dict.fromkeys(_derived(read))
    return {
        (
            str(cell["model"]),
            str(cell["task"]),
            paper.in_order(languages_of(cell.get("languages"))),
            None if cell.get("seed") is None else str(cell["seed"]),
        ): cell.get("cell")
        for cell in given
    }


def _derived(read: Sequence[Result]) -> list[Cell]:
    """Return the cells that a table should contain, judged by the mixtures that occur in it."""
    occurring = {result.languages for result in read}
    mixtures: list[tuple[str, ...]] = sorted(occurring, key=lambda names: (len(names), names))
    if any(len(names) >= min(paper.ZERO_SHOT_SIZES) for names in occurring):
        # The paper does not name the two extras of the mixtures of six, so they are taken from the rows if
        # possible.
        six = next((names for names in mixtures if len(names) == 6 and paper.left_out(names)), None)
        extras = [name for name in six if name not in paper.CORE] if six else paper.TWO_EXTRAS
        mixtures = paper.mixtures(extras)
    pairs = sorted({(result.model, result.task) for result in read})
    return [(model, task, languages, None) for model, task in pairs for languages in mixtures]
