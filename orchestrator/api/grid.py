"""The grid of a sweep: which axes are its rows and columns, and what is at each position.

Which axes are rows and columns follows from the sweep alone, by `arrangement`::

    axes model (5), task (2), mixture (23)       rows: mixture       columns: model x task
    axes rate (3), width (4), seed (5)           rows: width         columns: rate      folded: seed
    axes rate (2500), name (2)                   rows: rate          columns: name
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from orchestrator.api.state import SweepState
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import UserError, nearest, one_line, printable
from orchestrator.results import is_seed

MAX_COLUMNS = 64
"""Most columns of a grid, where the axes leave a choice: it is easier to scroll down than aside."""

MAX_REASON = 160
"""Characters of a reason. `sweep why` shows the whole."""

SHOWN = (
    State.FAILED,
    State.LOST,
    State.BLOCKED,
    State.UNKNOWN,
    State.RUNNING,
    State.QUEUED,
    State.RELEASED,
    State.PENDING,
    State.CANCELLED,
    State.DONE,
    State.STOPPED,
)
"""Of the states of several cells at one position, the first of these is shown: what needs a person first."""


class Arrangement(NamedTuple):
    """Which axes of a sweep are the rows and the columns of its grid.

    Attributes:
        rows, columns: names of axes, in the order of the sweep.
        folded: axes along which cells share a position.
        labels: axis to its labels, in the order of the sweep.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    folded: tuple[str, ...]
    labels: Mapping[str, Sequence[str]]


def arrangement(cells: Iterable[Cell], rows: Sequence[str] = ()) -> Arrangement:
    """Choose the rows and columns of a grid.

    Axes with one label are left out, and seeds are folded. The last of the other axes are the rows, and the
    others are the columns. With more than `MAX_COLUMNS` columns, the longest axis is the rows instead, and
    further axes join it until the columns are few.

    Args:
        cells: of the whole sweep.
        rows: axes to use as rows instead, if the columns should be the others.

    Raises:
        UserError: one of `rows` is no axis of the sweep.
    """
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for axis, label in cell.axes.items():
            found.setdefault(axis, {})[label] = None
    labels = {axis: tuple(each) for axis, each in found.items()}
    for axis in rows:
        if axis not in labels:
            raise UserError(f"{axis!r} is no axis of the sweep", allowed=nearest(axis, labels))
    varying = [axis for axis in labels if len(labels[axis]) > 1 or axis in rows] or [*labels][:1]
    folded = [axis for axis in varying if is_seed(axis) and axis not in rows]
    rest = [axis for axis in varying if axis not in folded]
    if not rest:
        rest, folded = folded, []
    chosen, others = [*rows] or rest[-1:], [axis for axis in rest if axis not in (rows or rest[-1:])]

    def longest(axes: Sequence[str]) -> str:
        return max(axes, key=lambda axis: len(labels[axis]))

    if not rows and _product(labels, others) > MAX_COLUMNS:
        chosen = [longest(rest)]
        others = [axis for axis in rest if axis not in chosen]
        while _product(labels, others) > MAX_COLUMNS:
            chosen.append(longest(others))
            others.remove(chosen[-1])
    return Arrangement(tuple(axis for axis in labels if axis in chosen), tuple(others), tuple(folded), labels)


def _product(labels: Mapping[str, Sequence[str]], axes: Iterable[str]) -> int:
    number = 1
    for axis in axes:
        number *= len(labels[axis])
    return number


