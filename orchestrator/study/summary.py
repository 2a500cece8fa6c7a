"""The `accuracy` report: a Markdown table, and a figure of accuracy against training languages.

This module uses only the rows of `collect`; cells that are not done have none. Some cells answer the same
items: seeds in the table, mixtures of one size in the figure. Their mean is shown with their spread. Its
interval is that of the items of one cell and language: repeated answers to an item are not independent, nor
are answers to its translations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.reporting import About
from orchestrator.reports import style
from orchestrator.results import axes_of, axes_of_table, is_seed, labelled, notes_of, spread
from orchestrator.study.statistics import pool, wilson
from orchestrator.study.tables.results import languages_of

_TRAINED = {True: "languages of the mixture", False: "other languages"}
_SPREAD, _WIDEST = 0.07, 0.6
"""Distance between the intervals at one place, for two neighbours and for all; 1 is the next place."""


class Point(Protocol):
    """An accuracy with its interval, as shares."""

    @property
    def share(self) -> float:
        """The accuracy."""

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval."""


Lines = Mapping[tuple[str, bool], Mapping[int, Point]]
"""Map from (model, whether the evaluation language was trained on) to number of languages to accuracy."""


def draw(panels: Mapping[str, Lines], path: Path) -> None:
    """Draw a panel for each task, and save the figure."""
    models = list(dict.fromkeys(model for lines in panels.values() for model, _ in lines))
    num_places = max(len({x for points in lines.values() for x in points}) for lines in panels.values())
    width_in = max(4.6, 0.95 * num_places) * len(panels) + 0.6
    figure = Figure(figsize=(width_in, 4.4))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axis, (task, lines) in zip(axes[0], panels.items(), strict=True):
        _panel(axis, lines, models)
        axis.set_title(task.replace("_", " "))
    axes[0][0].set_ylabel("test accuracy (%), with 95 % interval")
    handles = [
        Line2D([], [], color=style.colour(i), marker=style.marker(i), label=model)
        for i, model in enumerate(models)
    ] + [
        Line2D([], [], color="#444444", linestyle=_style(trained), label=label)
        for trained, label in _TRAINED.items()
    ]
    figure.legend(
        handles=handles, loc="lower center", ncol=min(len(handles), 2 * len(panels) + 1), frameon=False
    )
    rows_of_legend = -(-len(handles) // min(len(handles), 2 * len(panels) + 1))
    figure.tight_layout(rect=(0, 0.02 + 0.055 * rows_of_legend, 1, 1))
    figure.savefig(path, dpi=150)


def _panel(axis: Axes, lines: Lines, models: list[str]) -> None:
    # Sizes are spaced evenly, because most of them are small and would lie close together to scale.
    places = sorted({x for points in lines.values() for x in points})
    # Lines of one model stay next to each other, so that their intervals can be compared.
    ordered = sorted(lines.items(), key=lambda line: (models.index(line[0][0]), line[0][1]))
    for number, ((model, trained), points) in enumerate(ordered):
        index = models.index(model)
        shift = min(_SPREAD * len(lines), _WIDEST) * ((number + 0.5) / len(lines) - 0.5)
        xs = [places.index(x) + shift for x in points]
        ys = [100 * point.share for point in points.values()]
        bars = [
            [100 * max(0.0, point.share - point.interval[0]) for point in points.values()],
            [100 * max(0.0, point.interval[1] - point.share) for point in points.values()],
        ]
        axis.errorbar(
            xs,
            ys,
            yerr=bars,
            color=style.colour(index),
            marker=style.marker(index),
            markersize=6,
            markerfacecolor=style.colour(index) if trained else "white",
            linestyle=_style(trained),
            linewidth=1.6,
            elinewidth=1,
            capsize=2,
        )
    axis.set_xticks(range(len(places)), [str(x) if x else "0\n(untrained)" for x in places])
    axis.set_xlim(-0.5, len(places) - 0.5)
    axis.set_ylim(-3, 103)
    axis.set_xlabel("training languages")
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _style(trained: bool) -> str:
    return "-" if trained else "--"


Row = Mapping[str, Any]
_NEEDED = ("task", "model", "split", "eval_language", "languages", "num_correct", "num_items")
_SHOWN = frozenset({"task", "model", "mixture", "languages"})
"""Axes that the table and the figure show in any case."""


class Mean(NamedTuple):
    """An accuracy over cells that answer the same items.

    Attributes:
        share: the mean of the cells' accuracies.
        num_items: the number of items of one cell in one language, on average.
        deviation: the sample standard deviation over the cells; None for a single one.
    """

    share: float
    num_items: float
    deviation: float | None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the mean share over the items of one cell."""
        return wilson(self.share * self.num_items, self.num_items)


def write(rows: Sequence[Row], folder: Path, *, about: About | None = None, drawn: bool = True) -> list[Path]:
    """Write ``accuracy.md`` and ``accuracy.png`` from the test rows, and return their paths.

    Rows of other reports are ignored. Without test rows nothing is written.

    Args:
        rows: the rows of `collect`.
        folder: the destination, which is created if needed.
        about: facts of the sweep. Each of its axes that varies gets a column in the table and lines in the
            figure.
        drawn: whether to write the figure too.
    """
    tests = [row for row in rows if all(key in row for key in _NEEDED) and row["split"] == "test"]
    if not tests:
        return []
    tests = [*labelled(tests, {cell.cell: cell.axes for cell in about.cells} if about else {})]
    axes = varying(tests, about)
    folder.mkdir(parents=True, exist_ok=True)
    table, figure = folder / "accuracy.md", folder / "accuracy.png"
    table.write_text(markdown(tests, axes), encoding="utf-8")
    if not drawn:
        return [table]
    draw(series(tests, axes), figure)
    return [table, figure]


def varying(rows: Sequence[Row], about: About | None) -> list[str]:
    """Return the axes that distinguish cells, without seeds and axes that are shown in any case."""
    known = dict.fromkeys(axis for cell in (about.cells if about else ()) for axis in cell.axes)
    known = known if about else dict.fromkeys(axes_of_table(rows))
    return [axis for axis in axes_of(rows, known) if axis not in _SHOWN and not is_seed(axis)]


def markdown(rows: Sequence[Row], axes: Sequence[str] = ()) -> str:
    """Return a table for each task, with the baseline first.

    A line stands for a model, a mixture and a value of each of `axes`.
    """
    languages = list(dict.fromkeys(str(row["eval_language"]) for row in rows))
    lines = ["# Test accuracy, %", ""]
    lines += [
        "Trained: languages of the mixture, marked `*`; other: the rest. In brackets 95 % (Wilson)"
        " of the items of one language, because the others ask the same.",
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
    """Return a line's cells: its number of languages, its two means, and its accuracy in each language."""
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
    """Return accuracies as nested maps: by task, by line, and by number of languages.

    A line is a model, with the values of `axes` if there are any, and whether the evaluation language was
    trained on.
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
    """Return the mean over the cells of some rows, or None if there are no items."""
    cells = [[row for row in cell if int(row["num_items"])] for cell in _cells_of(rows)]
    tried = [cell for cell in cells if cell]
    if not tried:
        return None
    found = spread([pool((int(r["num_correct"]), int(r["num_items"])) for r in cell).share for cell in tried])
    # The languages of a cell ask the same items.
    num_items = sum(max(int(row["num_items"]) for row in cell) for cell in tried) / len(tried)
    return Mean(found.mean, num_items, found.sd)


def _cells_of(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows grouped by cell.

    A table without cells may have seeds, which then distinguish repetitions.
    """
    cells: dict[tuple[Any, Any], list[Row]] = {}
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        # One cell may be in several revisions of a sweep, and then its rows come several times.
        what = tuple(row.get(name) for name in ("cell", "seed", "stage", "task", "eval_language"))
        if row.get("cell") is not None and row.get("stage") is not None and what in seen:
            continue
        seen.add(what)
        cells.setdefault((row.get("cell"), row.get("seed")), []).append(row)
    return list(cells.values())


def _groups(rows: Sequence[Row], axes: Sequence[str]) -> list[tuple[tuple[str, ...], list[Row]]]:
    """Return the rows grouped by model, mixture and `axes`, small mixtures first."""
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
