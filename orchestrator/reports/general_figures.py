"""The general report's figures: each metric against each axis, and the curves of what was logged."""

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
"""Figures of each kind on one page."""

MAX_PLACES, MAX_NAMES = 200, 40
"""Places of an axis in one plot: of a numeric one, and of one whose every place is named."""

MAX_DOTS, MAX_DRAWN = 1_000, 200
"""Dots of cells in a plot, and curves in a figure: more hide each other, and make files of megabytes."""

MAX_LINES = len(style.COLOURS)
"""Lines that a legend names; more are drawn in one colour."""

LOG_RATIO = 20
"""Positive values whose largest is so many times the smallest are drawn on a logarithmic scale."""


MAX_VALUE = 1e100
"""What a figure can show, either way; matplotlib fails where a range is no float."""


class Figures(NamedTuple):
    """What is drawn, and of each kind a line on what is left out, "" where nothing is."""

    plots: list[style.Drawing]
    curves: list[style.Drawing]
    fewer_plots: str
    fewer_curves: str


def draw(
    cells: Sequence[CellResult], axes: Sequence[str], over: Sequence[str], curves: Sequence[Curve]
) -> Figures:
    """Return the plots, those against numeric axes first, and the curves.

    Args:
        cells: one result a cell.
        axes: that vary.
        over: axes that repeat a cell; nothing is plotted against them.
        curves: the logged metrics.
    """
    shown = [axis for axis in axes if axis not in over]
    shown.sort(key=lambda axis: not _is_numeric(cells, axis))
    drawable = [
        cell._replace(metrics={name: y for name, y in cell.metrics.items() if abs(y) <= MAX_VALUE})
        for cell in cells
    ]
    pairs = [(metric, axis) for axis in shown for metric in metrics_of(drawable)]
    by_name: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        for metric, points in curve.points.items():
            if not any(abs(y) <= MAX_VALUE for _, y in points):
                continue
            by_name.setdefault((curve.stage.partition("[")[0], metric), []).append(curve)
    return Figures(
        [
            _plot(number, metric, axis, cells, [other for other in shown if other != axis])
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
    return "" if of <= most else f"{most:,} of {of:,} {what}."


def _is_numeric(cells: Sequence[CellResult], axis: str) -> bool:
    values = [cell.axes.get(axis) for cell in cells]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _plot(
    number: int, metric: str, axis: str, cells: Sequence[CellResult], others: Sequence[str]
) -> style.Drawing:
    """Draw the cells as dots, and their mean with one standard deviation a place and line."""
    having = [cell for cell in cells if abs(cell.metrics.get(metric, math.inf)) <= MAX_VALUE]
    num_larger = sum(metric in cell.metrics for cell in cells) - len(having)
    numeric = _is_numeric(having, axis)
    split = next((o for o in others if 1 < len(_distinct(having, o)) <= MAX_LINES), None)
    lines: dict[str, dict[Any, list[float]]] = {}
    for cell in having:
        line = lines.setdefault(str(cell.axes.get(split)) if split else "", {})
        line.setdefault(cell.axes[axis] if numeric else str(cell.axes.get(axis)), []).append(
            cell.metrics[metric]
        )
    every = dict.fromkeys(place for line in lines.values() for place in line)
    order: list[Any] = sorted(every) if numeric else _distinct(having, axis)
    places = evenly(order, MAX_PLACES if numeric else MAX_NAMES)
    at = {place: place if numeric else number for number, place in enumerate(places)}
    figure, panels = style.panels(1, 1, height_in=3.2)
    panel: Axes = panels[0][0]
    for index, line in enumerate(lines.values()):
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
    """Draw one line of a plot: at each place the mean, and single cells where there are several."""
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
    return min(values) > 0 and max(values) / min(values) >= LOG_RATIO


def _by_logarithm(set_scale: Callable[[str], None], axis: Axis) -> None:
    """Scale an axis, and label it as plain numbers: names are never read as formulas in these figures."""
    set_scale("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _distinct(cells: Sequence[CellResult], axis: str) -> list[str]:
    return list(dict.fromkeys(str(cell.axes.get(axis)) for cell in cells))


def _curves(number: int, stage: str, metric: str, group: Sequence[Curve]) -> style.Drawing:
    """Draw a line a stage instance; a handful are named, more are drawn thin in one colour."""
    figure, panels = style.panels(1, 1, height_in=3.2)
    panel: Axes = panels[0][0]
    few, drawn = len(group) <= MAX_LINES, evenly(group, MAX_DRAWN)
    for index, curve in enumerate(drawn):
        points = [(x, y) for x, y in curve.points[metric] if abs(y) <= MAX_VALUE]
        xs, ys = zip(*points, strict=True)
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
    more = f" and {len(curve.cells) - 1} more" if len(curve.cells) > 1 else ""
    return f"{curve.cells[0]}{more}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
