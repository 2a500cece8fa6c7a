"""The general report's figures: each metric against each axis, and the curves of what was logged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from orchestrator.reporting import Curve
from orchestrator.reports import style
from orchestrator.results import CellResult, metrics_of, spread

MAX_PLOTS, MAX_CURVES = 24, 24
"""Figures of each kind on one page."""

MAX_LINES = len(style.COLOURS)
"""Lines that a legend names; more are drawn in one colour."""

LOG_RATIO = 20
"""Positive values whose largest is so many times the smallest are drawn on a logarithmic scale."""


def draw(
    cells: Sequence[CellResult], axes: Sequence[str], over: Sequence[str], curves: Sequence[Curve]
) -> Iterator[style.Drawing]:
    """Yield the plots, those against numeric axes first, then the curves.

    Args:
        cells: one result a cell.
        axes: that vary.
        over: axes that repeat a cell; nothing is plotted against them.
        curves: the logged metrics.
    """
    shown = [axis for axis in axes if axis not in over]
    shown.sort(key=lambda axis: not _is_numeric(cells, axis))
    pairs = [(metric, axis) for axis in shown for metric in metrics_of(cells)]
    for number, (metric, axis) in enumerate(pairs[:MAX_PLOTS], start=1):
        yield _plot(number, metric, axis, cells, [other for other in shown if other != axis])
    by_name: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        for metric in curve.points:
            by_name.setdefault((curve.stage.partition("[")[0], metric), []).append(curve)
    for number, ((stage, metric), group) in enumerate(list(by_name.items())[:MAX_CURVES], start=1):
        yield _curves(number, stage, metric, group)


def _is_numeric(cells: Sequence[CellResult], axis: str) -> bool:
    values = [cell.axes.get(axis) for cell in cells]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _plot(
    number: int, metric: str, axis: str, cells: Sequence[CellResult], others: Sequence[str]
) -> style.Drawing:
    """Draw the cells as dots, and their mean with one standard deviation a place and line."""
    having = [cell for cell in cells if metric in cell.metrics]
    numeric = _is_numeric(having, axis)
    places: list[Any] = (
        sorted({cell.axes[axis] for cell in having}) if numeric else list(_distinct(having, axis))
    )
    split = next((o for o in others if 1 < len(_distinct(having, o)) <= MAX_LINES), None)
    labels = _distinct(having, split) if split else [""]
    figure, panels = style.panels(1, 1, height_in=3.2)
    panel: Axes = panels[0][0]
    for index, label in enumerate(labels):
        of_line = [cell for cell in having if not split or str(cell.axes[split]) == label]
        xs = [place for place in places if any(_at(cell, axis, place, numeric) for cell in of_line)]
        found = [spread([c.metrics[metric] for c in of_line if _at(c, axis, place, numeric)]) for place in xs]
        at = xs if numeric else [places.index(x) + style.dodge(index, len(labels)) for x in xs]
        panel.errorbar(
            at,
            [each.mean for each in found],
            yerr=[each.sd or 0.0 for each in found],
            color=style.colour(index),
            marker=style.marker(index),
            linestyle="-" if numeric else "",
            capsize=2,
            elinewidth=0.8,
        )
        for place, x in zip(xs, at, strict=True):
            dots = [c.metrics[metric] for c in of_line if _at(c, axis, place, numeric)]
            if len(dots) > 1:
                panel.plot([x] * len(dots), dots, ".", color=style.colour(index), alpha=0.35, markersize=3)
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
            for i, label in enumerate(labels)
        ]
        style.legend(figure, handles, longest=max(len(label) for label in labels))
    caption = f"{len(having)} cells: mean and one standard deviation of the cells at each place"
    caption += f", a line for each {split}." if split else "."
    title = f"{metric} against {axis}"
    return style.Drawing(f"plot-{number:02d}-{_slug(title)}", title, caption, f"Plot of {title}.", figure)


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= LOG_RATIO


def _by_logarithm(set_scale: Callable[[str], None], axis: Axis) -> None:
    """Scale an axis, and label it as plain numbers: names are never read as formulas in these figures."""
    set_scale("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _at(cell: CellResult, axis: str, place: Any, numeric: bool) -> bool:
    value = cell.axes.get(axis)
    return bool(value == place) if numeric else str(value) == place


def _distinct(cells: Sequence[CellResult], axis: str) -> list[str]:
    return list(dict.fromkeys(str(cell.axes.get(axis)) for cell in cells))


def _curves(number: int, stage: str, metric: str, group: Sequence[Curve]) -> style.Drawing:
    """Draw a line a stage instance; a handful are named, more are drawn thin in one colour."""
    figure, panels = style.panels(1, 1, height_in=3.2)
    panel: Axes = panels[0][0]
    few = len(group) <= MAX_LINES
    for index, curve in enumerate(group):
        xs, ys = zip(*curve.points[metric], strict=True)
        tint, alpha = (style.colour(index), 0.9) if few else (style.COLOURS[0], max(0.08, 8 / len(group)))
        panel.plot(xs, ys, color=tint, alpha=alpha, linewidth=1.0, marker="." if len(xs) == 1 else None)
    values = [value for curve in group for _, value in curve.points[metric]]
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
    caption = f"{len(group)} curve{'s' if len(group) > 1 else ''}"
    caption += "." if few else ", drawn in one colour because they are too many to name."
    return style.Drawing(f"curve-{number:02d}-{_slug(title)}", title, caption, f"Plot of {title}.", figure)


def _name(curve: Curve) -> str:
    more = f" and {len(curve.cells) - 1} more" if len(curve.cells) > 1 else ""
    return f"{curve.cells[0]}{more}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
