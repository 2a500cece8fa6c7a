"""Reading and writing the records of a sweep's submissions."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from orchestrator.core.evidence import Evidence, Spending
from orchestrator.core.records import Request
from orchestrator.core.settings import Policy, RunSettings
from orchestrator.core.state import CellStatus, State
from orchestrator.errors import DamagedRecord, InfrastructureError
from orchestrator.jobs.judgement import Asker, SubmissionState, ending
from orchestrator.jobs.records import (
    BEAT_S,
    EXITS,
    Accepted,
    DriverStatus,
    JobEnd,
    JobEndBatch,
    JobExitReport,
    LostSlot,
    LostWorker,
    Submission,
    WorkerRecord,
    cause_of_code,
    spending,
)
from orchestrator.provenance import age_s, is_gone, now
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger

STATUS_S = 2.0
"""Shortest interval between two status records of a driver, in seconds."""


class Submissions:
    """The submissions of one sweep.

    Args:
        ledger: The store.
        sweep: Name of the sweep.
    """

    def __init__(self, ledger: Ledger, sweep: str) -> None:
        self._ledger, self._sweep = ledger, sweep

    def read(
        self, problems: list[str] | None = None, remarks: list[str] | None = None
    ) -> list[SubmissionState]:
        """Read all submissions with their records, oldest first.

        Args:
            problems: Receives a line for each unreadable submission; None to ignore these.
            remarks: Receives a line for each unreadable record of a submission. Its scheduler is asked
                instead; None to ignore these.

        Raises:
            InfrastructureError: The store did not answer.
        """
        found = []
        for number in self._ledger.record_numbers(layout.submissions(self._sweep)):
            submission, problem = self._ledger.read(
                layout.submission(self._sweep, number), Submission, number=number
            )
            if submission is not None:
                found.append(self._filed(submission, [] if remarks is None else remarks))
            elif problems is not None and problem:
                problems.append(problem)
        return found

    def _filed(self, submission: Submission, remarks: list[str]) -> SubmissionState:
        """Read the other records of a submission."""
        number = submission.number
        accepted, problem = self._ledger.read(layout.accepted(self._sweep, number), Accepted)
        remarks += [problem] if problem else []
        over: dict[int, JobEnd] = {}
        closed_at: dict[int, str] = {}
        for each, at in self._ends(number, remarks):
            # Two processes may record the end of one task; the first record counts.
            if over.setdefault(each.index, each) is each:
                closed_at[each.index] = at
        # Most submissions are finished, and need neither reports nor a driver's status.
        if len(over) == len(submission.tasks):
            return SubmissionState(submission, accepted, over, {}, closed_at)
        driver, _ = self._ledger.read(layout.driver(self._sweep, number), DriverStatus)
        return SubmissionState(submission, accepted, over, self._reports(number, over), closed_at, driver)

    def _ends(self, number: int, remarks: list[str] | None = None) -> Iterator[tuple[JobEnd, str]]:
        """Yield the recorded ends of a submission's tasks, each with the time of its record."""
        for k in self._ledger.record_numbers(layout.closings(self._sweep, number)):
            key = layout.closing(self._sweep, number, k)
            closing, problem = self._ledger.read(key, JobEndBatch, number=k)
            if problem and remarks is not None:
                remarks.append(problem)
            if closing is not None:
                yield from ((over, closing.at) for over in closing.over)

    def _reports(self, number: int, over: dict[int, JobEnd]) -> dict[int, JobExitReport]:
        """Return the last exit report of each task without a recorded end."""
        last: dict[int, int] = {}
        for name in self._ledger.listing(layout.job_reports(self._sweep, number)).files:
            index, _, rest = name.partition(".")
            restart, _, suffix = rest.partition(".")
            if suffix == "json" and index.isdigit() and restart.isdigit() and int(index) not in over:
                # A job that was restarted has one report per start, and only the last one matters.
                last[int(index)] = max(int(restart), last.get(int(index), 0))
        found = {}
        for task, start in last.items():
            report, _ = self._ledger.read(layout.job_report(self._sweep, number, task, start), JobExitReport)
            if report is not None:
                found[task] = report
        return found

    def submission(self, number: int) -> Submission | None:
        """Read one intent; return None when it is absent or unreadable."""
        return self._ledger.read(layout.submission(self._sweep, number), Submission, number=number)[0]

    def job_of(self, number: int) -> str | None:
        """Return the scheduler's id of a submission; None when it is not recorded."""
        accepted, _ = self._ledger.read(layout.accepted(self._sweep, number), Accepted)
        return accepted.job if accepted else None

    def is_closed(self, number: int, index: int) -> JobEnd | None:
        """Return the recorded end of a task; None when there is none."""
        return next((over for over, _ in self._ends(number) if over.index == index), None)

    def file(self, submission: Submission) -> bool:
        """Record an intent under its number.

        Returns:
            False when another process has used this number. The caller must then read everything again and
            decide again, because that process may have submitted the same cells.
        """
        return self._ledger.create(
            layout.submission(self._sweep, submission.number), submission, submission.nonce
        )

    def accept(self, number: int, job: str, *, at: str) -> None:
        """Record the scheduler's id of a submission."""
        record = Accepted(nonce=new_nonce(), job=job, at=at)
        self._ledger.create(layout.accepted(self._sweep, number), record, record.nonce)

    def close(self, number: int, over: Sequence[JobEnd], *, at: str) -> None:
        """Record the ends of tasks."""
        # Whoever else records ends at this moment takes another number, and both records stay.
        while True:
            k = max(self._ledger.record_numbers(layout.closings(self._sweep, number)), default=0) + 1
            record = JobEndBatch(nonce=new_nonce(), number=k, over=tuple(over), at=at)
            if self._ledger.create(layout.closing(self._sweep, number, k), record, record.nonce):
                return

    def driver(self, number: int) -> DriverStatus | None:
        """Read a driver's status; return None when it is absent or unreadable."""
        return self._ledger.read(layout.driver(self._sweep, number), DriverStatus)[0]

    def drive(self, number: int, driver: DriverStatus) -> None:
        """Write the status of a submission's driver. Only the driver itself does that."""
        self._ledger.objects.put(layout.driver(self._sweep, number), self._ledger.encode(driver))

    def report(self, number: int, index: int, restart: int, report: JobExitReport) -> None:
        """Write the exit report of one start of a job. Only that start does that."""
        self._ledger.objects.put(
            layout.job_report(self._sweep, number, index, restart), self._ledger.encode(report)
        )


