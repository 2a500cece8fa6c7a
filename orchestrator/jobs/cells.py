"""Cells and the jobs of schedulers: which cells are held, and how free ones become arrays.

Two mistakes must not happen: calling a cell failed because a scheduler was silent, and giving one cell to two
jobs. A cell is therefore *held* from the recorded intent until its task is proved to be over.

A free cell becomes part of an array, the unit of submission, whose tasks need the same resources. Cells are
split in three steps::

    cells by resources       a b c d e (1 GPU)          f (4 GPUs)
    tasks of 2 cells         [a b] [c d] [e]            [f]
    arrays of 2 tasks        [[a b] [c d]]  [[e]]       [[f]]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from orchestrator.core.failure import Cause
from orchestrator.core.records import Owner, Request
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
from orchestrator.jobs.records import JobEnd, Resources, Submission

NOBODY = Asker()
LIMIT = "LIMIT"
"""The word for the end of a task that never became a job because of a limit on jobs."""

MAX_FRUITLESS = 3
"""How many jobs of a cell may end without error and leave it undone since it was last requested."""

_ENDED_WELL = frozenset({"COMPLETED", "EXITED", "SUCCEEDED"})
_FROM_OUTSIDE = frozenset({Cause.CANCELLED, Cause.PREEMPTED, Cause.NODE_LOST})


def scheduler_of(submission: Submission) -> tuple[str, str]:
    """Return which scheduler a submission belongs to: its launcher and its cluster."""
    return submission.launcher, submission.cluster


_NOT_ASKED = JobListing(problem="the scheduler was not asked")


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
        self._ends: dict[str, list[tuple[Submission, JobEnd]]] = {}
        self._owners: dict[tuple[str, str, int], tuple[SubmissionState, int]] = {}
        for each in filed:
            submission = each.submission
            for index, cells in enumerate(submission.tasks):
                if each.accepted is not None:
                    # Job numbers are unique only within a cluster.
                    self._owners[(submission.cluster, each.accepted.job, index)] = (each, index)
                over = self.job(each, index).over
                for cell in cells:
                    # Submissions are in order, so the last assignment is the cell's latest task.
                    self._last[cell] = (each, index)
                    if over is not None:
                        self._ends.setdefault(cell, []).append((submission, over))

    def _answer(self, filed: SubmissionState) -> JobListing:
        """Return the reply of the scheduler that a submission belongs to."""
        if isinstance(self._answers, JobListing):
            return self._answers
        return self._answers.get(scheduler_of(filed.submission), JobListing())

    def job(self, filed: SubmissionState, index: int) -> Judgement:
        """Return the decision about one task, made once."""
        # By identity: a submission is not hashable, and lives as long as this object.
        key = (id(filed), index)
        if key not in self._judgements:
            self._judgements[key] = judge(filed, index, self._answer(filed), self._asker)
        return self._judgements[key]

    def news(self) -> list[tuple[SubmissionState, tuple[JobEnd, ...]]]:
        """Return, by submission, the tasks that are over and have no recorded end yet."""
        ends = ((each, [self.job(each, index).over for index in each.open_tasks]) for each in self.filed)
        return [(each, known) for each, over in ends if (known := tuple(end for end in over if end))]

    def older(self, revision: int, cells: Collection[str]) -> Counter[int]:
        """Count open tasks by earlier revision, except tasks that hold one of `cells`."""
        return Counter(
            each.submission.revision
            for each in self.filed
            if each.submission.revision < revision
            for index in each.open_tasks
            if self.job(each, index).over is None and not set(each.submission.tasks[index]) & set(cells)
        )

    def missing(self) -> dict[tuple[int, int], tuple[SubmissionState, str]]:
        """Return, by submission and index, the tasks whose absence from a listing counts, and why."""
        return {
            (each.submission.number, index): (each, judgement.absence)
            for each in self.filed
            for index in each.open_tasks
            if (judgement := self.job(each, index)).absence
        }

    def stuck(self) -> list[tuple[str, JobObservation]]:
        """Return the waiting jobs that can never start as they are, with their names."""
        return [
            (each.name(index), seen)
            for each in self.filed
            for index in each.open_tasks
            if (seen := self.job(each, index).seen) is not None and seen.stuck
        ]

    def failed_starts(self) -> Iterator[tuple[SubmissionState, str]]:
        """Yield the waiting jobs that a node failed to start, with the scheduler's name of the task."""
        for each in self.filed:
            for index in each.open_tasks:
                if (seen := self.job(each, index).seen) is not None and seen.may_release:
                    yield each, each.name(index)

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

    def of_cell(self, cell: str) -> Judgement | None:
        """Return the last job of a cell; None when it was never submitted."""
        return self.job(*self._last[cell]) if cell in self._last else None

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
        if (over := self.job(filed, index).over) is not None:
            return over if owner.restart_count <= over.restarts else None
        for lost in filed.driver.lost if filed.driver else ():
            # A driver starts workers itself, so it can prove the end of one while its job runs on.
            if lost.slot in (None, owner.slot) and owner.restart_count <= lost.restart:
                return JobEnd(index=index, word="LOST", cause=lost.cause, detail=lost.why)
        seen = self.job(filed, index).seen
        if seen is None or seen.restarts is None or owner.restart_count >= seen.restarts:
            return None
        # The job has been restarted since: the owner of an earlier start is gone.
        word, cause = seen.before_word or "REQUEUED", seen.before or Cause.NODE_LOST
        return JobEnd(index=index, word=word, cause=cause, detail="the scheduler starts it anew")

    def held(self) -> dict[str, int]:
        """Return the number of the submission that holds each cell, unless its job is seen to end."""
        last = ((cell, self.job(*found)) for cell, found in self._last.items())
        return {cell: job.filed.submission.number for cell, job in last if not job.is_ending}

    def spent(
        self, cell: str, asked: Request | None, retries: Mapping[str, int]
    ) -> tuple[Cause, int, JobEnd] | None:
        """Return the failure cause whose budget a cell's jobs have used up.

        Jobs that end well and leave the cell undone count too, or they would be submitted for ever.

        Args:
            cell: Id of the cell.
            asked: The last launch or rerun that named the cell, which gave it a fresh budget; see `_counts`.
            retries: Failure cause to number of retries.

        Returns:
            (cause, count, last end); None while every budget suffices.
        """
        since = [each for each in self._ends.get(cell, ()) if _counts(cell, *each, asked)]
        recent = [over for _, over in since]
        fruitless = [over for over in recent if over.cause is None and over.word in _ENDED_WELL]
        if len(fruitless) > MAX_FRUITLESS:
            return Cause.UNKNOWN, len(fruitless), fruitless[-1]
        # A job with twice the memory or time answers the first end for lack of it, which costs no retry.
        answered = {
            (over.cause, rung): over
            for sent, over in reversed(since)
            if (rung := sent.resources.rung_of(over.cause))[0] < rung[1]
        }
        ends = [over for over in recent if over.cause and not any(over is each for each in answered.values())]
        for cause, count in Counter(over.cause for over in ends).items():
            if cause is not None and count > retries.get(cause, 0):
                return cause, count, next(over for over in reversed(ends) if over.cause is cause)
        return None

    def count(self, cell: str, cause: Cause) -> int:
        """Return how often a cell's jobs ever ended by a cause."""
        return sum(over.cause is cause for _, over in self._ends.get(cell, ()))


