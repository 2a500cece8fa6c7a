"""The `general` report of any sweep: cells, mean and spread, plots, curves and failures on one page.

It contains no metric's name and no axis's name, except those that mean a repetition (a seed). The numbers
come from `orchestrator.results`.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.errors import UserError, nearest
from orchestrator.reporting import About, Curve, Fragment
from orchestrator.reports import general_figures, page
from orchestrator.reports.page import Table
from orchestrator.reports.style import save, styled
from orchestrator.results import (
    CellResult,
    Direction,
    RepeatGroup,
    Row,
    axes_of,
    axes_of_table,
    by_cell,
    direction,
    is_seed,
    labelled,
    metrics_of,
    notes_of,
    number_text,
    spread_over,
    spread_text,
)

MAX_LINES = 500
"""Lines of a table on the page. ``cells.csv`` and ``report.json`` hold all of them."""

HTML, MARKDOWN, JSON, CSV = "report.html", "report.md", "report.json", "cells.csv"
"""Names of the report's files."""
BEST, HIGHEST, LOWEST = " ★", " ▲", " ▼"
"""Marks beside numbers in the table of cells."""
ABSENT = "–"
"""What a table shows for a missing value."""


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``report.json``.

    Attributes:
        sweep: its name; None for a table that no sweep belongs to.
        revision: its number; None for such a table.
        made_at: when the store was read (UTC); "" for such a table.
        states: state to number of cells.
        axes: the axes that vary, in the order of the sweep.
        metrics: column to the better direction; None if its name does not show it.
        cells: one for each cell that has results: its id, axes and metrics.
        over: the axes that `groups` average over.
        groups: mean, sample standard deviation (n - 1), range and number of cells of each metric.
        failures: cells that are neither done nor still able to finish: id, state, cause and reason.
        notes: remarks for the reader.
    """

    sweep: str | None
    revision: int | None
    made_at: str
    states: dict[str, int]
    axes: list[str]
    metrics: dict[str, Direction | None]
    cells: list[CellResult]
    over: list[str]
    groups: list[RepeatGroup]
    failures: list[dict[str, str]]
    notes: list[str]


def write(
    rows: Sequence[Row],
    folder: Path,
    *,
    about: About | None = None,
    curves: Sequence[Curve] = (),
    over: Sequence[str] = (),
    grid: Fragment | None = None,
    drawn: bool = True,
) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``report.json``, ``cells.csv`` and figures; return their paths.

    Args:
        rows: as `collect` returns them, of any part of the sweep.
        folder: created if it does not exist; figures of an earlier report in it are removed.
        about: facts about the sweep; None if the rows come from a table file.
        curves: the logged metrics.
        over: axes to average over, in addition to seeds.
        grid: the grid of the sweep's cells, for the page.
        drawn: whether to write the page and the figures too.

    Raises:
        UserError: `over` names an unknown axis.
    """
    numbers = numbers_of(rows, about, over)
    folder.mkdir(parents=True, exist_ok=True)
    with styled():
        figures = general_figures.draw(numbers.cells, numbers.axes, numbers.over, curves)
    pictures = _drawn(figures, folder) if drawn else []
    paths = [folder / name for name in (HTML, MARKDOWN, JSON, CSV)]
    if drawn:
        paths[0].write_text(_page(numbers, about, figures, folder, grid), encoding="utf-8")
    paths[1].write_text(_markdown(numbers, about, figures), encoding="utf-8")
    paths[2].write_bytes(msgspec.json.format(msgspec.json.encode(numbers), indent=1) + b"\n")
    _write_csv(numbers, paths[3])
    return [*paths[0 if drawn else 1 :], *pictures]


def _drawn(figures: general_figures.Figures, folder: Path) -> list[Path]:
    """Write the figures, and remove those of an earlier report, which would seem to belong to this one."""
    with styled():
        drawn = [path for each in (*figures.plots, *figures.curves) for path in save(each, folder)]
    # Metrics may have changed since the last report.
    for old in (*folder.glob("plot-*.*"), *folder.glob("curve-*.*")):
        if old not in drawn:
            old.unlink()
    return drawn


