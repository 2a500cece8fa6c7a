"""A sweep at one look, as a value that the terminal and the page draw: grid, totals, failures, time left.

Everything is only read, so a look can never slow, fail or change a cell.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from orchestrator.api.failures import failures_of
from orchestrator.api.grid import Arrangement, CellGrid, GridCell, arrangement, placed
from orchestrator.api.logs import MetricsReader
from orchestrator.api.pace import Gpus, eta_s, gpus_of, speed_of
from orchestrator.api.state import SweepState, open_view, parse_reference
from orchestrator.api.waiting import COST, JOBS_S, decision_line, next_decision
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import InfrastructureError
from orchestrator.jobs.cells import Jobs
from orchestrator.jobs.judgement import JobListing
from orchestrator.jobs.submissions import Submissions, WorkerRecords, asker
from orchestrator.launchers.base import ask_schedulers
from orchestrator.store import layout


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Cells that failed alike.

    Attributes:
        cause: of the failures.
        stage: that failed; "" where a job failed before any stage did.
        text: exception and message without numbers, ids and paths.
        cells: ids.
        held: ids of the cells that do not start because these failed alike.
        selector: that names the cells.
        next: the command that runs them again.
    """

    cause: str
    stage: str
    text: str
    cells: tuple[str, ...]
    held: tuple[str, ...]
    selector: str
    next: str


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep at one moment.

    Attributes:
        sweep: its name.
        revision: number of the revision.
        title: both, such as ``smoke@2``.
        store: address of the store.
        at: Unix time at which the look began, in seconds.
        seconds: how long the look took.
        only: the selectors that chose the cells.
        num_cells: cells of the whole sweep.
        counts: state to number of chosen cells, in the order of `State`; states without cells are left out.
        grid: the positions.
        cells: the chosen cells in the order of the sweep.
        troubles: failures, alike ones together, those of most cells first.
        warnings: records that could not be read.
        eta_s: seconds until nothing is left to do, if the workers of now go on; None where it is not known.
        gpus: of the workers.
        tokens_per_second: sum of the last speeds that running stages logged; None if none did.
        num_running: stages that run now.
        decision: a line on the next decision; "" if none is left.
    """

    sweep: str
    revision: int
    title: str
    store: str
    at: float
    seconds: float
    only: tuple[str, ...]
    num_cells: int
    counts: dict[str, int]
    grid: CellGrid
    cells: tuple[GridCell, ...]
    troubles: tuple[Trouble, ...]
    warnings: tuple[str, ...]
    eta_s: float | None
    gpus: Gpus
    tokens_per_second: float | None
    num_running: int
    decision: str = ""


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Search for no garbage inside the block: a look makes none, and would take a third longer."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # Of looks at the same time, the first one that began enables it again.
        if was_enabled:
            gc.enable()


class _Asked(NamedTuple):
    """The schedulers' answers about open tasks, given as (submission, index), and when they were asked."""

    tasks: frozenset[tuple[int, int]]
    at_s: float
    answers: Mapping[tuple[str, str], JobListing]


