"""The selected cell beside the grid or over the whole screen: its facts, curve and the end of its log."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from orchestrator.api.grid import GridCell
from orchestrator.api.overview import Overview
from orchestrator.errors import escaped
from orchestrator.watching.drawing import COLOURS, curve_lines, standing, troubles
from orchestrator.watching.reading import Detail


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
