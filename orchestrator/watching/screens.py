"""The screens that cover the grid for a while: a question, a text, a log, and the help.

A question is about a change from the terminal: the same requests as `sweep rerun` and `sweep cancel` make.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Log, Static

from orchestrator.api.launching import CheckedLaunch, run_settings_of
from orchestrator.api.logs import LogTail
from orchestrator.api.overview import Watched
from orchestrator.api.run import cancel_cells, start
from orchestrator.api.state import SweepState
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import UserError, counted
from orchestrator.store.opening import following
from orchestrator.watching.drawing import MARKS, MEANINGS, badge

MAX_NAMED = 6
"""Cells that a question names."""


class Question(NamedTuple):
    """A change that is not made before somebody confirms it.

    Attributes:
        title: what would be done, with the number of cells.
        lines: which cells these are.
        do: makes the change, and returns a line on it.
    """

    title: str
    lines: tuple[str, ...]
    do: Callable[[], str]


def ask(watched: Watched, verb: Literal["rerun", "cancel"], ids: Sequence[str]) -> Question:
    """Check a change and return it as a question. Nothing is recorded.

    Args:
        watched: the sweep.
        verb: which change.
        ids: of the cells; those that are done stay as they are.

    Raises:
        UserError: there is nothing to change, or a rerun would be refused.
        InfrastructureError: the store or the scheduler does not answer.
    """
    with watched.lock, following(watched.view.ledger.objects.url):
        view = watched.view.fresh()
        if not view.sealed:
            raise UserError(f"{view.sweep.name} was never launched here")
        wanted = set(ids)
        cells = [c for c in view.sweep.cells if c.id in wanted and view.cells[c.id].state is not State.DONE]
        if not cells:
            raise UserError(f"nothing to {verb}: {counted(len(wanted), 'cell')}, all done")
        do = _rerun(view, cells) if verb == "rerun" else _cancel(view, cells)
        counts = Counter(view.cells[cell.id].state for cell in cells)
        states = ", ".join(f"{number} {state}" for state, number in counts.items())
        named = [cell.id for cell in cells[:MAX_NAMED]]
        more = [f"and {len(cells) - MAX_NAMED} more"] if len(cells) > MAX_NAMED else []
        title = f"{verb} {counted(len(cells), 'cell')} of {view.title}?"
        return Question(title, (states, *named, *more), do)


def _rerun(view: SweepState, cells: Sequence[Cell]) -> Callable[[], str]:
    view.check()
    settings, import_paths = run_settings_of(view, None)
    # The checks come before the question, so that nobody confirms what is then refused.
    checked = CheckedLaunch(
        verb="rerun", view=view, cells=cells, settings=settings, import_paths=import_paths
    )

    def do() -> str:
        with following(view.ledger.objects.url):
            run = start(checked)
        where = f"; its output: {run.log}" if run.log else ""
        return f"rerun of {counted(len(cells), 'cell')} recorded and started{where}"

    return do


def _cancel(view: SweepState, cells: Sequence[Cell]) -> Callable[[], str]:
    def do() -> str:
        with following(view.ledger.objects.url):
            found = cancel_cells(view.fresh(), cells)
        kept = f"; {counted(len(found.kept), 'cell')} go on in the current revision" if found.kept else ""
        return "; ".join([f"{counted(len(found.cells), 'cell')} cancelled{kept}", *found.lines])

    return do


KEYS = (
    ("arrows", "move; also h j k, Page Up, Page Down, Home, End, the mouse"),
    ("n  N", "next, previous cell that failed, was lost or is blocked"),
    ("[  ]", "previous, next cell where several share a position"),
    ("Enter", "the selected cell: curve and facts over the whole screen"),
    ("m", "next metric of the cell"),
    ("w", "why the cell is in its state: the evidence"),
    ("l", "log of the cell, which follows"),
    ("r  R", "rerun the cells here; R: all shown that failed, lost or blocked"),
    ("c  C", "cancel the cells here; C: all shown"),
    ("/", "filter: selectors as for --only, such as model=a state=failed"),
    ("f", "filter: one group of failures after the other, then as before"),
    ("F5", "look now"),
    ("?", "this help"),
    ("q", "quit; cells go on"),
)
"""The keys and what they do."""


class Page(ModalScreen[None]):
    """A text that fills the screen and can be scrolled.

    Args:
        title: its first line.
        text: the rest; it may be replaced later by `show`.
    """

    BINDINGS = [
        Binding("escape,q,enter", "dismiss", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
        Binding("pagedown,space", "scroll(10)", show=False),
    ]

    def __init__(self, title: str, text: Text | str) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        """Return a title, the text and a line on keys."""
        yield Static(Text(self._title, "bold"), classes="title")
        with VerticalScroll(id="scroll"):
            yield Static(self._text, id="text")
        yield Static(Text("Esc closes · ↑↓ scroll", "dim"), classes="foot")

    def show(self, text: Text | str) -> None:
        """Show another text."""
        self._text = text
        if self.is_mounted:
            self.query_one("#text", Static).update(text)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        self.query_one("#scroll").scroll_relative(y=lines, animate=False)


class LogPage(ModalScreen[None]):
    """A log that follows its end, until the person scrolls up.

    Args:
        title: its first line, without stage and attempt.
        log: what is known of the log already.
    """

    BINDINGS = [
        Binding("escape,q,l", "dismiss", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("pageup", "scroll(-20)", show=False),
        Binding("pagedown,space", "scroll(20)", show=False),
        Binding("home", "jump(0)", show=False),
        Binding("end", "jump(1)", show=False),
    ]

    def __init__(self, title: str, log: LogTail | None) -> None:
        super().__init__()
        self._title = title
        self._tail = log

    def compose(self) -> ComposeResult:
        """Return a title, the log and a line on keys."""
        yield Static(id="title", classes="title")
        yield Log(id="log", max_lines=5000)
        yield Static(Text("Esc closes · ↑↓ Page Up Page Down · End follows", "dim"), classes="foot")

    def on_mount(self) -> None:
        """Show what is known."""
        self._fill([] if self._tail is None else self._tail.lines)
        self.action_jump(1)

    def show(self, log: LogTail) -> None:
        """Show the log as it is now; what was added is appended."""
        before, self._tail = self._tail, log
        if not self.is_mounted or before == log:
            return
        same = before is not None and (before.stage, before.attempt) == (log.stage, log.attempt)
        added = _added(before.lines, log.lines) if same and before is not None else None
        if added is None:
            self._fill(log.lines)
        else:
            self.query_one(Log).write_lines(added)
            self._label()

    def _fill(self, lines: Sequence[str]) -> None:
        widget = self.query_one(Log)
        widget.clear()
        widget.write_lines(lines)
        self._label()

    def _label(self) -> None:
        log = self._tail
        where = "reading ..." if log is None else f"{log.stage} attempt {log.attempt}"
        if log is not None and not log.attempt:
            where = f"{log.stage} was never started"
        more = "" if log is None or log.is_whole else " (its end)"
        ended = " ended" if log is not None and log.is_over and log.attempt else ""
        title = Text(f"{self._title}  {where}{more}{ended}", "bold")
        self.query_one("#title", Static).update(title)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        log = self.query_one(Log)
        log.scroll_relative(y=lines, animate=False)
        log.auto_scroll = log.scroll_offset.y + lines >= log.max_scroll_y

    def action_jump(self, end: int) -> None:
        """Go to the first line, or to the last one and follow."""
        log = self.query_one(Log)
        log.auto_scroll = bool(end)
        if end:
            log.scroll_end(animate=False)  # after lines that are yet to be laid out
        else:
            log.scroll_home(animate=False)


def _added(before: Sequence[str], now: Sequence[str]) -> list[str] | None:
    """Return the lines that follow those of before; None if it cannot be seen which these are."""
    if not before:
        return list(now)
    # The last line of before may have been incomplete, so that it is another one now.
    for number in range(len(now) - 1, -1, -1):
        if (
            now[number] == before[-1]
            and list(now[max(0, number - 3) : number]) == list(before[-4:-1])[-number:]
        ):
            return list(now[number + 1 :])
    return None


class Confirm(ModalScreen[bool]):
    """A question that only ``y`` answers with yes.

    Args:
        question: what would be done.
    """

    BINDINGS = [
        Binding("y", "answer(True)", show=False),
        Binding("n,escape,q", "answer(False)", show=False),
    ]

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question

    def compose(self) -> ComposeResult:
        """Return the question in a box."""
        with Vertical(id="box"):
            yield Static(Text(self.question.title, "bold"), id="question")
            yield Static(Text("\n".join(self.question.lines)), id="cells")
            yield Static(Text("y yes   n no", "bold reverse"), id="answers")

    def action_answer(self, answer: bool) -> None:
        """Close with the answer."""
        self.dismiss(answer)


def help_text() -> Text:
    """Return the keys, and the marks of the states."""
    text = Text()
    for key, does in KEYS:
        text.append(f"{key:<8}", "bold")
        text.append(f"{does}\n")
    text.append("\nMarks\n", "bold")
    for state, mark in MARKS.items():
        text.append(f" {mark} ", badge(state))
        text.append(f" {MEANINGS[state]}\n")
    text.append(
        "\nWhere cells share a position, the mark that needs someone most is shown, with their number.\n"
    )
    return text