def numbers_of(rows: Sequence[Row], about: About | None, over: Sequence[str] = ()) -> Numbers:
    """Return the content of the report as data.

    Args:
        rows: as for `write`.
        about: as for `write`.
        over: as for `write`.

    Raises:
        UserError: `over` names an axis that the rows do not have, or a table lacks the columns of a sweep.
    """
    known = list(dict.fromkeys(axis for cell in about.cells for axis in cell.axes)) if about else []
    # A table file does not record which of its columns are axes, so they are inferred.
    if not about:
        if not any("cell" in row and "sweep" in row for row in rows):
            raise UserError(
                "the table has no columns cell and sweep", fix="sweep collect SWEEP --out FILE makes one"
            )
        known, rows = axes_of_table(rows), [_typed(row) for row in rows]
    rows = labelled(rows, {cell.cell: cell.axes for cell in about.cells}) if about else rows
    for axis in over:
        if axis not in known:
            raise UserError(f"no axis {axis!r}", where="--over", allowed=nearest(axis, known))
    axes = axes_of(rows, known) if rows else []
    columns = {name for cell in about.cells for name in cell.columns} if about else set()
    cells = by_cell(rows, axes=axes, columns={*columns, *known} - set(axes))
    repeated = [axis for axis in axes if is_seed(axis) or axis in over]
    return Numbers(
        sweep=about.sweep if about else None,
        revision=about.revision if about else None,
        made_at=about.made_at if about else "",
        states=dict(Counter(cell.state for cell in about.cells)) if about else {},
        axes=axes,
        metrics={name: direction(name) for name in metrics_of(cells)},
        cells=cells,
        over=repeated,
        groups=spread_over(cells, repeated) if repeated else [],
        failures=_failures(about),
        notes=[*(about.notes if about else ()), *notes_of(rows, metrics_of(cells))],
    )


def _typed(row: Row) -> dict[str, Any]:
    """Return a row of CSV, where everything is text, with its numbers and booleans converted."""
    return {name: _number(value) if isinstance(value, str) else value for name, value in row.items()}


def _number(text: str) -> str | int | float | bool:
    """Return the value that a text of CSV stands for; the text itself if it is no number."""
    if text in ("true", "false"):
        return text == "true"
    if not re.fullmatch(r"-?(0|[1-9][0-9]{0,300})(\.[0-9]+)?([eE][+-]?[0-9]+)?", text):
        return text  # 010 and 1_000 are labels, not numbers
    with contextlib.suppress(ValueError):
        return int(text)
    return float(text)


def _failures(about: About | None) -> list[dict[str, str]]:
    """Return the cells that are neither done nor still able to finish."""
    going = {"done", "running", "queued", "pending"}
    return [
        {"cell": cell.cell, "state": cell.state, "cause": cell.cause, "reason": cell.reason}
        for cell in (about.cells if about else ())
        if cell.state not in going
    ]


# Tables


def cells_table(numbers: Numbers) -> Table:
    """Return a table with one line for each cell that has results. The best values are marked."""
    marks = _marks(numbers)
    shown = numbers.cells[:MAX_LINES]
    lines = [
        [
            result.cell,
            *(str(result.axes.get(axis, "")) or ABSENT for axis in numbers.axes),
            *(
                number_text(result.metrics[name]) + marks.get((result.cell, name), "")
                if name in result.metrics
                else ABSENT
                for name in numbers.metrics
            ),
        ]
        for result in shown
    ]
    note = (
        f"{BEST.strip()} the best of its column, by the metric's name. Where the name does not show which is"
        f" better: {HIGHEST.strip()} the highest, {LOWEST.strip()} the lowest."
        if marks
        else "No cell returned a number." * (not numbers.metrics)
    )
    note += _rest(len(numbers.cells), CSV)
    columns = ["cell", *numbers.axes, *(f"#{name}" for name in numbers.metrics)]
    return Table("cells", "Cells", columns, lines, note)


def _rest(number: int, file: str) -> str:
    """Return the addition to a table's note if the table is cut off."""
    return f" The first {MAX_LINES:,} of {number:,}; all are in {file}." if number > MAX_LINES else ""


def _marks(numbers: Numbers) -> dict[tuple[str, str], str]:
    """Return the mark of each cell and metric that has one.

    If the better direction is known, the best value is marked. Otherwise, the highest and the lowest are both
    marked, and the reader decides.
    """
    marks: dict[tuple[str, str], str] = {}
    for name, better in numbers.metrics.items():
        values = {result.cell: result.metrics[name] for result in numbers.cells if name in result.metrics}
        low, high = min(values.values()), max(values.values())
        # Marks on equal values would mean nothing.
        if low == high:
            continue
        for cell, value in values.items():
            if value == (high if better == "max" else low) and better:
                marks[cell, name] = BEST
            elif not better and value in (low, high):
                marks[cell, name] = HIGHEST if value == high else LOWEST
    return marks


def groups_table(numbers: Numbers) -> Table:
    """Return a table with the mean and spread of each metric over repeated cells."""
    rest = [axis for axis in numbers.axes if axis not in numbers.over]
    lines = [
        [
            *([str(group.axes.get(axis, "")) or ABSENT for axis in rest] or ["all"]),
            *(
                spread_text(found[name]) if name in (found := group.metrics) else ABSENT
                for name in numbers.metrics
            ),
        ]
        for group in numbers.groups[:MAX_LINES]
    ]
    title = f"Mean and spread over {', '.join(numbers.over)}"
    note = "Mean ± sample standard deviation (n - 1) over n cells."
    note += " Cells that repeat each other add no new test items." + _rest(len(numbers.groups), JSON)
    columns = [*(rest or ["cells"]), *(f"#{name}" for name in numbers.metrics)]
    return Table("groups", title, columns, lines, note)