class _Written(NamedTuple):
    """The last status record: its number, its text, and when it was written."""

    beat: int
    text: str
    at_s: float


class DriverRecords:
    """What one start of a driver writes about itself: its status, its log, and how it ended.

    Args:
        ledger: The store.
        sweep: Name of the sweep.
        number: Number of the submission.
        restart: How often the driver was restarted.
    """

    def __init__(self, ledger: Ledger, sweep: str, number: int, restart: int) -> None:
        self._objects = ledger.objects
        self._submissions = Submissions(ledger, sweep)
        self._logs = layout.job_logs(sweep, number)
        self._number = number
        self._restart = restart
        self._start_s = time.monotonic()
        before = self._submissions.driver(number)
        self._written = _Written(before.beat if before else 0, "", 0.0)

    def submission_end(self) -> JobEnd | None:
        """Return the recorded end of the submission; None while it is open."""
        return self._submissions.is_closed(self._number, 0)

    def is_status_due(self) -> bool:
        """Return whether the last status record is old enough for another one."""
        return time.monotonic() - self._written.at_s >= STATUS_S

    def write_status(self, text: str, lost: Sequence[LostSlot], *, force: bool) -> None:
        """Write the status record when its text has changed, and otherwise every `BEAT_S` seconds.

        Args:
            text: Activity of the workers.
            lost: Workers that are gone.
            force: Whether to write it in any case.

        Raises:
            OSError: The store did not answer.
        """
        now_s = time.monotonic()
        if not force and text == self._written.text and now_s - self._written.at_s < BEAT_S:
            return
        self._written = _Written(self._written.beat + 1, text, now_s)
        status = DriverStatus(
            restart=self._restart, beat=self._written.beat, text=text, lost=tuple(lost), at=now()
        )
        self._submissions.drive(self._number, status)
        self._objects.share(self._logs)

    def write_report(self, code: int, why: str, *, claimed: bool) -> None:
        """Write the exit report, if the store answers.

        Args:
            code: Exit code of the driver.
            why: Why it fails; "" without a failure.
            claimed: Whether any of its workers claimed a stage.
        """
        report = JobExitReport(
            code=code,
            cause=cause_of_code(code),
            why=why or EXITS[0][1],
            claimed=claimed or code == 0,
            restart=self._restart,
            node=platform.node(),
            seconds=round(time.monotonic() - self._start_s, 1),
            at=now(),
        )
        with contextlib.suppress(OSError):
            self._submissions.report(self._number, 0, self._restart, report)
            self._objects.share(self._logs)


