"""Accuracy against the number of training languages: one panel a task, one colour a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_TRAINED = {True: "languages of the mixture", False: "other languages"}
_SPREAD, _WIDEST = 0.07, 0.6
"""How far apart the intervals of one place lie, each and all together; 1 is the next place."""


class Point(Protocol):
    """An accuracy with its interval, as shares."""

    @property
    def share(self) -> float:
        """The accuracy."""

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval."""


Lines = Mapping[tuple[str, bool], Mapping[int, Point]]
"""(Model, whether the evaluation language was trained on) to number of languages to accuracy."""


def draw(panels: Mapping[str, Lines], path: Path) -> None:
    """Draws a panel for each task and saves the figure."""
    models = list(dict.fromkeys(model for lines in panels.values() for model, _ in lines))
    num_places = max(len({x for points in lines.values() for x in points}) for lines in panels.values())
    width_in = max(4.6, 0.95 * num_places) * len(panels) + 0.6
    figure, axes = pyplot.subplots(1, len(panels), figsize=(width_in, 4.4), sharey=True, squeeze=False)
    for axis, (task, lines) in zip(axes[0], panels.items(), strict=True):
        _panel(axis, lines, models)
        axis.set_title(task.replace("_", " "))
    axes[0][0].set_ylabel("test accuracy (%), with 95 % interval")
    handles = [
        Line2D([], [], color=_colour(i), marker=_marker(i), label=model) for i, model in enumerate(models)
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
    pyplot.close(figure)


def _panel(axis: Axes, lines: Lines, models: list[str]) -> None:
    places = sorted({x for points in lines.values() for x in points})
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
            color=_colour(index),
            marker=_marker(index),
            markersize=6,
            markerfacecolor=_colour(index) if trained else "white",
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


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def _style(trained: bool) -> str:
    return "-" if trained else "--"
