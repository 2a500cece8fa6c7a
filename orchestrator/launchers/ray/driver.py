"""The driver, a job of the cluster: ``... ray.driver STORE SWEEP SUBMISSION NAME``.

It starts as many workers as there are stages to claim, a few waiting at a time. It records which workers are
lost, so that no other worker waits for their leases. It hands out no stages: workers find them in the store.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from orchestrator import provenance
from orchestrator.core.failure import Cause
from orchestrator.core.gates import gates_of, with_gates
from orchestrator.core.plan import RequestSummary, code_of, summarize_requests
from orchestrator.core.records import Owner, Request
from orchestrator.core.remedies import status_in_job
from orchestrator.core.settings import Policy
from orchestrator.core.state import StageStatus, SweepFacts
from orchestrator.errors import DamagedRecord, InfrastructureError, SweepError
from orchestrator.execution.liveness import Watcher
from orchestrator.execution.main import OUTAGE_S, exit_of
from orchestrator.execution.scanning import HoldReader, StoreScanner
from orchestrator.jobs.nodes import NodeReports, named
from orchestrator.jobs.records import NO_MEMORY, RELEASED, Resources, Submission
from orchestrator.jobs.submissions import DriverRecords, Submissions, request_of, settings_of, spending_now
from orchestrator.launchers.ray.boot import Starter
from orchestrator.launchers.ray.lost_workers import Ended, Failures, Losses, Stop, Workers
from orchestrator.launchers.ray.settings import AUTO, LOCAL, demand, grace_of, ray_settings, waits_for
from orchestrator.provenance import process_of
from orchestrator.store import layout
from orchestrator.store.decisions import DecisionLog
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.trackers.notifier import Notifier

POLL_S, SCAN_S, SCAN_SHARE = 0.5, 2.0, 20
"""Intervals of polls of Ray and scans of the store (at most 1/SCAN_SHARE of the time)."""

_WELL = frozenset({0, RELEASED, NO_MEMORY})  # exit codes of workers that ended as they should


class OpenWork(NamedTuple):
    """What there is to do: the stages to claim, whether more may follow, and the slots that hold one."""

    num_claimable: int
    waiting: bool
    busy: frozenset[int]


class _Scanner:
    """Scans of the store for what one start of a driver has to do.

    Args:
        ledger: the store.
        decisions: of the sealed sweep.
        submission: with the cells that are to be worked on.
        request: the launch.
        start: the id of the driver's job, and how often it was restarted.
        policy: of the launch.
        observer: judges the attempts of workers.
        rungs: of the remedies in the submission's resources, by cause.
    """

    def __init__(
        self,
        ledger: Ledger,
        decisions: DecisionLog,
        submission: Submission,
        request: Request,
        start: tuple[str, int],
        policy: Policy,
        observer: Watcher,
        rungs: Mapping[Cause, tuple[int, int]],
    ) -> None:
        self._ledger = ledger
        self._decisions = decisions
        self._wanted = frozenset(submission.tasks[0])
        self._request = request
        self._rungs = rungs
        self._start = start
        self._policy = policy
        self._observer = observer
        self._busy: set[int] = set()
        self._trusted: set[tuple[str, int]] = set()
        self._take_over()

    def _take_over(self) -> None:
        """Take over the sweep as its decisions have left it."""
        self._decisions.check()
        sweep, request = self._decisions.unfolded.sweep, self._request
        gates = gates_of(sweep, request.gates, request.cells)._replace(are_first=True)
        self._sweep, spent = with_gates(sweep, gates), partial(spending_now, self._ledger, sweep.name)
        holds = HoldReader(self._sweep, self._policy, code_of(request), gates, spent)
        cells = [cell for cell in sweep.cells if cell.id in self._wanted]
        self._scanner = StoreScanner(cells, self._sweep.stages, self._status, gates, holds)

    def open_work(self, claimed: set[int]) -> OpenWork:
        """Return what there is to do; add the slots that hold a stage to `claimed`."""
        sweep = self._sweep
        summary = summarize_requests(self._ledger.requests(sweep.name), [cell.id for cell in sweep.cells])
        reader = EvidenceReader(
            self._ledger,
            sweep.stages.values(),
            observer=self._observer,
            count_attempts=False,
            trusted=self._trusted,
            specs=sweep.specs,
        )
        self._busy = set()
        claimable, waiting = self._scanner.count(reader, summary)
        if not claimable and self._decides(reader, summary):
            return self.open_work(claimed)
        claimed |= self._busy
        return OpenWork(claimable, waiting, frozenset(self._busy))

    def _decides(self, reader: EvidenceReader, summary: RequestSummary) -> bool:
        """Make the decisions that can be made, and return whether any was made here or elsewhere."""
        status_of = partial(self._status, reader, summary)
        facts = SweepFacts(status_of, reader.evidence, summary.cancelled, self._scanner.holds)
        if self._decisions.advance(facts, by=f"driver on {platform.node()}"):
            self._take_over()
            return True
        return False

    def _status(self, reader: EvidenceReader, summary: RequestSummary, digest: str) -> StageStatus:
        """Return a stage's state; note the slot of this driver that holds it."""
        evidence = reader.evidence(digest)
        last = evidence.attempts[-1] if evidence.attempts else None
        # Attempts without an end are read at each scan, so none is missed.
        if last is not None and last.claim is not None and last.end is None:
            owner = last.claim.owner
            if (owner.job, owner.restart_count) == self._start:
                self._busy.add(owner.slot)
        return status_in_job(evidence, summary.budget(digest, self._policy.retries), self._rungs)


