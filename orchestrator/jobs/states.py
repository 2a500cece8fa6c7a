"""Which cells to give to a scheduler, and what its jobs say of their states. Pure.

It knows submissions, closings and what a scheduler answered. It never calls a cell failed because a scheduler
was silent, and never lets two jobs hold one cell: a cell is held from the intent on, until it is known that
its task is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from orchestrator.core.failure import Cause
from orchestrator.core.records import Owner
from orchestrator.core.state import CellStatus, State
from orchestrator.jobs.judgement import (
    Asker,
    JobListing,
    JobObservation,
    Judgement,
    Phase,
    SubmissionState,
    ending,
    is_ours,
    judge,
)
from orchestrator.jobs.records import JobEnd, Submission

NOBODY = Asker()

LIMIT = "LIMIT"
"""The word for the end of a task that a limit on jobs kept from becoming one."""


MAX_FRUITLESS = 3
"""How many jobs of a cell may end well since it was asked for, and leave it undone. Ours."""

_ENDED_WELL = frozenset({"COMPLETED", "EXITED", "SUCCEEDED"})


def scheduler_of(submission: Submission) -> tuple[str, str]:
    """Returns which scheduler to ask about a submission: its launcher, and its cluster."""
    return submission.launcher, submission.cluster


_NOT_ASKED = JobListing(problem="the scheduler was not asked")


class CellJob(NamedTuple):
    """What is known of the last task that a cell was given to.

    Attributes:
        task: index of the task.
        name: for people and for the scheduler: ``1234_5``, "" before it has an id.
    """

    submission: Submission
    task: int
    name: str
    phase: Phase
    reason: str
    seen: JobObservation | None = None
    over: JobEnd | None = None


class Jobs:
    """The jobs of a sweep. A cell that two revisions share, by its id, is one cell: a job of either holds it.

    Args:
        filed: all its submissions, oldest first.
        answer: about their open tasks, of the one scheduler that they were given to, or of each.
        asker: who asked: an answer may hide the jobs of other users.
    """

    def __init__(
        self,
        filed: Sequence[SubmissionState] = (),
        answer: JobListing | Mapping[tuple[str, str], JobListing] = _NOT_ASKED,
        asker: Asker = NOBODY,
    ) -> None:
        self.filed = filed
        self._answers = answer
        self._asker = asker
        self._judgements: dict[tuple[int, int], Judgement] = {}
        self._last: dict[str, tuple[SubmissionState, int]] = {}
        self._ends: dict[str, list[tuple[int, JobEnd]]] = {}
        self._owners: dict[tuple[str, str, int], tuple[SubmissionState, int]] = {}
        for each in filed:
            submission = each.submission
            for index, cells in enumerate(submission.tasks):
                if each.accepted is not None:
                    self._owners[(submission.cluster, each.accepted.job, index)] = (each, index)
                over = self._over(each, index)
                for cell in cells:
                    self._last[cell] = (each, index)
                    if over is not None:
                        self._ends.setdefault(cell, []).append((submission.request, over))

    def _answer(self, filed: SubmissionState) -> JobListing:
        """What the scheduler said that a submission was given to."""
        if isinstance(self._answers, JobListing):
            return self._answers
        return self._answers.get(scheduler_of(filed.submission), JobListing())

    def _judge(self, filed: SubmissionState, index: int) -> Judgement:
        key = (id(filed), index)
        if key not in self._judgements:
            self._judgements[key] = judge(filed, index, self._answer(filed), self._asker)
        return self._judgements[key]

    def _over(self, filed: SubmissionState, index: int) -> JobEnd | None:
        return self._judge(filed, index).over

    def news(self) -> list[tuple[SubmissionState, tuple[JobEnd, ...]]]:
        """Returns, by submission, the tasks that are over and not closed yet."""
        found = []
        for each in self.filed:
            over = [o for index in each.open_tasks if (o := self._over(each, index)) is not None]
            if over:
                found.append((each, tuple(over)))
        return found

    def older(self, revision: int, cells: Collection[str]) -> Counter[int]:
        """Counts open tasks by the earlier revision that they are of, but not those with one of `cells`."""
        return Counter(
            each.submission.revision
            for each in self.filed
            if each.submission.revision < revision
            for index in each.open_tasks
            if self._over(each, index) is None and not set(each.submission.tasks[index]) & set(cells)
        )

    def missing(self) -> dict[tuple[int, int], tuple[SubmissionState, str]]:
        """Return, by submission and index, the tasks whose absence from an answer counts, and why."""
        return {
            (each.submission.number, index): (each, judgement.absence)
            for each in self.filed
            for index in each.open_tasks
            if (judgement := self._judge(each, index)).absence
        }

    def stuck(self) -> list[tuple[str, JobObservation]]:
        """Returns the waiting jobs that can never start as they are, by name, with what to change."""
        return [
            (each.name(index), seen)
            for each in self.filed
            for index in each.open_tasks
            if (seen := self._judge(each, index).seen) is not None and seen.stuck
        ]

    def knows(self, filed: SubmissionState) -> bool:
        """Whether the scheduler tells of any task of a submission, or of what was left of it."""
        return filed.accepted is not None and any(
            job == filed.accepted.job and is_ours(filed, seen) is not False
            for (job, _), seen in self._answer(filed).seen.items()
        )

    @property
    def problem(self) -> str:
        """Why the scheduler's answer is missing, "" when it is there or nothing was to be asked."""
        problems = [self._answer(each).problem for each in self.filed if each.open_tasks]
        return next((problem for problem in problems if problem), "")

    def of_cell(self, cell: str) -> CellJob | None:
        """Returns the last job of a cell, None when it was never given to a scheduler."""
        found = self._last.get(cell)
        return None if found is None else self.job(*found)

    def job(self, filed: SubmissionState, index: int) -> CellJob:
        """Says what is known of one task."""
        found = self._judge(filed, index)
        return CellJob(
            filed.submission, index, filed.name(index), found.phase, found.reason, found.seen, found.over
        )

    def fate(self, owner: Owner) -> JobEnd | None:
        """Returns the end of an attempt's owner when the scheduler proves it, None when it proves nothing.

        Proof is a terminal state of that very restart, or a later restart of the same job.
        """
        found = self._owners.get((owner.cluster, owner.job, owner.array_index)) if owner.job else None
        if found is None:
            return None
        filed, index = found
        if (over := self._over(filed, index)) is not None:
            return over if owner.restart_count <= over.restarts else None
        for lost in filed.driver.lost if filed.driver else ():
            if lost.slot in (None, owner.slot) and owner.restart_count <= lost.restart:
                return JobEnd(index=index, word="LOST", cause=lost.cause, detail=lost.why)
        seen = self._judge(filed, index).seen
        if seen is None:
            return None
        if seen.restarts is not None and owner.restart_count < seen.restarts:
            word = seen.before_word or "REQUEUED"
            return JobEnd(
                index=index,
                word=word,
                cause=seen.before or Cause.NODE_LOST,
                detail="the scheduler starts it anew",
            )
        return None

    def spent(
        self, cell: str, since_request: int, retries: Mapping[str, int]
    ) -> tuple[Cause, int, JobEnd] | None:
        """Returns by what a cell's jobs ended more often than is retried: (cause, count, last end).

        Jobs that end well and leave the cell undone count too, lest they be submitted for ever.

        Args:
            cell: its id.
            since_request: ends of jobs that an earlier request asked for do not count.
            retries: cause to number of retries.
        """
        recent = [over for request, over in self._ends.get(cell, ()) if request >= since_request]
        fruitless = [over for over in recent if over.cause is None and over.word in _ENDED_WELL]
        if len(fruitless) > MAX_FRUITLESS:
            return Cause.UNKNOWN, len(fruitless), fruitless[-1]
        ends = [over for over in recent if over.cause]
        for cause, count in Counter(over.cause for over in ends).items():
            if cause is not None and count > retries.get(cause, 0):
                return cause, count, next(over for over in reversed(ends) if over.cause is cause)
        return None

    def count(self, cell: str, cause: Cause) -> int:
        """Counts how often a cell's jobs ended by a cause, ever."""
        return sum(over.cause is cause for _, over in self._ends.get(cell, ()))


