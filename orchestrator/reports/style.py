"""What all figures share: size, palette, markers, and files whose bytes depend on the numbers alone."""

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
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, PALE = "#767676", "#e4e4e4"
WIDTH_IN = 7.0
"""The width of a page's text; half of it is a column."""

DPI = 200
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
    "text.parse_math": False,  # a name may hold dollar signs
}


class Drawing(NamedTuple):
    """A figure with what is said of it.

    Attributes:
        key: of its files, such as ``figure2``.
        title: a heading.
        caption: what is shown, with n, intervals and tests.
        alt: what it shows, for who cannot see it.
        figure: not saved yet.
    """

    key: str
    title: str
    caption: str
    alt: str
    figure: Figure


@contextmanager
def styled() -> Iterator[None]:
    """Draws in the report's style, and leaves the process's own as it was."""
    with matplotlib.rc_context(_RC):
        yield


def save(drawing: Drawing, folder: Path) -> list[Path]:
    """Writes the figure as PNG and SVG and returns their paths."""
    paths = [folder / f"{drawing.key}.{suffix}" for suffix in ("png", "svg")]
    with styled():
        drawing.figure.savefig(paths[0], dpi=DPI, metadata={"Software": None})
        drawing.figure.set_layout_engine("none")  # the second file has the places of the first
        drawing.figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def panels(num_rows: int, num_columns: int, *, height_in: float, **shared: Any) -> tuple[Figure, Any]:
    """Returns a figure as wide as the page and its axes in two dimensions."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **shared)


def colour(index: int) -> str:
    """Returns the colour of the n-th line."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Returns its marker; past the palette's end, colour and marker go out of step."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def plain(axis: Axes, *, grid: Literal["x", "y", "both"] = "y") -> None:
    """Takes away what carries no data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color=PALE, linewidth=0.6)
    axis.set_axisbelow(True)


def dodge(index: int, num: int, *, step: float = 0.09, most: float = 0.6) -> float:
    """Returns how far the n-th of several lines is moved sideways, so that none hides another."""
    return (index - (num - 1) / 2) * min(step, most / max(num, 1))


def size_ticks(axis: Axes, sizes: Sequence[int]) -> None:
    """Labels an axis of numbers of training languages."""
    axis.set_xticks(list(sizes), [str(size) for size in sizes])
    axis.set_xlim(min(sizes) - 0.6, max(sizes) + 0.6)


def model_legend(figure: Figure, models: Sequence[str], *, line: bool = True) -> None:
    """Puts the models below the panels."""
    handles = [
        Line2D([], [], color=colour(i), marker=marker(i), linestyle="-" if line else "", label=name)
        for i, name in enumerate(models)
    ]
    legend(figure, handles, longest=max((len(name) for name in models), default=1))


def legend(figure: Figure, handles: Sequence[Any], *, longest: int, columns: int = 7) -> None:
    """Puts handles below the panels, in as many columns as the page is wide enough for."""
    fitting = max(1, min(columns, len(handles), int(WIDTH_IN * 14 / (longest + 6))))
    figure.legend(handles=list(handles), loc="outside lower center", ncol=fitting, frameon=False)


def shortened(name: str, length: int = 32) -> str:
    """Cuts a name that would push the panels off the page."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
