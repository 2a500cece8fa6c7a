"""Which cells a scheduler holds, and how its jobs change the states of cells. Pure functions.

Two mistakes must not happen: calling a cell failed because a scheduler was silent, and giving one cell to two
jobs. A cell is therefore *held* from the recorded intent until its task is proved to be over.
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
"""The word for the end of a task that never became a job because of a limit on jobs."""


MAX_FRUITLESS = 3
"""How many jobs of a cell may end without error and leave the cell undone, counted since it was last
requested.
"""

_ENDED_WELL = frozenset({"COMPLETED", "EXITED", "SUCCEEDED"})


def scheduler_of(submission: Submission) -> tuple[str, str]:
    """Return which scheduler a submission belongs to: its launcher and its cluster."""
    return submission.launcher, submission.cluster


_NOT_ASKED = JobListing(problem="the scheduler was not asked")


class CellJob(NamedTuple):
    """The last task that worked on a cell, with the decision about it.

    Attributes:
        submission: Submission of the task.
        task: Index of the task.
        name: Name for people and the scheduler: ``1234_5``, "" before it has an id.
        phase: Phase of the task.
        reason: The evidence, for people.
        seen: The scheduler's observation; None when there is none.
        over: The end, None while it is not proved.
    """

    submission: Submission
    task: int
    name: str
    phase: Phase
    reason: str
    seen: JobObservation | None = None
    over: JobEnd | None = None


class Jobs:
    """The jobs of a sweep. A cell that two revisions share by its id is one cell, held by a job of either.

    Args:
        filed: All submissions of the sweep, oldest first.
        answer: Reply about their open tasks: of their only scheduler, or by launcher and cluster.
        asker: User who queried, because a reply may hide the jobs of other users.
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
                    # Job numbers are unique only within a cluster.
                    self._owners[(submission.cluster, each.accepted.job, index)] = (each, index)
                over = self._over(each, index)
                for cell in cells:
                    # Submissions are in order, so the last assignment is the cell's latest task.
                    self._last[cell] = (each, index)
                    if over is not None:
                        self._ends.setdefault(cell, []).append((submission.request, over))

    def _answer(self, filed: SubmissionState) -> JobListing:
        """Return the reply of the scheduler that a submission belongs to."""
        if isinstance(self._answers, JobListing):
            return self._answers
        return self._answers.get(scheduler_of(filed.submission), JobListing())

    def _judge(self, filed: SubmissionState, index: int) -> Judgement:
        # By identity: a submission is not hashable, and lives as long as this object.
        key = (id(filed), index)
        if key not in self._judgements:
            self._judgements[key] = judge(filed, index, self._answer(filed), self._asker)
        return self._judgements[key]

    def _over(self, filed: SubmissionState, index: int) -> JobEnd | None:
        return self._judge(filed, index).over

    def news(self) -> list[tuple[SubmissionState, tuple[JobEnd, ...]]]:
        """Return, by submission, the tasks that are over and have no recorded end yet."""
        found = []
        for each in self.filed:
            over = [o for index in each.open_tasks if (o := self._over(each, index)) is not None]
            if over:
                found.append((each, tuple(over)))
        return found

    def older(self, revision: int, cells: Collection[str]) -> Counter[int]:
        """Count open tasks by earlier revision, except tasks that hold one of `cells`."""
        return Counter(
            each.submission.revision
            for each in self.filed
            if each.submission.revision < revision
            for index in each.open_tasks
            if self._over(each, index) is None and not set(each.submission.tasks[index]) & set(cells)
        )

    def missing(self) -> dict[tuple[int, int], tuple[SubmissionState, str]]:
        """Return, by submission and index, the tasks whose absence from a listing counts, and why."""
        return {
            (each.submission.number, index): (each, judgement.absence)
            for each in self.filed
            for index in each.open_tasks
            if (judgement := self._judge(each, index)).absence
        }

    def stuck(self) -> list[tuple[str, JobObservation]]:
        """Return the waiting jobs that can never start as they are, with their names."""
        return [
            (each.name(index), seen)
            for each in self.filed
            for index in each.open_tasks
            if (seen := self._judge(each, index).seen) is not None and seen.stuck
        ]

    def knows(self, filed: SubmissionState) -> bool:
        """Return whether the scheduler lists any task of a submission."""
        return filed.accepted is not None and any(
            job == filed.accepted.job and is_ours(filed, seen) is not False
            for (job, _), seen in self._answer(filed).seen.items()
        )

    @property
    def problem(self) -> str:
        """Why a scheduler's reply is missing; "" when there is one or none was needed."""
        problems = [self._answer(each).problem for each in self.filed if each.open_tasks]
        return next((problem for problem in problems if problem), "")

    def of_cell(self, cell: str) -> CellJob | None:
        """Return the last job of a cell; None when it was never submitted."""
        found = self._last.get(cell)
        return None if found is None else self.job(*found)

    def job(self, filed: SubmissionState, index: int) -> CellJob:
        """Return the decision about one task."""
        found = self._judge(filed, index)
        return CellJob(
            filed.submission, index, filed.name(index), found.phase, found.reason, found.seen, found.over
        )

    def fate(self, owner: Owner) -> JobEnd | None:
        """Return the end of an attempt's owner when it is proved; the attempt then needs no lease.

        An owner is one *start* of a job, so restart counts are compared. An end after restart 2 proves the
        end of the owners of restarts 0 to 2, and nothing about restart 3. Proof is the end of that start, a
        driver's report that its worker is lost, or a later start of the same job.
        """
        found = self._owners.get((owner.cluster, owner.job, owner.array_index)) if owner.job else None
        if found is None:
            return None
        filed, index = found
        if (over := self._over(filed, index)) is not None:
            return over if owner.restart_count <= over.restarts else None
        for lost in filed.driver.lost if filed.driver else ():
            # A driver starts workers itself, so it can prove the end of one while its job runs on.
            if lost.slot in (None, owner.slot) and owner.restart_count <= lost.restart:
                return JobEnd(index=index, word="LOST", cause=lost.cause, detail=lost.why)
        seen = self._judge(filed, index).seen
        if seen is None:
            return None
        # The job has been restarted since: the owner of an earlier start is gone.
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
        """Return the failure cause whose budget a cell's jobs have used up.

        Jobs that end without error and leave the cell undone count too. Otherwise they would be submitted for
        ever.

        Args:
            cell: Id of the cell.
            since_request: Number of the last request that named the cell; ends of earlier jobs do not count.
            retries: Failure cause to number of retries.

        Returns:
            (cause, count, last end); None while every budget suffices.
        """
        # A new launch or rerun gives the cell a fresh budget.
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
        """Return how often a cell's jobs ever ended by a cause."""
        return sum(over.cause is cause for _, over in self._ends.get(cell, ()))


_SETTLED = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.BLOCKED})


def with_jobs(
    cell: str, status: CellStatus, jobs: Jobs, *, since_request: int, retries: Mapping[str, int]
) -> CellStatus:
    """Combine a cell's state in the store with the evidence of its job.

    The job ranks lowest: product, end record and heartbeat outrank it.

    Args:
        cell: Id of the cell.
        status: Its status from the store alone.
        jobs: Jobs of its revision.
        since_request: Number of the last launch or rerun that named the cell.
        retries: Failure cause to number of retries.
    """
    job = jobs.of_cell(cell)
    # States that follow from stronger evidence in the store stay as they are.
    if job is None or status.state in _SETTLED or status.state is State.RUNNING:
        return status
    if job.phase is Phase.UNKNOWN:
        return status._replace(state=State.UNKNOWN, reason=job.reason)
    if job.phase is Phase.QUEUED:
        return status._replace(state=State.QUEUED, reason=job.reason)
    # The job runs, but its worker has not claimed this cell, so the cell still waits.
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
