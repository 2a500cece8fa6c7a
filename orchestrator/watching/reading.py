"""The thread that reads the store for the terminal, so that a slow store never stops keys; its filters."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from textual.message import Message

from orchestrator.api.grid import GridCell
from orchestrator.api.logs import LogTail, MetricCurve, curve, log_tail, metrics_of
from orchestrator.api.overview import Overview, Watched
from orchestrator.api.status import explain, explanation_lines
from orchestrator.core.state import State
from orchestrator.errors import InfrastructureError, SweepError, UserError
from orchestrator.store.access import error_line

FOLLOW_S = 1.0
"""Shortest time between two reads of the log and curve of a running cell, in seconds."""

LOG_LINES = 1000
"""Lines of a log that can be scrolled through."""


class Detail(NamedTuple):
    """What is shown of one cell.

    Attributes:
        cell: its id.
        curve: of the chosen metric.
        metrics: stage and name of each metric that it has, the default first.
        log: end of the log that matters most.
    """

    cell: str
    curve: MetricCurve
    metrics: tuple[tuple[str, str], ...]
    log: LogTail


class Looked(NamedTuple):
    """The store was read."""

    found: Overview


class Silent(NamedTuple):
    """The store could not be read, with the reason."""

    reason: str


class Refused(NamedTuple):
    """The selectors are wrong, with the reason; those of before still count."""

    reason: str


class JobResult(NamedTuple):
    """The result of a job, to be given to what asked for it."""

    take: Callable[[Any], None]
    result: Any


class Broken(NamedTuple):
    """Reading failed in a way that nobody foresaw: a bug."""

    error: Exception


News = Looked | Silent | Refused | Detail | JobResult | Broken


class ReaderNews(Message):
    """News of the reader, in the application's thread."""

    def __init__(self, news: News) -> None:
        super().__init__()
        self.news = news


Job = Callable[[Watched], Any]


class Selection(NamedTuple):
    """What the person looks at: a cell ("" for none), and a metric (None for the default one)."""

    cell: str = ""
    metric: tuple[str, str] | None = None


