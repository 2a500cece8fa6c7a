"""The application of `sweep watch`: grid, totals, failures and the selected cell on one screen."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.widgets import Input, Static

from orchestrator.api.grid import GridCell
from orchestrator.api.overview import Overview, Watched
from orchestrator.api.pace import duration
from orchestrator.core.state import State
from orchestrator.errors import counted
from orchestrator.watching.board import Board, Side, cell_text
from orchestrator.watching.drawing import COLOURS, labels_of, pace, standing, totals
from orchestrator.watching.reading import (
    Broken,
    Detail,
    FailureFilters,
    JobResult,
    Looked,
    News,
    Reader,
    ReaderNews,
    Refused,
    Selection,
    Silent,
    evidence,
)
from orchestrator.watching.screens import Confirm, LogPage, Page, Question, ask, help_text

MIN_SIDE, MAX_BOARD_SHARE = 26, 0.62
"""Least columns for the cell beside the grid, and the most of the screen that the grid may take from it."""

NAMED = 60
"""Columns from which on labels stand with the names of their axes."""

SILENT_S, MESSAGE_S = 15.0, 8.0
"""Age at which what is shown counts as old without an error, and how long a message is shown, in seconds."""

KEYS = "↑↓←→ move  w why  l log  r rerun  c cancel  / filter  ? help  q quit"
FEW_KEYS = "? help  q quit"


class WatchApp(App[None]):
    """What `sweep watch` shows.

    Args:
        watched: the sweep.
        only: selectors of the cells.
        interval_s: seconds between two looks, at least.
        clock: returns the Unix time.
    """

    CSS_PATH = "style.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS = [
        Binding("q,ctrl+c", "quit", show=False),
        Binding("question_mark", "help", show=False),
        Binding("w", "why", show=False),
        Binding("l", "log", show=False),
        Binding("enter", "cell", show=False),
        Binding("m", "metric", show=False),
        Binding("left_square_bracket", "turn(-1)", show=False),
        Binding("right_square_bracket", "turn(1)", show=False),
        Binding("r", "change('rerun', False)", show=False),
        Binding("R", "change('rerun', True)", show=False),
        Binding("c", "change('cancel', False)", show=False),
        Binding("C", "change('cancel', True)", show=False),
        Binding("slash", "filter", show=False),
        Binding("escape", "leave_filter", show=False),
        Binding("f", "failures", show=False),
        Binding("f5", "look", show=False),
    ]

    def __init__(
        self,
        watched: Watched,
        only: Sequence[str] = (),
        interval_s: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        # The terminal's own colours: they are readable on light and dark ones, and need no true colour.
        super().__init__(ansi_color=True)
        self.watched = watched
        self.reader = Reader(watched, only, interval_s, self._post)
        self.found: Overview | None = None
        self.detail: Detail | None = None
        self.broken: Exception | None = None
        self._clock = clock
        self._interval_s = interval_s
        self._wanted = Selection()
        self._problem = ""
        self._message = ("", 0.0)
        self._failures = FailureFilters()
        self._page: tuple[str, Page] | None = None

    def compose(self) -> ComposeResult:
        """Return the widgets: a handful, whatever the number of cells."""
        yield Static(id="head")
        yield Static(id="totals")
        yield Static(id="pace")
        with Horizontal(id="body"):
            yield Board(id="board")
            yield Side(id="side")
        yield Static(id="place")
        yield Input(id="filter", placeholder="model=a state=failed; empty: all cells", compact=True)
        yield Static(id="foot")

    def on_mount(self) -> None:
        """Start reading."""
        self.query_one(Board).focus()
        self._arrange()
        self._draw_lines()
        self.reader.start()
        self.set_interval(1.0, self._draw_lines)

    def on_unmount(self) -> None:
        """Stop reading."""
        self.reader.stop()

    # News

    def _post(self, news: News) -> None:
        """Hand news over from the reader's thread."""
        self.post_message(ReaderNews(news))

    def on_reader_news(self, message: ReaderNews) -> None:
        """Show news of the reader."""
        news = message.news
        if not self.query(Board):  # the program is ending
            return
        if isinstance(news, Looked):
            self.found, self._problem = news.found, ""
            self.query_one(Board).show(news.found)
            self._arrange()
        elif isinstance(news, Detail):
            self.detail = news
            self._show_cell()
        elif isinstance(news, Silent):
            self._problem = news.reason
        elif isinstance(news, Refused):
            self.notice(news.reason.replace("\n ", ";"))
        elif isinstance(news, JobResult):
            news.take(news.result)
        elif isinstance(news, Broken):
            self.broken = news.error
            self.exit()
        self._draw_lines()

    def notice(self, text: str) -> None:
        """Show a message in the last line for a while."""
        self._message = (text, self._clock() + MESSAGE_S)
        self._draw_lines()

    # Drawing

    def on_resize(self, event: events.Resize) -> None:
        """Arrange the widgets for the new size."""
        self._arrange()
        self._show_cell()

    def _arrange(self) -> None:
        """Give the grid the width that it needs, and the rest to the cell, or hide that if there is none."""
        board, width = self.query_one(Board), self.size.width
        share = int(MAX_BOARD_SHARE * width)
        chosen = board.fitting(share)
        if chosen > width:  # it is scrolled in any case
            chosen = share
        has_side = width - chosen >= MIN_SIDE and self.size.height >= 10
        board.styles.width = chosen if has_side else width
        self.query_one(Side).display = has_side
        self.query_one("#pace").display = self.size.height >= 14
        self.call_after_refresh(self._show_cell)

    def _draw_lines(self) -> None:
        """Draw the lines above and below the grid."""
        if not self.is_running or not self.query("#head"):
            return
        found = self.found
        head = Text()
        head.append(found.title if found else self.watched.view.title, "bold")
        if found is not None:
            number = len(found.cells)
            head.append(
                f"  {counted(number, 'cell')}" if not found.only else f"  {number} of {found.num_cells} cells"
            )
            if found.only:
                head.append(f"  filter: {' or '.join(found.only)}", "bold yellow")
            age_s = self._clock() - found.at
            usual_s = self.watched.pause_s(self._interval_s) + found.seconds
            is_late = age_s > max(SILENT_S, 3 * usual_s) and not self.reader.is_busy
            if self._problem or is_late:
                since = time.strftime("%H:%M:%S", time.localtime(found.at))
                head.append(f"  store silent since {since} ({duration(age_s)})", "red bold reverse")
            else:
                head.append(f"  {duration(age_s)} old", "dim")
            self.query_one("#totals", Static).update(totals(found, self.size.width))
            self.query_one("#pace", Static).update(pace(found))
        elif self._problem:
            head.append("  the store does not answer", "red bold reverse")
        self.query_one("#head", Static).update(head)
        self._draw_foot()

    def _draw_foot(self) -> None:
        text, until = self._message
        warnings = self.found.warnings if self.found else ()
        if text and self._clock() < until:
            foot = Text(text, "yellow")
        elif self._problem:
            foot = Text(self._problem, "red")
        elif warnings:
            foot = Text(f"{counted(len(warnings), 'record')} cannot be read: {warnings[0]}", "yellow")
        else:
            foot = Text(KEYS if self.size.width >= len(KEYS) else FEW_KEYS, "dim")
        self.query_one("#foot", Static).update(foot)

    def _show_cell(self) -> None:
        """Draw the selected cell: where it is, its facts, its curve and the end of its log."""
        found = self.found
        if found is None or not self.query("#place"):  # nothing yet, or nothing any more
            return
        cell = self.cell
        here = Text()
        if cell is not None:
            axes = (*found.grid.column_axes, *found.grid.row_axes, *found.grid.folded_axes)
            here.append(labels_of(cell, axes, named=self.size.width >= NAMED) or cell.id, "bold")
            if len(together := self.cells_here) > 1:
                here.append(f"  [{together.index(cell) + 1}/{len(together)}]", "dim")
            here.append(f"  {standing(cell)}", COLOURS[cell.state])
            if cell.reason and not cell.step:
                here.append(f"  {cell.reason}")
        self.query_one("#place", Static).update(here)
        detail = self.detail if self.detail and cell and self.detail.cell == cell.id else None
        side = self.query_one(Side)
        if side.display:
            side.show(found, cell, detail)
        if detail is None or cell is None:
            return
        if isinstance(self.screen, LogPage):
            self.screen.show(detail.log)
        if self._page is not None and self._page[0] == cell.id:
            self._page[1].show(cell_text(cell, detail, *self.size))

    # The selected cell

    @property
    def cells_here(self) -> list[GridCell]:
        """The cells at the cursor."""
        spot = self.query_one(Board).spot
        return [self.found.cells[number] for number in spot.cells] if spot and self.found else []

    @property
    def cell(self) -> GridCell | None:
        """The selected cell: of several at the cursor the one that was selected, else one with their mark."""
        spot, here = self.query_one(Board).spot, self.cells_here
        selected = [cell for cell in here if cell.id == self._wanted.cell]
        marked = [cell for cell in here if spot is not None and cell.state is spot.state]
        return next(iter(selected + marked), None)

    def on_board_moved(self) -> None:
        """Show another cell, and have its curve and log read."""
        if self.query(Board):  # else the program is ending, and this is one of its last messages
            self._choose(self.cell)

    def _choose(self, cell: GridCell | None, metric: tuple[str, str] | None = None) -> None:
        wanted = Selection(cell.id if cell else "", metric or self._wanted.metric)
        if wanted != self._wanted:
            self._wanted = wanted
            self.reader.choose(wanted)
        self._show_cell()

    def action_turn(self, direction: int) -> None:
        """Select another cell at the same position."""
        if (cell := self.cell) is not None:
            here = self.cells_here
            self._choose(here[(here.index(cell) + direction) % len(here)])

    def action_metric(self) -> None:
        """Show the next metric of the cell."""
        if self.detail is not None and self.detail.metrics:
            names = self.detail.metrics
            now = (self.detail.curve.stage, self.detail.curve.metric)
            after = names[(names.index(now) + 1) % len(names)] if now in names else names[0]
            self._choose(self.cell, after)

    # Pages

    def action_help(self) -> None:
        """Show the keys and the marks."""
        self.push_screen(Page("Keys of sweep watch", help_text()))

    def action_cell(self) -> None:
        """Show the selected cell over the whole screen."""
        if (cell := self.cell) is not None:
            detail = self.detail if self.detail and self.detail.cell == cell.id else None
            page = Page(cell.id, cell_text(cell, detail, *self.size))
            self._page = (cell.id, page)
            self.push_screen(page, lambda _: setattr(self, "_page", None))

    def action_log(self) -> None:
        """Show the log of the selected cell, which follows."""
        if (cell := self.cell) is not None:
            known = self.detail.log if self.detail and self.detail.cell == cell.id else None
            self.push_screen(LogPage(cell.id, known))

    def action_why(self) -> None:
        """Show the evidence for the state of the selected cell."""
        if (cell := self.cell) is not None:
            page = Page(f"why {cell.id}", Text("reading, and verifying files of products ...", "dim"))
            self.push_screen(page)
            job = functools.partial(evidence, cell=cell.id)
            self.reader.do(job, lambda result: page.show(Text(str(result))))

    # Changes

    def action_change(self, verb: Literal["rerun", "cancel"], all_shown: bool) -> None:
        """Ask whether to rerun or cancel the cells here, or all that are shown, and do it after a yes."""
        ids = self._concerned(verb, all_shown=all_shown)
        if not ids:
            self.notice(f"no cell to {verb}")
            return
        self.notice(f"checking what to {verb} ...")

        def answered(result: Any) -> None:
            self._message = ("", 0.0)
            if not isinstance(result, Question):
                self.push_screen(Page(f"{verb} refused", str(result)))
                return
            self.push_screen(Confirm(result), lambda yes: self._decide(verb, result, yes=bool(yes)))

        self.reader.do(lambda watched: ask(watched, verb, ids), answered)

    def _concerned(self, verb: str, *, all_shown: bool) -> list[str]:
        here, found = self.cells_here, self.found
        if found is None:
            return []
        # As `sweep rerun` and `sweep cancel` choose without selectors.
        states = {*State} - {State.DONE, State.CANCELLED}
        if verb == "rerun":
            states = {State.FAILED, State.LOST, State.BLOCKED}
        chosen = [cell.id for cell in (found.cells if all_shown else here) if cell.state in states]
        # A cell that was stopped or cancelled is rerun where it is the one that is meant.
        return chosen or ([] if all_shown else [cell.id for cell in here])

    def _decide(self, verb: str, question: Question, *, yes: bool) -> None:
        if not yes:
            self.notice(f"nothing was changed: no {verb}")
            return

        def done(result: Any) -> None:
            if isinstance(result, str):
                self.notice(result)
            else:
                self.push_screen(Page(f"{verb} failed", str(result)))
            self.reader.look_now()

        self.notice(f"{verb} ...")
        self.reader.do(lambda watched: question.do(), done)

    # Filter

    def action_look(self) -> None:
        """Look at once."""
        self.reader.look_now()

    def action_failures(self) -> None:
        """Show the cells of the next group of failures; after the last one the filter of before."""
        if self.found is not None:
            self.reader.filter(self._failures.after(self.found))

    def action_filter(self) -> None:
        """Open the line in which selectors are typed."""
        line = self.query_one("#filter", Input)
        # A line is one selector. Several of the command line, of which one must hold, have no such form.
        line.value = self.found.only[0] if self.found and len(self.found.only) == 1 else ""
        line.display = True
        self.query_one("#foot").display = False
        line.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Show the cells that the selectors match."""
        value = event.value.strip()
        self.action_leave_filter()
        self.reader.filter((value,) if value else ())

    def action_leave_filter(self) -> None:
        """Close the line of the filter, and leave the filter as it is."""
        self.query_one("#filter").display = False
        self.query_one("#foot").display = True
        self.query_one(Board).focus()