class RayDriver:
    """One start of the driver of one submission.

    Args:
        ledger: the store.
        sweep: its name.
        submission: whose cells are to be worked on.
        restart: how often the driver was restarted.
        log: a file for its own lines.
        watcher: judges the attempts of workers.
        connect: returns the workers, given the address of a cluster and the resources of each.
        parent: process id of the driver's parent, taken before anything that lasts.
    """

    def __init__(
        self,
        ledger: Ledger,
        sweep: str,
        submission: Submission,
        restart: int,
        log: Path,
        *,
        watcher: Watcher,
        connect: Callable[[str, Resources], Workers],
        parent: int,
    ) -> None:
        self._log = log
        self._connect = connect
        self._records = DriverRecords(ledger, sweep, submission.number, restart)
        submissions = Submissions(ledger, sweep)
        sealed = ledger.revision(sweep, submission.revision).sweep
        request = request_of(ledger, sweep, submission.request)
        run_settings = settings_of(request)
        self._settings = ray_settings(run_settings.launcher)
        job = submissions.job_of(submission.number) or submission.name
        grace_s = grace_of(run_settings.policy, submission.resources)
        self._losses = Losses(submissions, submission, job, restart, watcher=watcher, grace_s=grace_s)
        self._failures = Failures()
        of_sweep = ledger, DecisionLog(ledger, sealed, submission.revision), submission, request
        settings = (job, restart), run_settings.policy, watcher, submission.resources.by_cause
        self._scanner = _Scanner(*of_sweep, *settings)
        self._starter = Starter(ledger.objects, sealed.name, submission, restart, self._settings.environment)
        self._unaware: set[int] = set()  # began before the last losses
        self._stop = Stop(grace_s, parent)
        self._nodes = NodeReports(ledger, run_settings.policy.quarantine_s)
        self._notifier = Notifier(ledger.objects.url, sweep, run_settings.notify, self._log_line)

    def run(self) -> int:
        """Drive workers until nothing is left to do, and return the exit code."""
        if (over := self._records.submission_end()) is not None:
            self._log_line(f"this submission was given up ({over.word} {over.detail}): it starts nothing")
            return 0
        signal.signal(signal.SIGTERM, self._stop.on_signal)
        address = LOCAL if self._settings.address == LOCAL else AUTO
        self._pool = self._connect(address, self._starter.submission.resources)
        try:
            code = self._drive()
        finally:
            self._pool.close()
        if self._stop.is_requested:  # no report: the cluster records who stopped it
            return RELEASED
        self._records.write_report(code, self._failures.given_up, claimed=bool(self._failures.claimed))
        self._notifier.finish()
        return code

    def _drive(self) -> int:
        """Poll Ray and the store until there is an exit code, through short outages of the store."""
        scan_s = answered_s = time.monotonic()
        happened: list[Ended] = []
        troubled = False
        self._tell(force=True)  # the store has to show this start before its workers
        while True:
            happened += self._pool.wait(POLL_S)
            self._stop.check_parent()
            for address in self._pool.leave_draining():
                self._log_line(f"node {address} is about to go: its worker saves a checkpoint")
            self._tell()
            self._notifier.poll()
            if self._stop.is_requested or self._failures.given_up:
                if self._is_empty():
                    return self._failures.code
                continue
            now_s = time.monotonic()
            # scan early if a worker has ended, but not while the store fails
            if now_s < scan_s and (troubled or not happened):
                continue
            try:
                if self._round(happened):
                    self._log_line("nothing is left to do")
                    return 0
                answered_s = time.monotonic()
                troubled = False
            except (OSError, InfrastructureError) as error:  # workers wait for the store as well
                if isinstance(error, DamagedRecord) or now_s - answered_s > OUTAGE_S:
                    raise
                troubled = True
                self._log_line(f"the store does not answer: {error}")
            # a slow store is scanned less often
            scan_s = now_s + max(SCAN_S, SCAN_SHARE * (time.monotonic() - now_s))

    def _is_empty(self) -> bool:
        """Stop all workers, drop those that take too long, and return whether none is left."""
        self._pool.stop()
        for slot in list(self._pool.running) if self._stop.is_overdue() else ():
            self._pool.drop(slot)
        return not self._pool.running

    def _round(self, happened: list[Ended]) -> bool:
        """Scan the store, and adjust the workers to it; return whether nothing is left to do.

        Args:
            happened: workers that have ended; each is removed once it is handled.

        Raises:
            OSError, InfrastructureError: the store did not answer.
        """
        if self._records.submission_end() is not None:
            self._log_line("this submission was given up meanwhile: its workers save checkpoints and end")
            self._stop.is_requested = True
            return False
        work = self._scanner.open_work(self._failures.claimed)
        num_lost = len(self._losses.known)
        while happened:
            self._take(happened.pop(0), work.busy)
        self._losses.settle(work.busy, self._pool.lives)
        if len(self._losses.known) > num_lost:
            self._tell(force=True)  # before the start of successors, which read it
            self._unaware = set(self._pool.running)
            work = self._scanner.open_work(self._failures.claimed)
        self._adjust(work)
        return not work.waiting and not self._pool.running and not self._pool.pending

    def _adjust(self, work: OpenWork) -> None:
        """Start workers that there is work for, and drop superfluous ones that wait for resources."""
        left_out, here = self._nodes.left_out(), self._starter.submission.cluster
        out = {node: one for (place, node), one in left_out.items() if place == here}
        if self._pool.bar(out):
            self._log_line("; ".join(named(*each) for each in out.items()) or "no node is left out any more")
        num_running, pending = len(self._pool.running), self._pool.pending
        # a worker without a stage takes one; but those from before the last losses may wait for a lease
        needed = work.num_claimable - len(self._pool.running.keys() - work.busy - self._unaware)
        for slot in sorted(pending)[max(0, needed) :]:
            self._pool.drop(slot)
        if time.monotonic() < self._failures.not_before_s:
            return
        most = min(needed, self._settings.max_pending) - len(pending)
        if self._settings.max_workers is not None:
            most = min(most, self._settings.max_workers - num_running - len(pending))
        for _ in range(most):
            self._starter.start(self._pool, avoid=self._failures.avoided)

    def _take(self, ended: Ended, busy: Collection[int]) -> None:
        """Record how a worker ended; `busy` are the slots whose attempts have no end."""
        message, num_claims = ended.last_words()
        if num_claims:
            self._failures.claimed.add(ended.slot)
        claimed = ended.slot in self._failures.claimed
        name = f"worker {ended.slot} on {ended.address or 'no node'}"
        if ended.code in _WELL or (ended.was_stopped and not claimed):  # stopped before it could work
            self._failures.end_well(ended.node)
            return
        if ended.code is None:
            why = f"{name} was lost: {message or 'the process that kept it was killed'}"
            self._losses.doubt(ended.slot, ended.node, ended.cause, why)
        else:
            how = f"was killed by signal {-ended.code}" if ended.code < 0 else f"ended with code {ended.code}"
            why = f"{name} {how}: {message}".rstrip(": ")
            if ended.slot in busy:
                self._losses.add(ended.slot, ended.cause, why)
        # the end of a node is no failure of its workers; Ray may notice it later than the driver
        if claimed or not ended.node or self._pool.lives(ended.node):
            self._log_line(why)
            of_node = ended.is_of_node
            self._failures.end_badly(ended.slot, ended.node, why, gives_up=not busy, is_of_node=of_node)

    def _tell(self, *, force: bool = False) -> None:
        """Write the status record if it is due."""
        if not force and not self._records.is_status_due():
            return
        pending = len(self._pool.pending)
        text = demand(len(self._pool.running), pending)
        if pending:  # only then, because the list of nodes is a costly query
            text += waits_for(self._starter.submission.resources, self._pool.nodes())
        try:
            self._records.write_status(text, self._losses.known, force=force)
        except OSError as error:
            self._log_line(f"the store does not take what is seen: {error}")

    def _log_line(self, line: str) -> None:
        log_line(line, self._log)


