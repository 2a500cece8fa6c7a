"""The two widgets of the main screen: the grid, and the selected cell beside it.

The grid paints the lines that can be seen, so that its size costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Static

from orchestrator.api.grid import CellGrid, GridCell, Spot
from orchestrator.api.overview import Overview
from orchestrator.core.state import State
from orchestrator.errors import escaped
from orchestrator.watching.drawing import COLOURS, curve_lines, mark, standing, troubles
from orchestrator.watching.reading import Detail

MAX_LABEL, MAX_WIDTH = 28, 14
"""Most columns of the terminal for the labels of a row, and for a position."""

STYLES = {state: Style.parse(style) for state, style in COLOURS.items()}
DIM, BOLD, CHOSEN = Style(dim=True), Style(bold=True), Style(reverse=True, bold=True)
NEEDS_SOMEONE = frozenset({State.FAILED, State.LOST, State.BLOCKED, State.UNKNOWN})


class Position(NamedTuple):
    """A position of the grid."""

    row: int
    column: int


def fit(text: str, width: int) -> str:
    """Return a text padded or cut to a width; names that begin alike differ in their ends, which stay."""
    if not text.isascii():
        return set_cell_size(text, width)
    if len(text) <= width:
        return text.ljust(width)
    tail = width // 2
    return text[: max(0, width - tail - 1)] + "~" + (text[-tail:] if tail else "")


class Board(ScrollView, can_focus=True):
    """The grid of a sweep, with a cursor.

    Attributes:
        place: of the cursor.
    """

    BINDINGS = [
        Binding("up,k", "move(-1,0)", show=False),
        Binding("down,j", "move(1,0)", show=False),
        Binding("left,h", "move(0,-1)", show=False),
        Binding("right", "move(0,1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "go(0)", show=False),
        Binding("end", "go(1)", show=False),
        Binding("n", "seek(1)", show=False),
        Binding("N", "seek(-1)", show=False),
    ]

    class Moved(Message):
        """The cursor is at another position, or there is another cell at it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.place = Position(0, 0)
        self._found: Overview | None = None
        self._spots: dict[Position, Spot] = {}
        self._label_width, self._width = 0, 2

    # What is shown

    @property
    def grid(self) -> CellGrid | None:
        """The grid that is shown."""
        return self._found.grid if self._found else None

    @property
    def spot(self) -> Spot | None:
        """What is at the cursor."""
        return self._spots.get(self.place)

    @property
    def header_height(self) -> int:
        """Lines of column labels; at least one, for the names of the axes."""
        return max(1, len(self.grid.column_axes)) if self.grid else 0

    def show(self, found: Overview) -> None:
        """Show another look. The cursor stays at the labels where it was."""
        before, grid = self._found, found.grid
        if before is not None and before.grid.rows and grid.rows:
            self.place = Position(
                _index(before.grid.rows, self.place.row, grid.rows),
                _index(before.grid.columns, self.place.column, grid.columns),
            )
        self._found = found
        self._spots = {Position(spot.row, spot.column): spot for spot in grid.spots}
        if self._spots and (before is None or self.place not in self._spots):
            self.place = min(
                self._spots, key=lambda p: abs(p.row - self.place.row) + abs(p.column - self.place.column)
            )
        self._measure()
        self.refresh()
        self.post_message(self.Moved())

    def fitting(self, room: int) -> int:
        """Return how many columns of the terminal the grid uses, with one for a scrollbar.

        Args:
            room: the columns that there are. A grid that needs more is scrolled.
        """
        grid = self.grid
        if grid is None:
            return room
        label, number = self._row_label_width(), max(1, len(grid.columns))
        least = 3 if grid.folded_axes else 2
        each = max(least, min(self._wanted_width(), (room - label - 1) // number))
        return label + each * number + 1

    def _row_label_width(self) -> int:
        assert self.grid is not None
        names = [" ".join(labels) for labels in self.grid.rows] + [" ".join(self.grid.row_axes)]
        return min(MAX_LABEL, max(map(cell_len, names))) + 1

    def _wanted_width(self) -> int:
        """Return the width of a position at which the labels of columns are whole, within limits."""
        assert self.grid is not None
        wanted = 3 if self.grid.folded_axes else 2
        for level in range(len(self.grid.column_axes)):
            for start, end in _spans(self.grid.columns, level):
                length = cell_len(self.grid.columns[start][level]) + 1
                wanted = max(wanted, -(-length // (end - start)))
        return min(wanted, MAX_WIDTH)

    def _measure(self) -> None:
        """Choose widths for the space that there is."""
        grid = self.grid
        if grid is None:
            return
        least = 3 if grid.folded_axes else 2
        number = max(1, len(grid.columns))
        room = max(6, self.size.width // 2, self.size.width - least * number - 1)
        self._label_width = min(self._row_label_width(), room)
        room = (self.size.width - self._label_width - 1) // number
        self._width = max(least, min(self._wanted_width(), room))
        self.virtual_size = Size(
            self._label_width + self._width * number, self.header_height + len(grid.rows)
        )

    def on_resize(self) -> None:
        """Choose widths for the new size."""
        self._measure()
        self._reveal()

    def render_line(self, y: int) -> Strip:
        """Return a line: the labels of columns, which stay, or a row that was scrolled to."""
        grid, width = self.grid, self.size.width
        if grid is None:
            return Strip([Segment(fit("reading the store ..." if y == 0 else "", width), DIM)], width)
        first = self.scroll_offset.x // self._width
        shown = max(1, (width - self._label_width) // self._width)
        columns = range(first, min(len(grid.columns), first + shown))
        if y < self.header_height:
            segments = self._header(grid, y, columns)
        else:
            row = y - self.header_height + self.scroll_offset.y
            segments = self._row(grid, row, columns) if row < len(grid.rows) else []
        return Strip(segments).adjust_cell_length(width)

    def _header(self, grid: CellGrid, level: int, columns: range) -> list[Segment]:
        corner = " ".join(grid.row_axes) if level == self.header_height - 1 else ""
        segments = [Segment(fit(corner, self._label_width - 1) + " ", DIM)]
        if level >= len(grid.column_axes):
            return segments
        for start, end in _spans(grid.columns, level):
            start, end = max(start, columns.start), min(end, columns.stop)
            if start < end:
                name = fit(grid.columns[start][level], (end - start) * self._width - 1)
                style = BOLD if start <= self.place.column < end else DIM
                segments += [Segment(name, style), Segment(" ")]
        return segments

    def _row(self, grid: CellGrid, row: int, columns: range) -> list[Segment]:
        assert self._found is not None
        chosen = row == self.place.row
        label = fit(" ".join(grid.rows[row]), self._label_width - 1)
        segments = [Segment(label, BOLD if chosen else None), Segment(" ")]
        for column in columns:
            spot = self._spots.get(Position(row, column))
            text = mark(spot, self._found.cells, self._width) if spot else " "
            style = STYLES[spot.state] if spot else Style()
            if chosen and column == self.place.column:
                # Brackets of reversed video: the cursor can be seen without any colour.
                segments.append(Segment(fit(text, self._width - 1), style + CHOSEN))
                segments.append(Segment(" "))
            else:
                segments.append(Segment(fit(text, self._width), style))
        return segments

    # Moving

    def move_to(self, place: Position) -> None:
        """Move the cursor, and scroll so that it can be seen."""
        grid = self.grid
        if grid is None or not grid.rows:
            return
        self.place = Position(
            min(max(place.row, 0), len(grid.rows) - 1), min(max(place.column, 0), len(grid.columns) - 1)
        )
        self._reveal()
        self.refresh()
        self.post_message(self.Moved())

    def _reveal(self) -> None:
        rows = max(1, self.size.height - self.header_height)
        shown = max(1, (self.size.width - self._label_width) // self._width)
        top, left = self.scroll_offset.y, self.scroll_offset.x // self._width
        top = min(max(top, self.place.row - rows + 1), self.place.row)
        left = min(max(left, self.place.column - shown + 1), self.place.column)
        self.scroll_to(left * self._width, top, animate=False, force=True)

    def action_move(self, rows: int, columns: int) -> None:
        """Move by rows and columns."""
        self.move_to(Position(self.place.row + rows, self.place.column + columns))

    def action_page(self, direction: int) -> None:
        """Move by as many rows as can be seen."""
        self.action_move(direction * max(1, self.size.height - self.header_height - 1), 0)

    def action_go(self, end: int) -> None:
        """Move to the first or the last row."""
        self.move_to(Position(len(self.grid.rows) - 1 if end and self.grid else 0, self.place.column))

    def action_seek(self, direction: int) -> None:
        """Move to the next or previous cell that failed, was lost, or is blocked or unknown."""
        places = sorted(place for place, spot in self._spots.items() if spot.state in NEEDS_SOMEONE)
        after = [place for place in places if (place > self.place if direction > 0 else place < self.place)]
        if places:
            # At the end it goes on from the other one.
            self.move_to((after or places)[0 if direction > 0 else -1])

    def on_click(self, event: events.Click) -> None:
        """Move to what was clicked."""
        row = event.y - self.header_height + self.scroll_offset.y
        column = (event.x - self._label_width) // self._width + self.scroll_offset.x // self._width
        if event.y >= self.header_height and event.x >= self._label_width:
            self.move_to(Position(row, column))


def _index(before: Sequence[tuple[str, ...]], number: int, now: Sequence[tuple[str, ...]]) -> int:
    """Return where the labels of a row or column are now; the nearest index if they are gone."""
    labels = before[number] if number < len(before) else ()
    return now.index(labels) if labels in now else min(number, len(now) - 1)


def _spans(columns: Sequence[tuple[str, ...]], level: int) -> list[tuple[int, int]]:
    """Return the ranges of neighbouring columns that agree on their labels down to a level."""
    found: list[tuple[int, int]] = []
    for number, labels in enumerate(columns):
        if found and columns[found[-1][0]][: level + 1] == labels[: level + 1]:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found


class Side(Vertical):
    """Failures by cause, and below them the selected cell."""

    def compose(self) -> ComposeResult:
        """Return a widget for each part."""
        yield Static(id="troubles")
        yield Static(id="facts")
        yield Static(id="curve")
        yield Static(id="log")

    def show(self, found: Overview, cell: GridCell | None, detail: Detail | None) -> None:
        """Show a look and a cell.

        Args:
            found: the look.
            cell: the selected one, if there is one.
            detail: what was read of it; None if that is yet to come.
        """
        width, height = self.size.width - 1, self.size.height
        parts = {
            "troubles": troubles(found, max(1, height // 4)),
            "facts": _facts(cell),
            "curve": curve_text(detail, width, max(2, height // 4)) if detail else Text(),
        }
        # An empty line is between two parts.
        used = sum(len(text.plain.rstrip("\n").split("\n")) for text in parts.values() if text.plain) + 2
        parts["log"] = (
            _log_text(detail, height - used) if detail else Text("reading ..." if cell else "", "dim")
        )
        for name, text in parts.items():
            self.query_one(f"#{name}", Static).update(text)


def _facts(cell: GridCell | None) -> Text:
    if cell is None:
        return Text("no cell here", "dim")
    text = Text(f"{cell.id}\n", "bold")
    text.append(standing(cell), COLOURS[cell.state])
    if cell.reason:
        text.append(f"\n{cell.reason}", "not bold")
    return text


def curve_text(detail: Detail, width: int, height: int) -> Text:
    """Return the curve of a cell under its last value; nothing without metrics.

    Args:
        detail: of the cell.
        width: of the lines, in columns.
        height: lines of the curve.
    """
    found, text = detail.curve, Text()
    if not found.points:
        return text
    step, value = found.points[-1]
    more = f"  m: {len(detail.metrics)} metrics" if len(detail.metrics) > 1 else ""
    text.append(f"{escaped(found.metric)} {value:.4g} at step {step} of {found.stage}{more}", "bold")
    for line in curve_lines(found.points, width, height):
        text.append(f"\n{line}", "cyan")
    return text


def cell_text(cell: GridCell, detail: Detail | None, width: int, height: int) -> Text:
    """Return the facts of a cell and its curve for a whole screen.

    Args:
        cell: the cell.
        detail: what was read of it; None if that is yet to come.
        width: of the screen, in columns.
        height: of the screen, in lines.
    """
    text = Text()
    for axis, label in cell.axes.items():
        text.append(f"{axis} ", "dim")
        text.append(f"{label or '–'}\n")
    text.append(f"{standing(cell)}\n", COLOURS[cell.state])
    text.append(f"{cell.reason}\n\n" if cell.reason else "\n")
    if detail is not None:
        text.append(curve_text(detail, width - 2, max(4, height - len(cell.axes) - 8)))
    return text


def _log_text(detail: Detail, height: int) -> Text:
    """Return the last lines of a log."""
    log = detail.log
    where = f"attempt {log.attempt}" if log.attempt else "never started"
    text = Text(f"log of {log.stage}, {where}", "bold")
    if log.attempt and not log.lines:
        text.append("\nempty", "not bold dim")
    for line in log.lines[-max(1, height - 1) :]:
        text.append(f"\n{line}", "not bold")
    return text