def _counts(cell: str, sent: Submission, over: JobEnd, asked: Request | None) -> bool:
    """Return whether the end of a job counts against the budget that the last request gave to its cell.

    Of jobs of earlier requests, those that were open then, or are later, count by what the scheduler or its
    users do to them. Other ends may come from the earlier settings or code; the request gets its own jobs.
    """
    if asked is None or sent.request >= asked.number:
        return True
    if over.cause not in _FROM_OUTSIDE or asked.last_submission is None:
        return False
    return sent.number > asked.last_submission or asked.held.get(cell) == sent.number


_SETTLED = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.BLOCKED, State.STOPPED})


def with_jobs(
    cell: str, status: CellStatus, jobs: Jobs, *, asked: Request | None, retries: Mapping[str, int]
) -> CellStatus:
    """Combine a cell's state in the store with the evidence of its job.

    The job ranks lowest: product and end record outrank it, and so does a fresh heartbeat, see `is_beating`.

    Args:
        cell, status: Id of the cell, and its status from the store alone.
        jobs: Jobs of its revision.
        asked: The last launch or rerun that named the cell.
        retries: Failure cause to number of retries.
    """
    job = jobs.of_cell(cell)
    # States that follow from stronger evidence in the store stay as they are.
    if job is None or status.state in _SETTLED:
        return status
    gone = jobs.spent(cell, asked, retries) if job.phase is Phase.OVER else None
    # An owner may be silent for ever: then jobs that found nothing to do, all retries spent, end the wait.
    if status.state is State.RUNNING and (gone is None or gone[2].cause is not None):
        return status
    if job.phase is Phase.UNKNOWN:
        return status._replace(state=State.UNKNOWN, reason=job.reason)
    if job.phase is Phase.QUEUED:
        return status._replace(state=State.QUEUED, reason=job.reason)
    # The job runs, but its worker has not claimed this cell, so the cell still waits.
    if job.phase is Phase.RUNNING:
        return status._replace(state=State.QUEUED, reason=f"{job.reason}; {status.reason}")
    if gone is not None:
        cause, count, over = gone
        tries = "" if count == 1 else f", {count} jobs"
        name = job.name if job.over == over else ""
        what = ending(name, over) if name else f"a job ended {over.word}: {over.detail}"
        return status._replace(state=State.FAILED, reason=f"{what} ({cause}{tries})", cause=cause)
    return status._replace(reason=f"{job.reason}; {status.reason}")