class Watched:
    """A sweep that is looked at again and again. Several threads may use it, one at a time.

    A name without ``@k`` follows the revision that was launched last.

    Args:
        word: ``smoke``, ``smoke@2`` or a path to a YAML file.
        url: of the store; see `store_url`.
        rows: axes to use as the rows of the grid; see `arrangement`.

    Attributes:
        view: the sweep state at the last look.
        metrics: keeps the metrics that were read.

    Raises:
        UserError: the sweep is neither in the store nor in a file, or has no such axis.
    """

    def __init__(self, word: str, url: str | None = None, rows: Sequence[str] = ()) -> None:
        self.lock = threading.RLock()
        self._word, self._url, self._rows = word, url, tuple(rows)
        self._asked: _Asked | None = None
        self._took_s = 0.0
        self._open()

    def _open(self) -> None:
        self.view = open_view(self._word, self._url)
        self._arrangement = arrangement(self.view.sweep.cells, self._rows)
        self._workers = WorkerRecords(self.view.ledger, self.view.sweep.name)
        self.metrics = MetricsReader()

    def look(self, only: Sequence[str] = ()) -> Overview:
        """Read the store again, and return what it shows.

        Args:
            only: selectors; all cells without one.

        Raises:
            UserError: a selector has an unknown key, value or cell.
            InfrastructureError: the place holds no store any more.
            OSError: the store does not answer.
        """
        with self.lock, _without_garbage_collection():
            at, start_s = time.time(), time.monotonic()
            objects = self.view.ledger.objects
            # Without its mark, an empty mount point would look like a sweep of which nothing has started.
            if self.view.sealed and objects.get(layout.STORE) is None:
                raise InfrastructureError("there is no store any more", where=objects.url)
            self.view = self.view.fresh()
            if self._is_outdated():
                self._open()
            self.view.jobs = self._jobs()
            found = overview(self.view, only, arranged=self._arrangement, workers=self._workers, at=at)
            self._took_s = time.monotonic() - start_s
            return msgspec.structs.replace(found, seconds=self._took_s)

    def pause_s(self, shortest_s: float) -> float:
        """Return the seconds until the next look: more where looks are slow or their requests cost money.

        Args:
            shortest_s: that the user set.
        """
        return max(shortest_s, self.view.ledger.objects.poll_s, min(JOBS_S, COST * self._took_s))

    def _jobs(self) -> Jobs:
        """Return the sweep's jobs. Looks that follow each other fast share the scheduler's answer."""
        problems = self.view.problems
        filed = Submissions(self.view.ledger, self.view.sweep.name).read(problems, problems)
        open_tasks = frozenset((each.submission.number, t) for each in filed for t in each.open_tasks)
        asked, now_s = self._asked, time.monotonic()
        if asked is None or not open_tasks <= asked.tasks or now_s - asked.at_s >= JOBS_S:
            self._asked = asked = _Asked(open_tasks, now_s, ask_schedulers(filed))
        return Jobs(filed, asked.answers, asker())

    def _is_outdated(self) -> bool:
        """Return whether another revision was launched, or this one was sealed meanwhile."""
        if parse_reference(self._word).revision is not None:
            return False
        launched = (r.revision for r in reversed(self.view.requests) if r.verb in ("launch", "rerun"))
        number = next(launched, self.view.number)
        return number != self.view.number or (not self.view.sealed and bool(self.view.requests))


def overview(
    view: SweepState,
    only: Sequence[str] | None = None,
    *,
    arranged: Arrangement | None = None,
    workers: WorkerRecords | None = None,
    at: float | None = None,
) -> Overview:
    """Return a sweep at one look.

    Args:
        view: the sweep state.
        only: selectors; all cells without one.
        arranged: rows and columns of the grid, if they are known from an earlier look.
        workers: reads the workers' records, if it was used before.
        at: Unix time at which the look began; by default now.

    Raises:
        UserError: a selector has an unknown key, value or cell.
    """
    arranged = arranged or arrangement(view.sweep.cells)
    chosen = view.select(only or ())
    grid, cells = placed(view, chosen, arranged)
    counts = Counter(cell.state for cell in cells)
    left = next_decision(view)
    running = [digest for digest, status in view.stages.items() if status.state is State.RUNNING]
    return Overview(
        sweep=view.sweep.name,
        revision=view.number,
        title=view.title,
        store=view.ledger.objects.url,
        at=time.time() if at is None else at,
        seconds=0.0,
        only=tuple(only or ()),
        num_cells=len(view.sweep.cells),
        counts={str(state): counts[state] for state in State if counts[state]},
        grid=grid,
        cells=cells,
        troubles=tuple(_troubles(view, chosen)),
        warnings=tuple(view.warnings()),
        eta_s=eta_s(view, chosen, arranged.columns, running),
        gpus=gpus_of(view, workers or WorkerRecords(view.ledger, view.sweep.name), running),
        tokens_per_second=speed_of(view, running),
        num_running=len(running),
        decision="" if left is None else decision_line(left),
    )


def _troubles(view: SweepState, cells: Sequence[Cell]) -> Iterator[Trouble]:
    """Yield the failures of stages in groups, and then those of jobs that ended before any stage failed."""
    for group in failures_of(view, cells):
        yield Trouble(
            cause=group.cause,
            stage=group.stage,
            text=f"{group.exception}: {group.pattern}" if group.exception else group.pattern,
            cells=group.cells,
            held=group.held,
            selector=f"failure={group.failure}",
            next=group.next,
        )
    by_job: dict[str, list[Cell]] = {}
    for cell in cells:
        status = view.cells[cell.id]
        stages = view.stages_of(cell).values() if status.state is State.FAILED else ()
        if stages and all(stage.state is not State.FAILED for stage in stages):
            by_job.setdefault(str(status.cause or "unknown"), []).append(cell)
    for cause, lost in by_job.items():
        selector = f"state=failed cause={cause}"
        yield Trouble(
            cause=cause,
            stage="",
            text=view.cells[lost[0].id].reason,
            cells=tuple(cell.id for cell in lost),
            held=(),
            selector=selector,
            next=f"sweep rerun {view.sweep.name} --only {selector!r}{view.hint}",
        )
