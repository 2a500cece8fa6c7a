"""Coverage of the expected cells: how many are in each state, and which are missing.

Missing cells with the same state, cause, model and task form one group, so that a report names them in few
lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.reporting import About, CellFacts
from orchestrator.study import paper
from orchestrator.study.sections import (
    ExpectedCell,
    LackingCell,
    LackingGroup,
    MissingRows,
    NumbersSection,
    StatusSection,
)
from orchestrator.study.tables.results import Result, languages_of

ABSENT, PARTIAL = "no rows", "rows of some languages"
"""States of cells that lack rows, beside the states of a sweep."""

_MOST_REASONS = 4


def expected(about: About | None) -> list[ExpectedCell] | None:
    """Return the cells that the rows should contain.

    The result is None if the expected cells are unknown. This is so without facts of a sweep, and for a
    sweep with a cell that has no model or no task. Such a sweep is not the study's.
    """
    if about is None:
        return None
    cells = [_named(cell) for cell in about.cells]
    return cells if all(cell.model and cell.task for cell in cells) else None


def _named(cell: CellFacts) -> ExpectedCell:
    """Return the columns that a cell's rows will have: the config's names, else the axes' labels."""
    named = {**cell.columns, **cell.axes}

    def name(key: str) -> str:
        section = cell.config.get(key)
        found = (section.get("name") if isinstance(section, Mapping) else section) or named.get(key)
        return str(found or "")

    return ExpectedCell(
        name("model"), name("task"), cell.config.get("languages"), cell.cell, cell.config.get("seed")
    )


def status(numbers: NumbersSection, about: About | None) -> StatusSection:
    """Return the number of cells in each state, and the missing cells both in groups and one by one.

    Args:
        numbers: the numbers of the report.
        about: facts of the sweep. Without them, only absent rows show that a cell is missing.
    """
    tested = {entry.eval_language for entry in numbers.fig8}
    num_tested = len(tested | {entry.eval_language for entry in numbers.baselines})
    if about is None:
        cells = [_of_table(entry, num_tested) for entry in numbers.missing]
        num_absent = sum(cell.state == ABSENT for cell in cells)
        states = {"done": numbers.num_cells, ABSENT: num_absent}
        num_cells = numbers.num_cells + num_absent
    else:
        states = dict(Counter(cell.state for cell in about.cells))
        num_cells = len(about.cells)
        # A cell that is not done needs no further reason. Only a done cell can lack rows that it should
        # have.
        cells = [_of_cell(cell) for cell in about.cells if cell.state != "done"]
        done = {cell.cell for cell in about.cells if cell.state == "done"}
        cells += [_of_table(entry, num_tested) for entry in numbers.missing if entry.cell in done]
    return StatusSection(
        num_cells=num_cells,
        num_done=states.get("done", 0),
        num_rows=numbers.num_rows,
        states={state: num for state, num in states.items() if num},
        groups=_groups(cells),
        cells=cells,
    )


def _of_cell(cell: CellFacts) -> LackingCell:
    """Return the entry of a cell that the sweep reports as not done."""
    named = _named(cell)
    other = [
        f"{axis}={label}" for axis, label in cell.axes.items() if axis not in ("model", "task", "mixture")
    ]
    mixture = cell.axes.get("mixture")
    if mixture is None and isinstance(named.languages, list | tuple):
        mixture = paper.label_of(paper.in_order([str(name) for name in named.languages]))
    name = " ".join(filter(None, [mixture, *other])) or cell.cell
    return LackingCell(cell.cell, named.model, named.task, name, cell.state, cell.cause, cell.reason)


def _of_table(entry: MissingRows, num_tested: int) -> LackingCell:
    """Return the entry of a cell whose rows are missing, in whole or for some languages."""
    is_absent = len(entry.eval_languages) >= num_tested
    return LackingCell(
        cell=entry.cell or "",
        model=entry.model,
        task=entry.task,
        name=entry.mixture + (f" (seed {entry.seed})" if entry.seed else ""),
        state=ABSENT if is_absent else PARTIAL,
        cause="",
        reason="" if is_absent else f"{entry.mixture} lacks {', '.join(entry.eval_languages)}",
    )


def _groups(cells: Sequence[LackingCell]) -> list[LackingGroup]:
    """Return the cells by state, cause, model and task, failed ones first."""
    groups: dict[tuple[str, str, str, str], list[LackingCell]] = {}
    for cell in cells:
        groups.setdefault((cell.state, cell.cause, cell.model, cell.task), []).append(cell)
    listed = [
        LackingGroup(*key, len(found), [cell.name for cell in found], _reasons(found))
        for key, found in groups.items()
    ]
    return sorted(listed, key=lambda group: (group.state != "failed", group.state, group.cause))


def _reasons(cells: Sequence[LackingCell]) -> list[str]:
    counts = Counter(cell.reason for cell in cells).most_common(_MOST_REASONS)
    return [reason for reason, _ in counts if reason]


Cell = tuple[str, str, tuple[str, ...], str | None]
"""Model, task, languages, and the seed if it is known."""


def missing(read: Sequence[Result], expected: Iterable[ExpectedCell] | None = None) -> list[MissingRows]:
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
                MissingRows(name, model, task, paper.label_of(languages), list(languages), seed, lacking)
            )
    return entries


def _expected(read: Sequence[Result], given: Iterable[ExpectedCell] | None) -> dict[Cell, str | None]:
    if given is None:
        return dict.fromkeys(_derived(read))
    return {
        (
            cell.model,
            cell.task,
            paper.in_order(languages_of(cell.languages)),
            None if cell.seed is None else str(cell.seed),
        ): cell.cell
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