class JobArray(NamedTuple):
    """Cells that need the same resources, as the tasks of one array.

    Attributes:
        resources: Resources of each task.
        tasks: Cell ids of each task.
        max_running: How many tasks may run at once; None for no limit.
        is_later: Whether the tasks start when those of other arrays have rehearsed for them.
    """

    resources: Resources
    tasks: tuple[tuple[str, ...], ...]
    max_running: int | None = None
    is_later: bool = False


def grouped(
    wanted: Iterable[tuple[str, Resources]],
    *,
    cells_per_job: int,
    max_array_size: int,
    max_running: int | None,
    held: int = 0,
    max_jobs: int | None = None,
    later: Collection[str] = (),
) -> tuple[list[JobArray], int]:
    """Group cells by resources into arrays.

    Args:
        wanted: Cells in order, each with the resources that it needs.
        cells_per_job: Number of cells that one task works on.
        max_array_size: Maximum number of tasks in one array.
        max_running: Maximum number of tasks that run at once, shared among the arrays; None for no limit.
        held: Number of the sweep's tasks that already wait or run.
        max_jobs: Maximum number of tasks that wait or run at once; None for no limit.
        later: Cells that others rehearse for. Their arrays come last.

    Returns:
        The arrays, and the number of cells that are not submitted now because of a limit.
    """
    by_resources: dict[tuple[bool, Resources], list[str]] = {}
    for cell, resources in sorted(wanted, key=lambda each: each[0] in later):
        by_resources.setdefault((cell in later, resources), []).append(cell)
    arrays: list[JobArray] = []
    left, behind = max_jobs - held if max_jobs is not None else None, 0
    for (is_later, resources), cells in by_resources.items():
        tasks = [tuple(cells[start : start + cells_per_job]) for start in range(0, len(cells), cells_per_job)]
        if left is not None:
            # `left` is negative when a user lowered the limit while jobs were waiting.
            behind += sum(map(len, tasks[max(0, left) :]))
            tasks = tasks[: max(0, left)]
            left -= len(tasks)
        arrays += [
            JobArray(resources, tuple(tasks[start : start + max_array_size]), is_later=is_later)
            for start in range(0, len(tasks), max_array_size)
        ]
    throttled, idle = _throttled(arrays, max_running)
    return throttled, behind + idle


def _throttled(arrays: list[JobArray], max_running: int | None) -> tuple[list[JobArray], int]:
    """Divide `max_running` among arrays in proportion to their tasks, giving each at least one.

    A scheduler limits each array separately, so the limit of the sweep must be divided. With 10 in total,
    arrays of 30, 9 and 1 tasks may run 7, 2 and 1 at once. Beyond `max_running` arrays, the rest gets nothing
    and waits.

    Returns:
        The arrays with their limits, and the number of cells in arrays that got nothing.
    """
    if max_running is None:
        return arrays, 0
    most = max(0, max_running)
    arrays, rest = arrays[:most], arrays[most:]
    total = sum(len(group.tasks) for group in arrays)
    # Rounding down never exceeds the limit; only the minimum of one does.
    shares = [max(1, most * len(group.tasks) // total) for group in arrays]
    while sum(shares) > most:  # take back from the largest what the minimum of one added
        shares[shares.index(max(shares))] -= 1
    throttled = [
        group._replace(max_running=min(share, len(group.tasks)))
        for group, share in zip(arrays, shares, strict=True)
    ]
    return throttled, sum(len(task) for group in rest for task in group.tasks)


def cut(group: JobArray, most: int) -> tuple[JobArray, JobArray]:
    """Split an array in two, the first with at most `most` tasks.

    The two divide `max_running` between them. A second part with a `max_running` of 0 has to wait.
    """
    tasks, running = group.tasks[:most], group.max_running
    if running is None:
        return group._replace(tasks=tasks), group._replace(tasks=group.tasks[most:])
    # The first part is submitted now, so it gets its share first.
    first = min(running, len(tasks))
    rest = group._replace(tasks=group.tasks[most:], max_running=running - first)
    return group._replace(tasks=tasks, max_running=first), rest


def first_try(filed: Sequence[SubmissionState], most: int) -> tuple[int, bool]:
    """Return how many tasks to submit first, and whether the scheduler was at a limit last time.

    A scheduler that refused a submission for a limit has room for about as many tasks as have ended since.
    Each refusal is recorded in the store, so larger tries would fill it with refusals. Without any end, one
    task is tried, since limits may change.

    Args:
        filed: All submissions, oldest first.
        most: Maximum number of tasks of one submission.
    """
    last = filed[-1] if filed else None
    if last is None or all(over.word != LIMIT for over in last.over.values()):
        return most, False
    ended = sum(
        # Tasks that never became jobs have freed no room.
        at >= last.submission.at and each.over[index].word not in (LIMIT, "REFUSED")
        for each in filed
        for index, at in each.closed_at.items()
    )
    return min(most, max(1, ended)), True
