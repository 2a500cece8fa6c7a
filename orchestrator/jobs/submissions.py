"""The records of what a sweep gave to schedulers: reading them together, and adding each in its order."""

from __future__ import annotations

import os
from collections.abc import Sequence

from orchestrator.jobs.judgement import Asker, SubmissionState
from orchestrator.jobs.records import Accepted, DriverStatus, JobEnd, JobEndBatch, JobExitReport, Submission
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger


class Submissions:
    """The submissions of one sweep.

    Args:
        ledger: the store.
        sweep: its name.
    """

    def __init__(self, ledger: Ledger, sweep: str) -> None:
        self._ledger, self._sweep = ledger, sweep

    def read(self, problems: list[str] | None = None) -> list[SubmissionState]:
        """Reads all submissions, oldest first; what is unreadable is named in `problems`.

        Raises:
            InfrastructureError: the store did not answer.
        """
        found = []
        for number in self._ledger.record_numbers(layout.submissions(self._sweep)):
            submission, problem = self._ledger.read(
                layout.submission(self._sweep, number), Submission, number=number
            )
            if submission is not None:
                found.append(self._filed(submission))
            elif problems is not None and problem:
                problems.append(problem)
        return found

    def _filed(self, submission: Submission) -> SubmissionState:
        number = submission.number
        accepted, _ = self._ledger.read(layout.accepted(self._sweep, number), Accepted)
        over: dict[int, JobEnd] = {}
        closed_at: dict[int, str] = {}
        for k in self._ledger.record_numbers(layout.closings(self._sweep, number)):
            closing, _ = self._ledger.read(layout.closing(self._sweep, number, k), JobEndBatch, number=k)
            for each in closing.over if closing else ():
                if over.setdefault(each.index, each) is each and closing is not None:
                    closed_at[each.index] = closing.at
        if len(over) == len(submission.tasks):
            return SubmissionState(submission, accepted, over, {}, closed_at)
        driver, _ = self._ledger.read(layout.driver(self._sweep, number), DriverStatus)
        return SubmissionState(submission, accepted, over, self._reports(number, over), closed_at, driver)

    def _reports(self, number: int, over: dict[int, JobEnd]) -> dict[int, JobExitReport]:
        """The last report of each task that is not closed."""
        last: dict[int, int] = {}
        for name in self._ledger.objects.list(layout.job_reports(self._sweep, number)).files:
            index, _, rest = name.partition(".")
            restart, _, suffix = rest.partition(".")
            if suffix == "json" and index.isdigit() and restart.isdigit() and int(index) not in over:
                last[int(index)] = max(int(restart), last.get(int(index), 0))
        found = {}
        for task, start in last.items():
            report, _ = self._ledger.read(layout.job_report(self._sweep, number, task, start), JobExitReport)
            if report is not None:
                found[task] = report
        return found

    def submission(self, number: int) -> Submission | None:
        """Reads one intent, None when it is absent or unreadable."""
        return self._ledger.read(layout.submission(self._sweep, number), Submission, number=number)[0]

    def job_of(self, number: int) -> str | None:
        """Returns the id that the scheduler gave to a submission, None when it is not known."""
        accepted, _ = self._ledger.read(layout.accepted(self._sweep, number), Accepted)
        return accepted.job if accepted else None

    def is_closed(self, number: int, index: int) -> JobEnd | None:
        """Returns how a task was found over, None when it was not."""
        for k in self._ledger.record_numbers(layout.closings(self._sweep, number)):
            closing, _ = self._ledger.read(layout.closing(self._sweep, number, k), JobEndBatch, number=k)
            for each in closing.over if closing else ():
                if each.index == index:
                    return each
        return None

    def file(self, submission: Submission) -> bool:
        """Creates an intent under its number; False when another has that number: decide anew."""
        return self._ledger.create(
            layout.submission(self._sweep, submission.number), submission, submission.nonce
        )

    def accept(self, number: int, job: str, *, at: str) -> None:
        """Records the id that the scheduler gave."""
        record = Accepted(nonce=new_nonce(), job=job, at=at)
        self._ledger.create(layout.accepted(self._sweep, number), record, record.nonce)

    def close(self, number: int, over: Sequence[JobEnd], *, at: str) -> None:
        """Records tasks that are over."""
        while True:
            k = max(self._ledger.record_numbers(layout.closings(self._sweep, number)), default=0) + 1
            record = JobEndBatch(nonce=new_nonce(), number=k, over=tuple(over), at=at)
            if self._ledger.create(layout.closing(self._sweep, number, k), record, record.nonce):
                return

    def driver(self, number: int) -> DriverStatus | None:
        """Reads what a driver last saw, None when there is none or it cannot be read."""
        return self._ledger.read(layout.driver(self._sweep, number), DriverStatus)[0]

    def drive(self, number: int, driver: DriverStatus) -> None:
        """Puts what the driver of a submission sees; it alone writes it."""
        self._ledger.objects.put(layout.driver(self._sweep, number), self._ledger.encode(driver))

    def report(self, number: int, index: int, restart: int, report: JobExitReport) -> None:
        """Puts the last words of a job's start; it alone writes them."""
        self._ledger.objects.put(
            layout.job_report(self._sweep, number, index, restart), self._ledger.encode(report)
        )


def asker() -> Asker:
    """Return the effective user of this process by the system's word, whatever LOGNAME or USER hold."""
    import pwd

    uid = os.geteuid()
    try:
        return Asker(uid, pwd.getpwuid(uid).pw_name)
    except KeyError:
        return Asker(uid, str(uid))
