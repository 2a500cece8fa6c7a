"""The `accuracy` report: a Markdown table and a figure of accuracy against training languages.

It takes the rows of `collect` and knows nothing of how they came to be; cells that are not done are
simply not there. Cells that repeat each other (seeds in the table, mixtures of one size in the figure) answer
the same items: their mean is shown with the interval of the items of one of them, and with their spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.reporting import About
from orchestrator.results import axes_of, axes_of_table, is_seed, labelled, notes_of, spread
from orchestrator.study.figure import draw
from orchestrator.study.statistics import pool, wilson
from orchestrator.study.table import languages_of

Row = Mapping[str, Any]
_NEEDED = ("task", "model", "split", "eval_language", "languages", "num_correct", "num_items")
_SHOWN = frozenset({"task", "model", "mixture", "languages"})
"""Axes that the table and the figure show by themselves."""


class Mean(NamedTuple):
    """An accuracy over cells that answer the same items.

    Attributes:
        share: the mean of the cells' accuracies.
        num_items: of one cell, on average.
        deviation: sample standard deviation over the cells, None of a single one.
    """

    share: float
    num_items: float
    deviation: float | None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the mean share over the items of one cell."""
        return wilson(self.share * self.num_items, self.num_items)


def write(rows: Sequence[Row], folder: Path, *, about: About | None = None) -> list[Path]:
    """Write ``accuracy.md`` and ``accuracy.png`` from the test rows, and return their paths.

    Rows of other reports are passed over; without any test row nothing is written.

    Args:
        rows: as `collect` gives them.
        folder: made if it is not there.
        about: of the sweep: each axis of it that varies has a column in the table, and lines in the figure.
    """
    tests = [row for row in rows if all(key in row for key in _NEEDED) and row["split"] == "test"]
    if not tests:
        return []
    tests = [*labelled(tests, {cell.cell: cell.axes for cell in about.cells} if about else {})]
    axes = varying(tests, about)
    folder.mkdir(parents=True, exist_ok=True)
    table, figure = folder / "accuracy.md", folder / "accuracy.png"
    table.write_text(markdown(tests, axes), encoding="utf-8")
    draw(series(tests, axes), figure)
    return [table, figure]


def varying(rows: Sequence[Row], about: About | None) -> list[str]:
    """Return the axes that set cells apart, but those that are shown anyway and seeds."""
    known = dict.fromkeys(axis for cell in (about.cells if about else ()) for axis in cell.axes)
    known = known if about else dict.fromkeys(axes_of_table(rows))
    return [axis for axis in axes_of(rows, known) if axis not in _SHOWN and not is_seed(axis)]


def markdown(rows: Sequence[Row], axes: Sequence[str] = ()) -> str:
    """Return a table for each task: a line a model, mixture and value of `axes`, the baseline first."""
    languages = list(dict.fromkeys(str(row["eval_language"]) for row in rows))
    lines = ["# Test accuracy, %", ""]
    lines += [
        "Trained: languages of the mixture, marked `*`; other: the rest. In brackets 95 % (Wilson).",
        "",
    ]
    if any(len(_cells_of(group)) > 1 for _, group in _groups(rows, axes)):
        lines += [
            "±: standard deviation over seeds, which answer the same items; the interval is of those items.",
            "",
        ]
    lines += [line for note in notes_of(rows) for line in (f"Note: {note}.", "")]
    for task in dict.fromkeys(str(row["task"]) for row in rows):
        header = ["model", "mixture", *axes, "languages", "trained", "other", *languages]
        rules = [*["---"] * (2 + len(axes)), *["---:"] * (len(header) - 2 - len(axes))]
        lines += [f"## {task}", "", _line(header), _line(rules)]
        for labels, group in _groups([row for row in rows if str(row["task"]) == task], axes):
            lines.append(_line([*labels, *_cells(group, languages)]))
        lines.append("")
    return "\n".join(lines)


def _cells(rows: Sequence[Row], languages: Sequence[str]) -> list[str]:
    mixture = _mixture(rows[0])
    cells = [str(len(mixture))]
    for inside in (True, False):
        found = mean([row for row in rows if (row["eval_language"] in mixture) is inside])
        if found is None:
            cells.append("–")
            continue
        low, high = found.interval
        cells.append(f"{_percent(found)} [{100 * low:.0f}, {100 * high:.0f}]{_deviation(found)}")
    for language in languages:
        found = mean([row for row in rows if row["eval_language"] == language])
        text = "–" if found is None else f"{_percent(found)}{_deviation(found)}"
        cells.append(f"{text}{'*' if language in mixture else ''}")
    return cells


def series(
    rows: Sequence[Row], axes: Sequence[str] = ()
) -> dict[str, dict[tuple[str, bool], dict[int, Mean]]]:
    """Return task to (line, whether trained on the evaluation language) to number of languages to mean.

    A line is a model, and the values of `axes` where there are any.
    """
    found: dict[str, dict[tuple[str, bool], dict[int, list[Row]]]] = {}
    for row in rows:
        mixture = _mixture(row)
        name = ", ".join([str(row["model"]), *(f"{axis}={row.get(axis)}" for axis in axes)])
        lines = found.setdefault(str(row["task"]), {})
        lines.setdefault((name, row["eval_language"] in mixture), {}).setdefault(len(mixture), []).append(row)
    return {
        task: {
            line: {x: each for x in sorted(points) if (each := mean(points[x])) is not None}
            for line, points in lines.items()
        }
        for task, lines in found.items()
    }


def mean(rows: Sequence[Row]) -> Mean | None:
    """Return the mean over the cells of some rows, None where no item was tried."""
    counts = [pool((int(r["num_correct"]), int(r["num_items"])) for r in cell) for cell in _cells_of(rows)]
    tried = [count for count in counts if count.num_items]
    if not tried:
        return None
    found = spread([count.share for count in tried])
    return Mean(found.mean, sum(count.num_items for count in tried) / len(tried), found.sd)


def _cells_of(rows: Iterable[Row]) -> list[list[Row]]:
    """Part rows by the cell that they are of; a table without cells may name the seed."""
    cells: dict[tuple[Any, Any], list[Row]] = {}
    seen: set[tuple[Any, ...]] = set()  # revisions that share a cell share its product
    for row in rows:
        what = tuple(row.get(name) for name in ("cell", "seed", "stage", "task", "eval_language"))
        if row.get("cell") is not None and row.get("stage") is not None and what in seen:
            continue
        seen.add(what)
        cells.setdefault((row.get("cell"), row.get("seed")), []).append(row)
    return list(cells.values())


def _groups(rows: Sequence[Row], axes: Sequence[str]) -> list[tuple[tuple[str, ...], list[Row]]]:
    """Group rows by model, mixture and `axes`, small mixtures first."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        label = str(row.get("mixture") or "+".join(_mixture(row)) or "none")
        others = (str(row.get(axis)) for axis in axes)
        groups.setdefault((str(row["model"]), label, *others), []).append(row)
    models = list(dict.fromkeys(labels[0] for labels in groups))
    return sorted(groups.items(), key=lambda item: (models.index(item[0][0]), len(_mixture(item[1][0]))))


def _mixture(row: Row) -> tuple[str, ...]:
    return languages_of(row["languages"])


def _percent(found: Mean) -> str:
    return f"{100 * found.share:.1f}"


def _deviation(found: Mean) -> str:
    return "" if found.deviation is None else f" ±{100 * found.deviation:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