class Reader(threading.Thread):
    """Reads the store again and again, and does single jobs in between.

    It is a daemon: a read that hangs must not keep the program from ending.

    Args:
        watched: the sweep.
        only: selectors of the cells.
        interval_s: between two looks, at least.
        post: called in this thread with each piece of news.

    Attributes:
        watched: the sweep.
        is_busy: whether it does a single job now, such as to verify files, so that no look can be expected.
    """

    def __init__(
        self, watched: Watched, only: Sequence[str], interval_s: float, post: Callable[[News], None]
    ) -> None:
        super().__init__(name="reader", daemon=True)
        self.watched = watched
        self._only, self._interval_s, self._post = tuple(only), interval_s, post
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._wanted = Selection()
        self._cells: dict[str, GridCell] = {}
        self.is_busy = False

    # Called by the application's thread

    def choose(self, wanted: Selection) -> None:
        """Show another cell or metric."""
        self._wanted = wanted
        self._tasks.put(lambda: self._detail(wanted))

    def filter(self, only: Sequence[str]) -> None:
        """Show other cells."""
        self._tasks.put(lambda: self._look(tuple(only)))

    def look_now(self) -> None:
        """Look at once."""
        self._tasks.put(lambda: self._look(self._only))

    def do(self, job: Job, take: Callable[[Any], None]) -> None:
        """Do a job; `take` gets its result, or the error, in the application's thread."""
        self._tasks.put(lambda: self._do(job, take))

    def stop(self) -> None:
        """End after what is being read now."""
        self._tasks.put(None)

    # In this thread

    def run(self) -> None:
        """Look, and then do what is asked until the next look is due."""
        try:
            self._look(self._only)
            while self._wait(time.monotonic() + self.watched.pause_s(self._interval_s)):
                self._look(self._only)
        except Exception as error:  # noqa: BLE001 - a thread that ends in silence would look like a silent store
            self._post(Broken(error))

    def _wait(self, due_s: float) -> bool:
        """Do what is asked until a time, and follow a running cell; return False to end."""
        follow_s = max(FOLLOW_S, self.watched.view.ledger.objects.poll_s)
        while (left_s := due_s - time.monotonic()) > 0:
            try:
                task = self._tasks.get(timeout=min(left_s, follow_s))
            except queue.Empty:
                if self._is_running() and left_s > follow_s:
                    self._detail(self._wanted)
                continue
            if task is None:
                return False
            task()
        return True

    def _is_running(self) -> bool:
        """Return whether the selected cell was running at the last look."""
        cell = self._cells.get(self._wanted.cell)
        return cell is not None and cell.state is State.RUNNING

    def _look(self, only: tuple[str, ...]) -> None:
        try:
            found = self.watched.look(only)
        except UserError as error:
            if only != self._only:
                self._post(Refused(str(error)))
                return
            # What was selected is not there any more, such as failures after a new revision.
            self._only = ()
            self._post(Refused(str(error)))
        except (SweepError, OSError) as error:
            self._post(Silent(_line(error)))
        else:
            self._only = only
            before, self._cells = self._cells, {cell.id: cell for cell in found.cells}
            self._post(Looked(found))
            # Nothing is added to what belongs to a cell that stands as before.
            if self._is_running() or before.get(self._wanted.cell) != self._cells.get(self._wanted.cell):
                self._detail(self._wanted)

    def _detail(self, wanted: Selection) -> None:
        # The person may have moved on meanwhile.
        if not wanted.cell or wanted != self._wanted:
            return
        try:
            self._post(detail(self.watched, wanted))
        except (SweepError, OSError) as error:
            self._post(Silent(_line(error)))

    def _do(self, job: Job, take: Callable[[Any], None]) -> None:
        result: Any
        self.is_busy = True
        try:
            result = job(self.watched)
        except (SweepError, OSError) as error:
            result = error
        finally:
            self.is_busy = False
        self._post(JobResult(take, result))


def detail(watched: Watched, wanted: Selection) -> Detail:
    """Return what is shown of a cell."""
    with watched.lock:
        view, reader = watched.view, watched.metrics
        cell = view.cell(wanted.cell)
        metrics = tuple(
            (stage, name) for stage, names in metrics_of(view, cell, reader).items() for name in names
        )
        stage, name = wanted.metric if wanted.metric in metrics else metrics[0] if metrics else ("", "")
        found = curve(view, cell, reader, name, stage) if metrics else MetricCurve()
        return Detail(cell.id, found, metrics, log_tail(view, cell, lines=LOG_LINES))


def evidence(watched: Watched, cell: str) -> str:
    """Return the evidence for a cell's state, as `sweep why` prints it."""
    with watched.lock:
        return "\n".join(explanation_lines(explain(watched.view, watched.view.cell(cell))))


def _line(error: BaseException) -> str:
    """Return an error of the store as one line."""
    return str(error).partition("\n")[0] if isinstance(error, InfrastructureError) else error_line(error)


Only = tuple[str, ...]


class FailureFilters:
    """Goes through the groups of failures that the filter of before shows, and then back to that filter."""

    def __init__(self) -> None:
        self._before: Only = ()
        self._groups: list[str] = []

    def after(self, found: Overview) -> Only:
        """Return the selectors that show the next group.

        Args:
            found: what is shown now.
        """
        filters = self._filters()
        if found.only in filters:
            number = filters.index(found.only) + 1
        else:
            number, self._before = 0, found.only
            self._groups = [each.selector for each in found.troubles]
            filters = self._filters()
        return [*filters, self._before][number]

    def _filters(self) -> list[Only]:
        # Words of one selector must all hold, and one of several selectors.
        return [tuple(f"{word} {group}" for word in self._before) or (group,) for group in self._groups]