def failures_table(numbers: Numbers) -> Table:
    """Return a table with one line for each cell that ended without a result or cannot go on."""
    lines = [list(each.values()) for each in numbers.failures[:MAX_LINES]]
    note = _rest(len(numbers.failures), JSON).lstrip()
    return Table("failures", "Cells without a result", ["cell", "state", "cause", "reason"], lines, note)


def _launches_table(about: About | None) -> Table:
    """Return a table of the launches that made the results."""
    launches = about.launches if about else ()
    lines = [[each.at, each.verb, each.by, each.code, each.command] for each in launches]
    return Table("launches", "Launches", ["at", "verb", "by", "code", "command"], lines)


# Files


def _title(about: About | None) -> str:
    """Return the heading of the report."""
    return about.sweep if about else "Table of results"


def _subtitle(about: About | None) -> str:
    """Return the sentence below the heading: which revision, and as of when."""
    if about is None:
        return "From a table of results."
    made = f", as of {about.made_at}" if about.made_at else ""
    described = f" {about.description}." if about.description else ""
    return f"Sweep {about.sweep}, revision {about.revision}{made}.{described}"


def _status(numbers: Numbers, about: About | None) -> list[str]:
    """Return the paragraphs about the state of the sweep: cells by state, hosts and notes."""
    lines = []
    if about is not None:
        counts = ", ".join(f"{number} {state}" for state, number in numbers.states.items())
        lines.append(f"{len(about.cells)} cell{'' if len(about.cells) == 1 else 's'}: {counts}.")
        if not numbers.cells:
            lines.append("No cell has returned a result row.")
        if about.hosts:
            lines.append(f"Made on {', '.join(about.hosts)}.")
    return [*lines, *numbers.notes]


def _page(
    numbers: Numbers,
    about: About | None,
    figures: general_figures.Figures,
    folder: Path,
    grid: Fragment | None,
) -> str:
    """Return the report as one HTML page."""
    # The SVG files are embedded, so that the page can be sent as one file.
    plots, logged = (
        [
            page.Picture(
                each.key, each.title, each.caption, each.alt, (folder / f"{each.key}.svg").read_bytes()
            )
            for each in kind
        ]
        for kind in (figures.plots, figures.curves)
    )
    fewer_plots, fewer_curves = (
        [text] if text else [] for text in (figures.fewer_plots, figures.fewer_curves)
    )
    nothing = "Nothing is done yet."
    sections = [
        page.Section("status", "Status", _status(numbers, about), fragment=grid),
        page.Section("cells-section", "Results", (), [cells_table(numbers)], empty=nothing),
    ]
    if numbers.over:
        sections.append(page.Section("spread", "Mean and spread", (), [groups_table(numbers)]))
    sections += [
        page.Section(
            "plots", "Results against axes", fewer_plots, (), plots, empty="No axis varies in the results."
        ),
        page.Section("curves", "Curves", fewer_curves, (), logged, empty="No stage logged a metric."),
        page.Section("failed", "Failures", (), [failures_table(numbers)], empty="No cell failed."),
        _cost_section(about),
        page.Section("launched", "Launches", (), [_launches_table(about)], empty="A table does not tell."),
    ]
    return page.render(_title(about), subtitle=_subtitle(about), sections=sections)


def _cost_section(about: About | None) -> page.Section:
    """Return the section on what the sweep cost."""
    facts = about.held if about else ()
    return page.Section(
        "cost",
        "What it cost",
        [each.summary for each in facts],
        page.held_tables(facts),
        empty="No worker has held anything yet." if about else "A table does not show what it cost.",
    )


def _markdown(numbers: Numbers, about: About | None, figures: general_figures.Figures) -> str:
    """Return the report as Markdown, which refers to the PNG files beside it."""
    tables = [cells_table(numbers), groups_table(numbers), failures_table(numbers)]
    tables += [*page.held_tables(about.held if about else ()), _launches_table(about)]
    pictures = [(each.title, f"{each.key}.png", each.caption) for each in (*figures.plots, *figures.curves)]
    lines = [_subtitle(about), *_status(numbers, about)]
    lines += filter(None, [figures.fewer_plots, figures.fewer_curves])
    return page.page(_title(about), lines, tables, pictures)


def _write_csv(numbers: Numbers, path: Path) -> None:
    """Write one line for each cell, with its axes and metrics at full precision."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["cell", *numbers.axes, *numbers.metrics])
        writer.writerows(_values(result, numbers.axes, numbers.metrics) for result in numbers.cells)


def _values(result: CellResult, axes: Iterable[str], metrics: Mapping[str, Any]) -> list[Any]:
    """Return the values of a cell, in the order of the columns; "" for a missing one."""
    return [
        result.cell,
        *(result.axes.get(axis, "") for axis in axes),
        *(result.metrics.get(name, "") for name in metrics),
    ]