class GridCell(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One cell.

    Attributes:
        id: of the cell.
        row, column: indexes of its position in the grid.
        axes: axis to label, printable.
        state: of the cell.
        stage: name of the stage that runs now, or else that failed; "" for neither.
        progress: share of that stage's steps that are done, from 0 to 1; None where it is not known.
        step, num_steps: of that stage; None where they are not known.
        cause: of the failure, "" without one.
        reason: for the state, in a few words; "" for a cell that is done.
    """

    id: str
    row: int
    column: int
    axes: Mapping[str, str]
    state: State
    stage: str = ""
    progress: float | None = None
    step: int | None = None
    num_steps: int | None = None
    cause: str = ""
    reason: str = ""


class Spot(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A position of the grid that has cells.

    Attributes:
        row, column: its indexes.
        state: that is shown, by the order of `SHOWN`.
        cells: indexes in `Overview.cells`; several where axes are folded.
        counts: state to number of these cells.
    """

    row: int
    column: int
    state: State
    cells: tuple[int, ...]
    counts: Mapping[str, int]


class CellGrid(msgspec.Struct, frozen=True, kw_only=True):
    """The positions of the chosen cells.

    Attributes:
        row_axes, column_axes: names of axes.
        folded_axes: axes along which cells share a position.
        rows, columns: the labels of each row and column, one for each axis, printable.
        spots: the positions that have cells, row by row.
    """

    row_axes: tuple[str, ...]
    column_axes: tuple[str, ...]
    folded_axes: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[tuple[str, ...], ...]
    spots: tuple[Spot, ...]


def placed(
    view: SweepState, cells: Sequence[Cell], arranged: Arrangement
) -> tuple[CellGrid, tuple[GridCell, ...]]:
    """Return the grid of some cells, and the cells with their positions.

    Args:
        view: the sweep state.
        cells: in the order of the sweep.
        arranged: rows and columns of the whole sweep.
    """
    rows, row_of = _places(cells, arranged.rows, arranged.labels)
    columns, column_of = _places(cells, arranged.columns, arranged.labels)
    found = [_grid_cell(view, cell, row_of[n], column_of[n]) for n, cell in enumerate(cells)]
    at: dict[tuple[int, int], list[int]] = {}
    for number, place in enumerate(zip(row_of, column_of, strict=True)):
        at.setdefault(place, []).append(number)
    spots = tuple(
        _spot(place, numbers, [found[number].state for number in numbers])
        for place, numbers in sorted(at.items())
    )
    grid = CellGrid(
        row_axes=arranged.rows,
        column_axes=arranged.columns,
        folded_axes=arranged.folded,
        rows=_printable(rows),
        columns=_printable(columns),
        spots=spots,
    )
    return grid, tuple(found)


def _places(
    cells: Sequence[Cell], axes: Sequence[str], labels: Mapping[str, Sequence[str]]
) -> tuple[tuple[tuple[str, ...], ...], list[int]]:
    """Return the combinations of labels that cells have along some axes, in order, and that of each cell."""
    numbers = {axis: {label: number for number, label in enumerate(labels[axis])} for axis in axes}
    # Exclusions may leave a cell without an axis, which then comes first.
    keys = [tuple(cell.axes.get(axis, "") for axis in axes) for cell in cells]
    ordered = sorted(
        set(keys), key=lambda key: [numbers[a].get(label, -1) for a, label in zip(axes, key, strict=True)]
    )
    index = {key: number for number, key in enumerate(ordered)}
    return tuple(ordered), [index[key] for key in keys]


def _printable(labels: Iterable[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Return labels of which none breaks a line, moves the cursor or reverses the text around it."""
    return tuple(tuple(printable(label) or "–" for label in each) for each in labels)


_RANK = {state: number for number, state in enumerate(SHOWN)}


def _spot(place: tuple[int, int], cells: Sequence[int], states: Sequence[State]) -> Spot:
    row, column = place
    # Most positions have one cell.
    counts = {str(states[0]): 1} if len(states) == 1 else dict(Counter(map(str, states)))
    shown = min(states, key=_RANK.__getitem__)
    return Spot(row=row, column=column, state=shown, cells=tuple(cells), counts=counts)


def _grid_cell(view: SweepState, cell: Cell, row: int, column: int) -> GridCell:
    status = view.cells[cell.id]
    stage, step, num_steps = "", None, None
    if status.state in (State.RUNNING, State.FAILED):
        for digest, each in view.stages_of(cell).items():
            if each.state is status.state:
                stage = view.instances[digest].name
                last = view.reader.evidence(digest).attempts[-1:]
                beat = last[0].heartbeat if last else None
                if beat is not None and each.state is State.RUNNING:
                    step, num_steps = beat.step, beat.num_steps
                break
    is_plain = all(map(str.isprintable, cell.axes.values()))
    return GridCell(
        id=cell.id,
        row=row,
        column=column,
        axes=cell.axes if is_plain else {axis: printable(label) for axis, label in cell.axes.items()},
        state=status.state,
        stage=stage,
        progress=min(1.0, step / num_steps) if step is not None and num_steps else None,
        step=step,
        num_steps=num_steps,
        cause=str(status.cause or ""),
        reason="" if status.state is State.DONE else one_line(status.reason, MAX_REASON),
    )
