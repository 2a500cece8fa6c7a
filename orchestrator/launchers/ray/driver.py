"""The driver, a job of the cluster: ``... ray.driver STORE SWEEP SUBMISSION NAME``.

It starts as many workers as there are stages to claim, a few waiting at a time. It records which workers are
lost, so that no other worker waits for their leases. It hands out no stages: workers find them in the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from orchestrator import provenance
from orchestrator.core.plan import num_claimable, summarize_requests
from orchestrator.core.records import Owner
from orchestrator.core.state import StageStatus, stage_status
from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.execution.liveness import Watcher
from orchestrator.execution.main import OUTAGE_S
from orchestrator.jobs.records import (
    BEAT_S,
    EXITS,
    NO_MEMORY,
    REFUSED,
    RELEASED,
    DriverStatus,
    JobExitReport,
    Submission,
    cause_of_code,
)
from orchestrator.jobs.submissions import Submissions, request_of, settings_of
from orchestrator.launchers.ray.actors import Ended, Pool
from orchestrator.launchers.ray.boot import start_of
from orchestrator.launchers.ray.lost_workers import Failures, Losses
from orchestrator.launchers.ray.settings import AUTO, LOCAL, demand, grace_of, ray_settings, waits_for
from orchestrator.processes import describe
from orchestrator.store import layout
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger, open_ledger

WORKER = "orchestrator.launchers.ray.worker"
POLL_S, SCAN_S, SCAN_SHARE, TELL_S = 0.5, 2.0, 20, 2.0
"""Intervals of polls of Ray, scans of the store (at most 1/SCAN_SHARE of the time) and status records."""

MARGIN_S = 30.0
"""Time beyond `policy.grace_s` in which stopped workers must end."""

_WELL = frozenset({0, RELEASED, NO_MEMORY})  # exit codes of workers that ended as they should


class OpenWork(NamedTuple):
    """What there is to do: the stages to claim, whether more may follow, and the slots that hold one."""

    num_claimable: int
    waiting: bool
    busy: frozenset[int]


class _Written(NamedTuple):
    """The last status record: its number, its text, and when it was written."""

    beat: int
    text: str
    at_s: float


class RayDriver:
    """One start of the driver of one submission.

    Args:
        ledger: the store.
        sweep: its name.
        submission: whose cells are to be worked on.
        restart: how often the driver was restarted.
        log: a file for its own lines.
    """

    def __init__(self, ledger: Ledger, sweep: str, submission: Submission, restart: int, log: Path) -> None:
        self._log = log
        self._ledger = ledger
        self._submission = submission
        self._restart = restart
        self._submissions = Submissions(ledger, sweep)
        self._revision = ledger.revision(sweep, submission.revision)
        self._engine = settings_of(request_of(ledger, sweep, submission.request))
        self._settings = ray_settings(self._engine.launcher)
        self._job = self._submissions.job_of(submission.number) or submission.name
        process = describe(os.getpid())
        if process is None:
            raise InfrastructureError("cannot read this process's start time")
        me = Owner(host=platform.node(), process=process, slot=-1)
        self._watcher = Watcher(me)
        self._losses = Losses(
            self._submissions,
            submission,
            self._job,
            restart,
            watcher=self._watcher,
            grace_s=grace_of(self._engine.policy, submission.resources),
        )
        self._trusted: set[tuple[str, int]] = set()
        wanted = set(submission.tasks[0])
        self._cells = [cell for cell in self._revision.sweep.cells if cell.id in wanted]
        self._pool: Pool
        self._slots = 0
        self._failures = Failures()
        self._unaware: set[int] = set()  # began before the last losses
        self._start_s = time.monotonic()
        before = self._submissions.driver(submission.number)
        self._written = _Written(before.beat if before else 0, "", 0.0)
        self._stopping = False
        self._parent = os.getppid()
        self._end_s = 0.0

    def run(self) -> int:
        """Drive workers until nothing is left to do, and return the exit code."""
        number = self._submission.number
        if (over := self._submissions.is_closed(number, 0)) is not None:
            self._say(f"this submission was given up ({over.word} {over.detail}): it starts nothing")
            return 0
        signal.signal(signal.SIGTERM, self._stop)
        try:
            self._pool = Pool(LOCAL if self._settings.address == LOCAL else AUTO, self._submission.resources)
        except (OSError, RuntimeError, ValueError) as error:  # what Ray raises if there is no cluster
            raise InfrastructureError(
                f"Ray cannot be reached: {' '.join(str(error).split())[:300]}"
            ) from error
        try:
            code = self._drive()
        finally:
            self._pool.close()
        if self._stopping:  # no report: the cluster records who stopped it
            return RELEASED
        self._report(code)
        return code

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _drive(self) -> int:
        """Poll Ray and the store until there is an exit code, through short outages of the store."""
        scan_s = answered_s = time.monotonic()
        happened: list[Ended] = []
        troubled = False
        self._tell(force=True)  # the store has to show this start before its workers
        while True:
            happened += self._pool.wait(POLL_S)
            if os.getppid() != self._parent:  # Ray calls the job over, so another may run
                self._stopping = True
            for address in self._pool.leave_draining():
                self._say(f"node {address} is about to go: its worker saves a checkpoint")
            self._tell()
            if self._stopping or self._failures.given_up:
                if self._is_empty():
                    return REFUSED
                continue
            now_s = time.monotonic()
            # scan early if a worker has ended, but not while the store fails
            if now_s < scan_s and (troubled or not happened):
                continue
            try:
                if self._round(happened):
                    self._say("nothing is left to do")
                    return 0
                answered_s, troubled = time.monotonic(), False
            except (OSError, InfrastructureError) as error:  # workers wait for the store as well
                if now_s - answered_s > OUTAGE_S:
                    raise
                troubled = True
                self._say(f"the store does not answer: {error}")
            # a slow store is scanned less often
            scan_s = now_s + max(SCAN_S, SCAN_SHARE * (time.monotonic() - now_s))

    def _is_empty(self) -> bool:
        """Stop all workers, drop those that take too long, and return whether none is left."""
        self._pool.stop()
        now_s = time.monotonic()
        grace_s = grace_of(self._engine.policy, self._submission.resources)
        self._end_s = self._end_s or now_s + grace_s + MARGIN_S
        for slot in list(self._pool.running) if now_s > self._end_s else ():
            self._pool.drop(slot)
        return not self._pool.running

    def _round(self, happened: list[Ended]) -> bool:
        """Scan the store, and adjust the workers to it; return whether nothing is left to do.

        Args:
            happened: workers that have ended; each is removed once it is handled.

        Raises:
            OSError, InfrastructureError: the store did not answer.
        """
        if self._submissions.is_closed(self._submission.number, 0) is not None:
            self._say("this submission was given up meanwhile: its workers save checkpoints and end")
            self._stopping = True
            return False
        work, num_lost = self._look(), len(self._losses.known)
        while happened:
            self._take(happened.pop(0), work.busy)
        self._losses.settle(work.busy, self._pool.lives)
        if len(self._losses.known) > num_lost:
            self._tell(force=True)  # before the start of successors, which read it
            self._unaware = set(self._pool.running)
            work = self._look()
        self._adjust(work)
        return not work.waiting and not self._pool.running and not self._pool.pending

    def _look(self) -> OpenWork:
        """Return what there is to do, from the store."""
        sweep = self._revision.sweep
        requests = self._ledger.requests(sweep.name)
        summary = summarize_requests(requests, [cell.id for cell in sweep.cells])
        reader = EvidenceReader(
            self._ledger,
            sweep.stages.values(),
            observer=self._watcher,
            count_attempts=False,
            trusted=self._trusted,
            specs=sweep.specs,
        )
        retries = self._engine.policy.retries
        busy: set[int] = set()

        def status(digest: str) -> StageStatus:
            evidence = reader.evidence(digest)
            last = evidence.attempts[-1] if evidence.attempts else None
            if last is not None and last.claim is not None and last.end is None:
                owner = last.claim.owner
                if (owner.job, owner.restart_count) == (self._job, self._restart):
                    busy.add(owner.slot)
                    self._failures.claimed.add(owner.slot)
            return stage_status(evidence, summary.budget(digest, retries))

        claimable, waiting = num_claimable(self._cells, sweep.stages, status, cancelled=summary.cancelled)
        return OpenWork(claimable, waiting, frozenset(busy))

    def _adjust(self, work: OpenWork) -> None:
        """Start workers that there is work for, and drop superfluous ones that wait for resources."""
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
            self._start()

    def _start(self) -> None:
        self._slots += 1
        submission = self._submission
        code = submission.code.digest if submission.code else ""
        args = (self._ledger.objects.url, self._revision.sweep.name, str(submission.number))
        start = start_of(self._ledger.objects, code, WORKER, *args, str(self._slots), str(self._restart))
        environment = {name: str(value) for name, value in self._settings.environment.items()}
        environment |= self._pool.monitor()
        self._pool.start(
            self._slots,
            list(start.argv),
            {**environment, **start.environment},
            submission.folder,
            avoid=self._failures.avoided,
        )

    def _take(self, ended: Ended, busy: Collection[int]) -> None:
        """Record how a worker ended; `busy` are the slots whose attempts have no end."""
        said, num_claims = _last_words(ended)
        if num_claims:
            self._failures.claimed.add(ended.slot)
        claimed = ended.slot in self._failures.claimed
        name = f"worker {ended.slot} on {ended.address or 'no node'}"
        if ended.code in _WELL or (ended.told and not claimed):  # stopped before it could work
            self._failures.end_well(ended.node)
            return
        if ended.code is None:
            why = f"{name} was lost: {said or 'the process that kept it was killed'}"
            self._losses.doubt(ended.slot, ended.node, ended.cause, why)
        else:
            how = f"was killed by signal {-ended.code}" if ended.code < 0 else f"ended with code {ended.code}"
            why = f"{name} {how}: {said}".rstrip(": ")
            if ended.slot in busy:
                self._losses.add(ended.slot, ended.cause, why)
        # the end of a node is no failure of its workers
        if claimed or not ended.node or self._pool.lives(ended.node):
            self._say(why)
            self._failures.end_badly(ended.slot, ended.node, why, gives_up=not busy)

    def _tell(self, *, force: bool = False) -> None:
        """Write the status record when it has changed, and otherwise every `BEAT_S` seconds."""
        now_s = time.monotonic()
        if not force and now_s - self._written.at_s < TELL_S:
            return
        pending = len(self._pool.pending)
        text = demand(len(self._pool.running), pending)
        # only then, because the list of nodes is a costly query
        if pending:
            text += waits_for(self._submission.resources, self._pool.nodes())
        if not force and text == self._written.text and now_s - self._written.at_s < BEAT_S:
            return
        self._written = _Written(self._written.beat + 1, text, now_s)
        lost, at = tuple(self._losses.known), provenance.now()
        status = DriverStatus(restart=self._restart, beat=self._written.beat, text=text, lost=lost, at=at)
        try:
            self._submissions.drive(self._submission.number, status)
            self._show_log()
        except OSError as error:
            self._say(f"the store does not take what is seen: {error}")

    def _show_log(self) -> None:
        """Upload the log to a bucket, where others cannot see it as it grows."""
        if not self._ledger.objects.in_place:
            name = self._revision.sweep.name
            self._ledger.objects.upload(layout.job_logs(name, self._submission.number))

    def _report(self, code: int) -> None:
        why = self._failures.given_up or EXITS[0][1]
        report = JobExitReport(
            code=code,
            cause=cause_of_code(code),
            why=why,
            claimed=bool(self._failures.claimed) or code == 0,
            restart=self._restart,
            node=platform.node(),
            seconds=round(time.monotonic() - self._start_s, 1),
            at=provenance.now(),
        )
        with contextlib.suppress(OSError):
            self._submissions.report(self._submission.number, 0, self._restart, report)
            self._show_log()

    def _say(self, line: str) -> None:
        log_line(line, self._log)


def _last_words(ended: Ended) -> tuple[str, int]:
    """Return a worker's last message and the number of its claims; without JSON, its last line and 0."""
    lines = ended.said.strip().splitlines() or [""]
    with contextlib.suppress(ValueError, TypeError, KeyError):
        told = json.loads(lines[-1])
        return str(told["said"]), int(told["claims"])
    return lines[-1][:300], 0


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
        return RayDriver(ledger, sweep, submission, restart, log).run()
    except SweepError as error:
        log_line(f"error: {error}", log)
        return error.exit_code
    except OSError as error:
        log_line(f"error: the store does not answer: {error}", log)
        return InfrastructureError.exit_code


if __name__ == "__main__":
    sys.exit(main())
