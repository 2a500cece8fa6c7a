"""What is there of what was asked for: cells by state, and the missing ones named in few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.reporting import About, CellFacts
from orchestrator.study import facts

ABSENT, PARTIAL = "no rows", "rows of some languages"
_MOST_REASONS = 4
Entry = Mapping[str, Any]


def expected(about: About | None) -> list[dict[str, Any]] | None:
    """Returns the cells that the rows should hold, as the numbers want them; None where nobody knows.

    A sweep whose cells have no model, task or languages is not the study's, and expects nothing.
    """
    if about is None:
        return None
    cells = [_named(cell) for cell in about.cells]
    return cells if all(cell["model"] and cell["task"] for cell in cells) else None


def _named(cell: CellFacts) -> dict[str, Any]:
    """What the rows of a cell will say: the config's own names, else the axes' labels."""
    named = {**cell.columns, **cell.axes}
    found: dict[str, Any] = {"cell": cell.cell, "languages": cell.config.get("languages")}
    for key in ("model", "task"):
        section = cell.config.get(key)
        found[key] = (section.get("name") if isinstance(section, Mapping) else section) or named.get(key)
    found["seed"] = cell.config.get("seed")
    return found


def status(numbers: Mapping[str, Any], about: About | None) -> dict[str, Any]:
    """Returns the cells by state, and groups of missing cells: one a state, cause, model and task."""
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
    named = _named(cell)
    other = [
        f"{axis}={label}" for axis, label in cell.axes.items() if axis not in ("model", "task", "mixture")
    ]
    mixture = cell.axes.get("mixture")
    if mixture is None and isinstance(named["languages"], list | tuple):
        mixture = facts.label_of(facts.in_order([str(name) for name in named["languages"]]))
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
