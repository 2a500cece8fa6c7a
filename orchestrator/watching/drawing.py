"""Lines of text for the terminal: marks of states, totals, durations and curves. Pure.

Each state has a mark and a colour, so that nothing is lost where there is no colour. Colours are the sixteen
of the terminal, which the user has chosen to be readable; the background is never set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.text import Text

from orchestrator.api.grid import GridCell, Spot
from orchestrator.api.overview import Overview
from orchestrator.api.pace import duration
from orchestrator.core.state import State
from orchestrator.errors import counted, escaped

MARKS: Mapping[State, str] = {
    State.DONE: "#",
    State.RUNNING: "R",
    State.QUEUED: "Q",
    State.FAILED: "F",
    State.LOST: "L",
    State.BLOCKED: "B",
    State.RELEASED: "S",
    State.CANCELLED: "x",
    State.PENDING: ".",
    State.STOPPED: "-",
    State.UNKNOWN: "?",
}
"""State to its mark. All are ASCII, which every terminal shows in one column. ``S``: stopped for a while."""

COLOURS: Mapping[State, str] = {
    State.DONE: "green",
    State.RUNNING: "bright_blue bold",
    State.QUEUED: "cyan",
    State.FAILED: "red bold",
    State.LOST: "magenta bold",
    State.BLOCKED: "yellow",
    State.RELEASED: "cyan",
    State.CANCELLED: "dim",
    State.PENDING: "dim",
    State.STOPPED: "green dim",
    State.UNKNOWN: "magenta",
}
"""State to a style of rich."""

MEANINGS: Mapping[State, str] = {
    State.DONE: "done",
    State.RUNNING: "running; a digit is the progress of its stage in tenths",
    State.QUEUED: "queued by the scheduler",
    State.FAILED: "failed, retries spent",
    State.LOST: "lost its worker",
    State.BLOCKED: "blocked for good",
    State.RELEASED: "stopped, goes on later",
    State.CANCELLED: "cancelled",
    State.PENDING: "not started",
    State.STOPPED: "stopped by a decision: others were better",
    State.UNKNOWN: "unknown: records cannot be read",
}


def mark(spot: Spot, cells: Sequence[GridCell], width: int) -> str:
    """Return the mark of a position; where cells share it and there is room, with the number in this state.

    Args:
        spot: the position.
        cells: of the overview.
        width: columns of the terminal for the mark.
    """
    progress = cells[spot.cells[0]].progress
    if len(spot.cells) > 1:
        number = str(spot.counts[spot.state])
        return MARKS[spot.state] + (number if len(number) < width - 1 else "")
    if spot.state is State.RUNNING and progress is not None:
        return str(min(9, int(10 * progress)))
    return MARKS[spot.state]


def amount(number: float) -> str:
    """Return a number with about three digits, such as ``12.3k``."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            return f"{number / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    return f"{number:.4g}"


def badge(state: State) -> str:
    """Return the style in which the mark of a state stands before its name."""
    # A dim one that is reversed would be the brightest of all.
    return COLOURS[state] if COLOURS[state] == "dim" else f"{COLOURS[state]} reverse"


def totals(found: Overview, width: int) -> Text:
    """Return the number of cells in each state, each with its mark, and with its name if there is room."""
    states = {State(name): number for name, number in found.counts.items()}
    room = width >= sum(len(f"{state}{number}") + 6 for state, number in states.items())
    text = Text()
    for state, number in states.items():
        text.append(f" {MARKS[state]} " if room else MARKS[state], badge(state))
        text.append(f" {number} {state} " if room else f"{number} ", COLOURS[state])
    return text if states else Text("no cells")


def pace(found: Overview) -> Text:
    """Return time left, GPUs, tokens a second, and the next decision."""
    gpus, parts = found.gpus, []
    if found.eta_s is None:
        parts.append("ETA unknown" if found.num_running else "nothing runs")
    elif found.eta_s > 0:
        parts.append(f"ETA {duration(found.eta_s)}")
    else:
        parts.append("nothing is left to run")
    if gpus.asked:
        parts.append(f"{gpus.in_use:g} of {gpus.asked:g} GPUs in use")
    elif gpus.num_workers:
        parts.append(counted(gpus.num_workers, "worker"))
    if found.tokens_per_second is not None:
        parts.append(f"{amount(found.tokens_per_second)} tokens/s")
    if gpus.hours >= 0.05:
        parts.append(f"{amount(gpus.hours)} GPU-hours held")
    if found.decision:
        parts.append(found.decision)
    return Text(" · ".join(map(escaped, parts)))


def troubles(found: Overview, height: int) -> Text:
    """Return the groups of failures, a line each; the last line counts those that do not fit."""
    text = Text()
    shown = found.troubles if len(found.troubles) <= height else found.troubles[: height - 1]
    for each in shown:
        text.append(f"{len(each.cells):>4} ", "red bold")
        text.append(f"{each.cause} ", "red")
        held = f" ({len(each.held)} held back)" if each.held else ""
        text.append(f"{each.stage}: {each.text}{held}\n")
    if left := len(found.troubles) - len(shown):
        text.append(f"     and {left} groups more", "dim")
    return text if found.troubles else Text("nothing failed", "dim")


def labels_of(cell: GridCell, axes: Sequence[str], *, named: bool) -> str:
    """Return the labels of a cell along some axes, with the names of the axes if `named`."""
    return " ".join(
        f"{axis}={cell.axes[axis]}" if named else cell.axes[axis] for axis in axes if cell.axes.get(axis)
    )


def standing(cell: GridCell) -> str:
    """Return where a cell stands, such as ``running: train, step 40 of 100``."""
    where = cell.stage
    if cell.step is not None:
        where += f", step {cell.step}" + (f" of {cell.num_steps}" if cell.num_steps else "")
    return f"{cell.state}: {where}" if where else str(cell.state)


DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a braille character from U+2800 on, by row and column of its dots (Unicode 1.1 and later)."""


def curve_lines(points: Sequence[tuple[int, float]], width: int, height: int) -> list[str]:
    """Return a curve as lines of braille characters, with the highest and lowest value at its left.

    Args:
        points: (step, value), by step.
        width: of the lines, in columns.
        height: number of lines.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if len(finite) < 2 or width < 12 or height < 1:
        return []
    low, high = min(value for _, value in finite), max(value for _, value in finite)
    names = [f"{high:.4g}", f"{low:.4g}"] if height > 1 else [f"{finite[-1][1]:.4g}"]
    margin = max(map(len, names)) + 1
    columns, rows = (width - margin) * 2, height * 4
    # Halves, because the difference of two values may be infinite.
    span = high / 2 - low / 2
    bits = [[0] * (width - margin) for _ in range(height)]
    first, last = finite[0][0], finite[-1][0]
    before: tuple[int, int] | None = None
    for step, value in finite:
        x = round((step - first) / max(1, last - first) * (columns - 1))
        y = round((high / 2 - value / 2) / span * (rows - 1)) if span > 0 else rows // 2
        for dot_x, dot_y in _line(before or (x, y), (x, y)):
            bits[dot_y // 4][dot_x // 2] |= DOTS[dot_y % 4][dot_x % 2]
        before = x, y
    lines = []
    for number, row in enumerate(bits):
        name = names[0] if number == 0 else names[-1] if number == height - 1 else ""
        lines.append(f"{name:>{margin - 1}} " + "".join(chr(0x2800 + each) for each in row))
    return lines


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the dots of a straight line."""
    number = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (
            round(start[0] + (end[0] - start[0]) * part / number),
            round(start[1] + (end[1] - start[1]) * part / number),
        )
        for part in range(number + 1)
    ]