_SETTLED = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.BLOCKED})


def with_jobs(
    cell: str, status: CellStatus, jobs: Jobs, *, since_request: int, retries: Mapping[str, int]
) -> CellStatus:
    """Adds to a cell's state what its job tells, which ranks below product, end and heartbeat.

    Args:
        cell: its id.
        status: by the store alone.
        jobs: of its revision.
        since_request: the last launch or rerun that named the cell.
        retries: cause to number of retries.
    """
    job = jobs.of_cell(cell)
    if job is None or status.state in _SETTLED or status.state is State.RUNNING:
        return status
    if job.phase is Phase.UNKNOWN:
        return status._replace(state=State.UNKNOWN, reason=job.reason)
    if job.phase is Phase.QUEUED:
        return status._replace(state=State.QUEUED, reason=job.reason)
    if job.phase is Phase.RUNNING:
        return status._replace(state=State.QUEUED, reason=f"{job.reason}; {status.reason}")
    if (gone := jobs.spent(cell, since_request, retries)) is not None:
        cause, count, over = gone
        tries = "" if count == 1 else f", {count} jobs"
        name = job.name if job.over == over else ""
        reason = (
            f"{ending(name, over) if name else f'a job ended {over.word}: {over.detail}'} ({cause}{tries})"
        )
        return status._replace(state=State.FAILED, reason=reason, cause=cause)
    return status._replace(reason=f"{job.reason}; {status.reason}")