class WorkerRecords:
    """The records of a sweep's workers. Those that have ended never change, and are read once.

    Args:
        ledger: The store.
        sweep: Name of the sweep.
    """

    def __init__(self, ledger: Ledger, sweep: str) -> None:
        self._ledger, self._sweep = ledger, sweep
        self._ended: dict[str, WorkerRecord] = {}

    def read(self) -> list[WorkerRecord]:
        """Return the records of all workers, in the order of their names; leave out unreadable ones.

        Raises:
            OSError, InfrastructureError: The store did not answer.
        """
        prefix = layout.workers(self._sweep)
        keys = [f"{prefix}/{name}" for name in sorted(self._ledger.objects.list(prefix).files)]
        ledger = self._ledger.having_read([key for key in keys if key not in self._ended])
        for key in keys:
            if key not in self._ended:
                record, _ = ledger.read(key, WorkerRecord)
                if record is not None:
                    self._ended[key] = record
        found = [self._ended[key] for key in keys if key in self._ended]
        self._ended = {key: record for key, record in self._ended.items() if record.has_ended}
        return found

    def put(self, record: WorkerRecord) -> None:
        """Write the record of a worker. Only the worker itself does that."""
        self._ledger.objects.put(layout.worker(self._sweep, record.nonce), self._ledger.encode(record))


def spending_now(ledger: Ledger, sweep: str, policy: Policy) -> Spending | None:
    """Return what a sweep has spent, by one look at its workers; None if the policy sets no budget.

    Args:
        ledger: The store.
        sweep: Name of the sweep.
        policy: Of its newest launch.
    """
    if not policy.budget.is_set:
        return None
    workers = WorkerRecords(ledger, sweep).read()
    running = [each for each in workers if each.is_running and is_gone(each.owner.process) is not True]
    found = spending(workers, running, checkpoint_s=policy.checkpoint_interval_s)
    return found._replace(at=time.time())


def asker() -> Asker:
    """Return the effective user of this process from the system, ignoring LOGNAME and USER."""
    # The module exists on Unix only, and few commands need it.
    import pwd

    uid = os.geteuid()
    try:
        return Asker(uid, pwd.getpwuid(uid).pw_name)
    except KeyError:
        return Asker(uid, str(uid))


def request_of(ledger: Ledger, sweep: str, number: int) -> Request:
    """Read the request that a submission was made for.

    Raises:
        InfrastructureError: the store did not answer.
        DamagedRecord: the request cannot be read.
    """
    request, problem = ledger.read(layout.request(sweep, number), Request, number=number)
    if request is None:
        raise DamagedRecord(
            f"request {number} of {sweep} cannot be read: {problem or 'it is not there'}",
            fix="launch again: a new request takes its place",
        )
    return request


def settings_of(request: Request) -> RunSettings:
    """Return the settings of a launch or rerun request.

    Raises:
        InfrastructureError: the request is neither, so it has no settings.
    """
    if request.settings is None:
        raise InfrastructureError(f"request {request.number} is a {request.verb}: it starts nothing")
    return request.settings


def gone_of(filed: Sequence[SubmissionState], *, grace_s: float = 0.0) -> Iterator[LostWorker]:
    """Yield the jobs, and the workers of drivers, that are over and ended badly.

    An attempt of such a worker can be taken over at once. Without this evidence, another worker would wait
    until the lease of the attempt expires.

    Args:
        filed: all submissions.
        grace_s: how long workers may still save a checkpoint after their job was found over.
    """
    for each in filed:
        if each.accepted is None:
            # without an id it never became a job, so no worker can have claimed anything
            continue
        cluster, job = each.submission.cluster, each.accepted.job
        for index, over in each.over.items():
            if over.cause is not None and age_s(each.closed_at.get(index, "")) >= grace_s:
                yield LostWorker(
                    cluster=cluster,
                    job=job,
                    array_index=index,
                    restart_count=over.restarts,
                    cause=over.cause,
                    evidence=ending(f"{job}_{index}", over),
                )
        # no grace here: a driver applies it before it records a worker as lost
        for lost in each.driver.lost if each.driver else ():
            yield LostWorker(
                cluster=cluster,
                job=job,
                slot=lost.slot,
                restart_count=lost.restart,
                cause=lost.cause,
                evidence=lost.why,
            )


def is_beating(cell: CellStatus, evidence: Callable[[str], Evidence], *, of: str = "") -> bool:
    """Return whether an owner of a cell's running stages gave a sign of life not long ago.

    The age of a heartbeat compares the clocks of two machines, so it may be twice the lease.

    Args:
        cell: its status.
        evidence: returns the evidence about a stage by digest.
        of: id of the only cell for which an owner counts; any by default.
    """
    for digest, stage in cell.stages.items():
        last = evidence(digest).attempts[-1] if stage.state is State.RUNNING else None
        if last is None or last.claim is None or (of and last.claim.cell != of):
            continue
        if age_s(last.heartbeat.at if last.heartbeat else last.claim.at) < 2 * last.claim.lease_s:
            return True
    return False
