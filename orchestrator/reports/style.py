"""The common style of all figures: size, palette, markers, and reproducible files.

Equal numbers give equal bytes: the files contain no date, no version and no random ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette. Its colours differ for colour-blind readers too."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One marker for each colour."""
GREY, PALE = "#767676", "#e4e4e4"
"""Colours of secondary text, and of grid lines."""
WIDTH_IN = 7.0
"""The width of a page's text, in inches. A column is half as wide."""

DPI = 200
"""Resolution of PNG files, in dots per inch."""
_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "figure.facecolor": "white",
    "svg.hashsalt": "polysweep",
    "text.parse_math": False,  # names may contain dollar signs
}
"""matplotlib's settings for a report. A fixed ``svg.hashsalt`` makes ids in SVG files reproducible."""


class Drawing(NamedTuple):
    """A figure with its texts.

    Attributes:
        key: name of its files, such as ``figure2``.
        title: a heading.
        caption: what is shown, with n, intervals and tests.
        alt: a description for readers who cannot see the figure.
        figure: not saved yet.
    """

    key: str
    title: str
    caption: str
    alt: str
    figure: Figure


@contextmanager
def styled() -> Iterator[None]:
    """Apply the report's style inside the block, and restore the previous style afterwards."""
    with matplotlib.rc_context(_RC):
        yield


def save(drawing: Drawing, folder: Path) -> list[Path]:
    """Write the figure as PNG and SVG, and return the paths."""
    paths = [folder / f"{drawing.key}.{suffix}" for suffix in ("png", "svg")]
    with styled():
        drawing.figure.savefig(paths[0], dpi=DPI, metadata={"Software": None})
        drawing.figure.set_layout_engine("none")  # keep the layout of the PNG for the SVG
        drawing.figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def panels(num_rows: int, num_columns: int, *, height_in: float, **shared: Any) -> tuple[Figure, Any]:
    """Return a figure as wide as the page, and its axes as a two-dimensional array.

    Args:
        num_rows: of panels.
        num_columns: of panels.
        height_in: of the figure, in inches.
        shared: further arguments of `Figure.subplots`, such as ``sharey``.
    """
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **shared)


def panels_by_task(axes: Any, tasks: Sequence[str], names: Sequence[str]) -> Iterator[tuple[Axes, str, str]]:
    """Yield each panel with its task and name, a task in whole rows; panels that are left over are hidden.

    Args:
        axes: the panels, as `panels` returns them.
        tasks: from top to bottom.
        names: what each task has a panel for, from left to right.
    """
    left_over = [""] * (-len(names) % axes.shape[1])
    places = [(task, name) for task in tasks for name in (*names, *left_over)]
    for axis, (task, name) in zip(axes.flat, places, strict=True):
        if name:
            yield axis, task, name
        else:
            axis.set_visible(False)


def colour(index: int) -> str:
    """Return the colour of the n-th line. Colours repeat past the end of the palette."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Return the marker of the n-th line.

    Past the end of the palette, the markers shift by one. A line that repeats a colour gets another marker.
    """
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def plain(axis: Axes, *, grid: Literal["x", "y", "both"] = "y") -> None:
    """Remove decoration that carries no data, and draw a pale grid behind the data.

    Args:
        axis: to change.
        grid: direction of the grid lines.
    """
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color=PALE, linewidth=0.6)
    axis.set_axisbelow(True)


def dodge(index: int, num: int) -> float:
    """Return how far to move the n-th of several lines sideways, so that none hides another.

    Args:
        index: of the line, from 0.
        num: number of lines.
    """
    # In units of the x axis: 0.09 between two lines, and at most 0.6 between the first and the last one.
    return (index - (num - 1) / 2) * min(0.09, 0.6 / max(num, 1))


def size_ticks(axis: Axes, sizes: Sequence[int]) -> None:
    """Label an axis of numbers of training languages with exactly these numbers."""
    axis.set_xticks(list(sizes), [str(size) for size in sizes])
    axis.set_xlim(min(sizes) - 0.6, max(sizes) + 0.6)


def model_legend(figure: Figure, models: Sequence[str]) -> None:
    """Add a legend of models below the panels.

    Args:
        figure: to add it to.
        models: their names, in the order of their colours.
    """
    handles = [
        Line2D([], [], color=colour(i), marker=marker(i), linestyle="-", label=name)
        for i, name in enumerate(models)
    ]
    legend(figure, handles, longest=max((len(name) for name in models), default=1))


def legend(figure: Figure, handles: Sequence[Any], *, longest: int) -> None:
    """Add a legend below the panels, in as many columns as fit the page.

    Args:
        figure: to add it to.
        handles: the entries.
        longest: length of the longest label, in characters.
    """
    # About 14 characters fit into an inch; an entry's line or marker takes about 6 more.
    fitting = max(1, min(7, len(handles), int(WIDTH_IN * 14 / (longest + 6))))
    figure.legend(handles=list(handles), loc="outside lower center", ncol=fitting, frameon=False)


def shortened(name: str, length: int = 32) -> str:
    """Return a name, cut if it would push the panels off the page."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
