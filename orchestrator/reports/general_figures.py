"""The figures of the general report: each metric against each axis, and curves of logged metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from orchestrator.reporting import Curve
from orchestrator.reports import style
from orchestrator.results import CellResult, evenly, metrics_of, spread

MAX_PLOTS, MAX_CURVES = 24, 24
"""Most figures of each kind on one page."""

MAX_PLACES, MAX_NAMES = 200, 40
"""Most positions on the x axis of a plot: of a numeric axis, and of one whose positions are all labelled."""

MAX_DOTS, MAX_DRAWN = 1_000, 200
"""Most dots in a plot, and curves in a figure. More would hide each other and make files of megabytes."""

MAX_LINES = len(style.COLOURS)
"""Most lines that a legend names. If there are more, all are drawn in one colour."""

LOG_RATIO = 20
"""Positive values are drawn on a logarithmic scale from this ratio of the largest to the smallest."""


MAX_VALUE = 1e100
"""Largest absolute value in a figure. matplotlib fails if the range between two values overflows a float."""


class Figures(NamedTuple):
    """The figures of a report.

    Attributes:
        plots: metrics against axes.
        curves: logged metrics by step.
        fewer_plots: a sentence on plots that were left out, "" if there are none.
        fewer_curves: a sentence on curves that were left out, "" if there are none.
    """

    plots: list[style.Drawing]
    curves: list[style.Drawing]
    fewer_plots: str
    fewer_curves: str


def draw(
    cells: Sequence[CellResult], axes: Sequence[str], over: Sequence[str], curves: Sequence[Curve]
) -> Figures:
    """Return the plots, those against numeric axes first, and the curves.

    Args:
        cells: one result for each cell.
        axes: the axes that vary.
        over: axes that repeat a cell; nothing is plotted against them.
        curves: the logged metrics.
    """
    shown = [axis for axis in axes if axis not in over]
    # The number of plots is limited. Trends over numbers are more useful than comparisons of names.
    shown.sort(key=lambda axis: not _is_numeric(cells, axis))
    drawable = [
        cell._replace(metrics={name: y for name, y in cell.metrics.items() if abs(y) <= MAX_VALUE})
        for cell in cells
    ]
    pairs = [(metric, axis) for axis in shown for metric in metrics_of(_on(axis, drawable))]
    by_name: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        for metric, points in curve.points.items():
            if not any(abs(y) <= MAX_VALUE for _, y in points):
                continue
            # Instances of one stage, such as prepare[en] and prepare[de], share a figure.
            by_name.setdefault((curve.stage.partition("[")[0], metric), []).append(curve)
    return Figures(
        [
            _plot(number, metric, axis, _on(axis, cells), [other for other in shown if other != axis])
            for number, (metric, axis) in enumerate(pairs[:MAX_PLOTS], start=1)
        ],
        [
            _curves(number, stage, metric, group)
            for number, ((stage, metric), group) in enumerate([*by_name.items()][:MAX_CURVES], start=1)
        ],
        _fewer(MAX_PLOTS, len(pairs), "plots are drawn, the first of the metrics and axes"),
        _fewer(MAX_CURVES, len(by_name), "logged metrics are drawn, the first"),
    )


def _fewer(most: int, of: int, what: str) -> str:
    """Return a sentence on figures that were left out, "" if there are none."""
    return "" if of <= most else f"{most:,} of {of:,} {what}."


def _on(axis: str, cells: Sequence[CellResult]) -> list[CellResult]:
    """Return the cells in which an axis counts; its label is empty in others."""
    return [cell for cell in cells if cell.axes.get(axis) != ""]


def _is_numeric(cells: Sequence[CellResult], axis: str) -> bool:
    """Return whether all values of an axis are numbers. Booleans are names."""
    values = [cell.axes.get(axis) for cell in _on(axis, cells)]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _plot(
    number: int, metric: str, axis: str, cells: Sequence[CellResult], others: Sequence[str]
) -> style.Drawing:
    """Draw a metric against an axis: cells as dots, and mean and standard deviation at each position.

    A second axis, if one has few enough values, splits the cells into lines.

    Args:
        number: of the plot, for its file name.
        metric: on the y axis.
        axis: on the x axis.
        cells: one result for each cell.
        others: axes that may split the cells into lines.
    """
    # A missing metric counts as infinite, which leaves the cell out as well.
    having = [cell for cell in cells if abs(cell.metrics.get(metric, math.inf)) <= MAX_VALUE]
    num_larger = sum(metric in cell.metrics for cell in cells) - len(having)
    numeric = _is_numeric(having, axis)
    split = next((o for o in others if 1 < len(_distinct(having, o)) <= MAX_LINES), None)
    lines: dict[str, dict[Any, list[float]]] = {}
    for cell in having:
        line = lines.setdefault((str(cell.axes.get(split)) or "–") if split else "", {})
        line.setdefault(cell.axes[axis] if numeric else str(cell.axes.get(axis)), []).append(
            cell.metrics[metric]
        )
    every = dict.fromkeys(place for line in lines.values() for place in line)
    order: list[Any] = sorted(every) if numeric else _distinct(having, axis)
    places = evenly(order, MAX_PLACES if numeric else MAX_NAMES)
    # Numbers lie at their value. Names lie at 0, 1, 2, ...
    at = {place: place if numeric else number for number, place in enumerate(places)}
    figure, panels = style.panels(1, 1, height_in=3.2)
    panel: Axes = panels[0][0]
    for index, line in enumerate(lines.values()):
        # Lines over names would hide each other's error bars. On a numeric axis, a shift would change the
        # value.
        aside = 0.0 if numeric else style.dodge(index, len(lines))
        found = {at[place] + aside: line[place] for place in places if place in line}
        _line(panel, index, found, "-" if numeric else "", MAX_DOTS // len(lines))
    if numeric and _spans_decades(places):
        _by_logarithm(panel.set_xscale, panel.xaxis)
    if _spans_decades([cell.metrics[metric] for cell in having]):
        _by_logarithm(panel.set_yscale, panel.yaxis)
    if not numeric:
        names = [style.shortened(str(place), 18) for place in places]
        panel.set_xticks(range(len(places)), names, rotation=30 if len(places) > 6 else 0)
    panel.set_xlabel(axis)
    panel.set_ylabel(style.shortened(metric, 40))
    style.plain(panel)
    if split:
        handles = [
            Line2D([], [], color=style.colour(i), marker=style.marker(i), label=style.shortened(label))
            for i, label in enumerate(lines)
        ]
        style.legend(figure, handles, longest=max(map(len, lines)))
    cells_text = "1 cell" if len(having) == 1 else f"{len(having)} cells"
    caption = f"{cells_text}: mean and one standard deviation of the cells at each place"
    caption += f", a line for each {split}." if split else "."
    if len(places) < len(order):
        caption += f" {len(places):,} of {len(order):,} places are drawn, evenly chosen."
    if num_larger:
        caption += f" Values beyond {MAX_VALUE:g} are not drawn ({num_larger:,})."
    if len(having) > MAX_DOTS:
        caption += f" At most {MAX_DOTS:,} single cells are drawn as dots."
    title = f"{metric} against {axis}"
    return style.Drawing(f"plot-{number:02d}-{_slug(title)}", title, caption, f"Plot of {title}.", figure)


def _line(
    panel: Axes, index: int, values: Mapping[float, Sequence[float]], linestyle: str, most_dots: int
) -> None:
    """Draw one line of a plot: the mean at each position, and single cells if there are several.

    Args:
        panel: to draw in.
        index: of the line, which decides its colour and marker.
        values: position on the x axis to the metric of the cells there.
        linestyle: of matplotlib; "" for no connecting line.
        most_dots: largest number of single cells to draw.
    """
    found = [spread(each) for each in values.values()]
    tint = style.colour(index)
    panel.errorbar(
        list(values),
        [each.mean for each in found],
        yerr=[each.sd or 0.0 for each in found],
        color=tint,
        marker=style.marker(index),
        linestyle=linestyle,
        capsize=2,
        elinewidth=0.8,
    )
    dots = evenly([(x, y) for x, ys in values.items() if len(ys) > 1 for y in ys], most_dots)
    if dots:
        panel.plot([x for x, _ in dots], [y for _, y in dots], ".", color=tint, alpha=0.35, markersize=3)


def _spans_decades(values: Sequence[float]) -> bool:
    """Return whether values are better shown on a logarithmic scale."""
    return min(values) > 0 and max(values) / min(values) >= LOG_RATIO


def _by_logarithm(set_scale: Callable[[str], None], axis: Axis) -> None:
    """Set an axis to a logarithmic scale with plain numbers as labels.

    The default labels are formulas (powers of ten). Formulas are switched off in these figures, because names
    may contain dollar signs.
    """
    set_scale("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _distinct(cells: Sequence[CellResult], axis: str) -> list[str]:
    """Return the values of an axis as text, each once, in order of first appearance."""
    return list(dict.fromkeys(str(cell.axes.get(axis)) for cell in cells))


def _curves(number: int, stage: str, metric: str, group: Sequence[Curve]) -> style.Drawing:
    """Draw a metric by step, one line for each stage instance.

    A few lines get a colour and a name each. More are drawn thin and in one colour.

    Args:
        number: of the figure, for its file name.
        stage: name of the stage.
        metric: that it logged.
        group: the curves of its instances.
    """
    figure, panels = style.panels(1, 1, height_in=3.2)
    panel: Axes = panels[0][0]
    few, drawn = len(group) <= MAX_LINES, evenly(group, MAX_DRAWN)
    for index, curve in enumerate(drawn):
        points = [(x, y) for x, y in curve.points[metric] if abs(y) <= MAX_VALUE]
        xs, ys = zip(*points, strict=True)
        # The more lines overlap, the fainter each is, so that dense regions stay readable.
        tint, alpha = (style.colour(index), 0.9) if few else (style.COLOURS[0], max(0.08, 8 / len(drawn)))
        panel.plot(xs, ys, color=tint, alpha=alpha, linewidth=1.0, marker="." if len(xs) == 1 else None)
    values = [y for curve in drawn for _, y in curve.points[metric] if abs(y) <= MAX_VALUE]
    if _spans_decades(values):
        _by_logarithm(panel.set_yscale, panel.yaxis)
    panel.set_xlabel("step")
    panel.set_ylabel(style.shortened(metric, 40))
    style.plain(panel)
    if few and len(group) > 1:
        names = [style.shortened(_name(curve), 44) for curve in group]
        handles = [Line2D([], [], color=style.colour(i), label=name) for i, name in enumerate(names)]
        style.legend(figure, handles, longest=max(map(len, names)))
    title = f"{metric} of {stage} by step"
    caption = f"{len(group):,} curve{'s' if len(group) > 1 else ''}"
    caption += "" if len(drawn) == len(group) else f", of which {len(drawn)} are drawn, evenly chosen"
    caption += "." if few else ", in one colour because they are too many to name."
    return style.Drawing(f"curve-{number:02d}-{_slug(title)}", title, caption, f"Plot of {title}.", figure)


def _name(curve: Curve) -> str:
    """Return the name of a curve: its first cell, and how many others share the stage."""
    more = f" and {len(curve.cells) - 1} more" if len(curve.cells) > 1 else ""
    return f"{curve.cells[0]}{more}"


def _slug(text: str) -> str:
    """Return a text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
