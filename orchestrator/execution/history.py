"""What a worker remembers between stages: users' requests, what is held back, how its attempts ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from orchestrator.core.evidence import NO_HOLDS, Holds
from orchestrator.core.failure import Cause
from orchestrator.core.holding import SweepRecords, holds_of
from orchestrator.core.plan import RequestSummary, summarize_requests
from orchestrator.core.records import End
from orchestrator.core.settings import Policy
from orchestrator.core.state import StageStatus
from orchestrator.core.sweep import ComposedSweep
from orchestrator.execution.attempt import AttemptRun
from orchestrator.jobs.records import REFUSED, RELEASED, TOO_SHORT
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger

CANCEL_POLL_S = 1.0
"""Seconds between two looks for a cancel while a stage runs, unless the store is polled less often."""


HOLDS_POLL_S = 2.0
HOLDS_SHARE = 20
"""Least seconds between two evaluations of what is held back, at most 1/HOLDS_SHARE of the time."""

MAX_FAILED_STARTS = 2


class RequestReader:
    """The users' requests for a sweep, as they were last read.

    Args:
        ledger: the store.
        sweep: name of the sweep.
        cells: ids of all its cells.

    Attributes:
        summary: of the requests.
    """

    def __init__(self, ledger: Ledger, sweep: str, cells: Sequence[str]) -> None:
        self.summary = RequestSummary(frozenset(), {}, {})
        self._ledger = ledger
        self._sweep = sweep
        self._cells = cells
        self._read_s = 0.0

    def read(self, *, at_most_s: float) -> RequestSummary:
        """Return the summary of all requests, read again if it is older than `at_most_s` seconds."""
        if time.monotonic() - self._read_s >= at_most_s:
            self.summary = summarize_requests(self._ledger.requests(self._sweep), self._cells)
            self._read_s = time.monotonic()
        return self.summary


class HoldReader:
    """What is held back in the sweep, as this worker last found it.

    The rules look at all stages of the sweep, so they are not evaluated at each scan. They are at the first
    scan, after each failure of the worker's own, after each request, and at intervals.

    Args:
        sweep: the sealed sweep.
        policy: of the launch.
        code: digest of the code that the worker runs.
    """

    def __init__(self, sweep: ComposedSweep, policy: Policy, code: str) -> None:
        self._sweep = sweep
        self._policy = policy
        self._codes = {cell.id: code for cell in sweep.cells}
        self._summary: RequestSummary | None = None
        self._holds = NO_HOLDS
        self._next_s = 0.0

    def expire(self) -> None:
        """Have the rules evaluated at the next scan."""
        self._summary = None

    def read(
        self, reader: EvidenceReader, summary: RequestSummary, status: Callable[[str], StageStatus]
    ) -> Holds:
        """Return what is held back.

        Args:
            reader: of this scan's evidence.
            summary: of the requests.
            status: returns a stage's own state by digest, by this reader's evidence.
        """
        start_s = time.monotonic()
        if summary == self._summary and start_s < self._next_s:
            return self._holds
        self._holds = holds_of(
            SweepRecords(
                sweep=self._sweep,
                evidence=reader.evidence,
                status=status,
                unfinished=reader.unfinished(),
                requests=summary,
                policy=self._policy,
                codes=self._codes,
            )
        )
        now_s = time.monotonic()
        self._summary = summary
        self._next_s = now_s + max(HOLDS_POLL_S, HOLDS_SHARE * (now_s - start_s))
        return self._holds


class WorkerHistory:
    """How the attempts of a worker ended, from which follow whether it goes on and how it exits.

    Args:
        holds: what is held back in the sweep; each failure has it evaluated again.
        in_job: whether the worker runs in a scheduler's job.

    Attributes:
        holds: as given.
        num_claims: number of attempts that it claimed.
        has_progressed: whether a successor of this job could get further.
        is_late: whether an attempt ended because too little time was left.
        is_starved: whether a stage ran out of memory, so that a larger job is needed.
    """

    def __init__(self, holds: HoldReader, *, in_job: bool) -> None:
        self.holds = holds
        self.num_claims = 0
        self.has_progressed = False
        self.is_late = False
        self.is_starved = False
        self._in_job = in_job
        self._failed_starts = 0
        self._is_replaced = False
        self._is_on_bad_node = False

    def add(self, run: AttemptRun, end: End, *, is_replaced: bool) -> None:
        """Add an attempt that ended; `is_replaced`: a later start of this worker took it over."""
        has_failed_to_start = end.outcome == "failed" and not run.was_running
        self._failed_starts = self._failed_starts + 1 if has_failed_to_start else 0
        if end.outcome == "failed":
            self.holds.expire()
        self._is_replaced = is_replaced
        self._is_on_bad_node |= end.cause is Cause.BAD_NODE
        self.is_late |= end.why == "deadline"
        self.is_starved |= end.cause is Cause.OOM_HOST and self._in_job
        self.has_progressed |= end.outcome == "succeeded" or end.why != "deadline" or run.made_progress

    def refusal(self) -> tuple[str, int] | None:
        """Return why the worker claims no more, and its exit code; None while it goes on."""
        if self._is_replaced:
            return "a later start of this job goes on", self.exit_code("replaced")
        if self._failed_starts >= MAX_FAILED_STARTS:
            return "two failures in the start phase in a row", REFUSED
        if self._is_on_bad_node:
            return "this machine cannot run the stages", REFUSED
        return None

    def exit_code(self, why: str) -> int:
        """Return the exit code of a worker that leaves work behind; it matters to a scheduler only."""
        if not self._in_job:
            return 0
        return RELEASED if self.has_progressed or why != "deadline" else TOO_SHORT