def log_line(line: str, log: Path | None = None) -> None:
    """Write a line to the job's log, which the cluster keeps, and to the log in the store."""
    line = f"{provenance.now()} driver: {provenance.without_secrets(line)}\n"
    with contextlib.suppress(OSError):
        sys.stdout.write(line)
        sys.stdout.flush()
        if log is not None:
            with log.open("a", encoding="utf-8") as stream:
                stream.write(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the driver of a submission, and return its exit code."""
    parent = os.getppid()
    from orchestrator.launchers.ray.actors import connect  # imports Ray, which takes seconds

    store, sweep, number, name = sys.argv[1:] if argv is None else argv
    restart = int(os.environ.get("SWEEP_DRIVER_RESTART", "0"))
    log: Path | None = None
    try:
        ledger = open_ledger(store)
        log = ledger.objects.workspace(layout.job_logs(sweep, int(number))) / "0.log"
        log_line(f"{name}: {sweep} submission {number}, start {restart}", log)
        submission = Submissions(ledger, sweep).submission(int(number))
        if submission is None or submission.name != name:
            raise InfrastructureError(f"submission {number} of {sweep} is not there", where=store)
        process = process_of(os.getpid())
        if process is None:
            raise InfrastructureError("cannot read this process's start time")
        watcher = Watcher(Owner(host=platform.node(), process=process, slot=-1))
        driver = RayDriver(
            ledger, sweep, submission, restart, log, watcher=watcher, connect=connect, parent=parent
        )
        return driver.run()
    except (SweepError, OSError) as error:
        code, line = exit_of(error)
        log_line(line, log)
        return code


if __name__ == "__main__":
    sys.exit(main())
