"""A scheduler in memory, as submissions and passes over jobs see it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.failure import Cause
from orchestrator.errors import InfrastructureError
from orchestrator.jobs.judgement import JobListing, JobObservation, Phase, SubmissionState
from orchestrator.jobs.records import JobEnd, Resources, Submission
from orchestrator.launchers.base import Limits, SubmitOutcome
from orchestrator.simulation.world import SimulatedProcess

SCHEDULER = "tests.simulation.scheduler:SimulatedScheduler"
CLUSTER = "simulated"
SETTLE_S = 20.0
REMEMBERED_S = 15.0
"""For how long the scheduler lists what is over, in seconds."""
NEVER = "the scheduler never had it"

now: list[Any] = []
"""The run that is played; schedulers are made by name alone."""


@dataclass(eq=False)
class Task:
    """A task of a job.

    Attributes:
        number: id of the job.
        index: of the task in it.
        submission: that it belongs to.
        word: state, as the scheduler names it.
        since_s: when it came into this state.
        submitted_s: when it was accepted, or requeued.
        restarts: how often it was started anew.
        claims: whether its present start may claim stages.
        process: that runs.
    """

    number: str
    index: int
    submission: Submission
    word: str = "PENDING"
    since_s: float = 0.0
    submitted_s: float = 0.0
    accepted_s: float = 0.0
    restarts: int = 0
    claims: bool = False
    process: SimulatedProcess | None = None

    @property
    def is_live(self) -> bool:
        return self.word in ("PENDING", "RUNNING")


class SimulatedSubmitter:
    """Submits to the simulated scheduler; see `orchestrator.launchers.base.Submitter`."""

    name = SCHEDULER
    cells_per_job = 1
    max_running: int | None = None
    max_jobs: int | None = None
    settle_s = SETTLE_S
    attached = False
    file = "job.sh"

    def hardware(self) -> None:
        return None

    def gpus(self) -> None:
        return None

    def meet(self, store: str, mark: bytes) -> None:
        pass

    def limits(self, *, dry_run: bool = False) -> Limits:
        return Limits(CLUSTER, 10)

    def resources(self, cells: Sequence[Any], **_: Any) -> list[tuple[str, Resources]]:
        return [(subject.cell, Resources()) for subject, _, _ in cells]

    def excluded(self, *_: Any, **__: Any) -> tuple[str, ...]:
        return ()

    def logs(self, sweep: str, number: int) -> str:
        return ""

    def text(self, submission: Submission, **_: Any) -> str:
        return submission.name

    def submit(self, submission: Submission, text: str) -> SubmitOutcome:
        return now[0].accept(submission)

    def find(self, submission: Submission) -> str | None:
        now[0].asked()
        if now[0].blank_s > now[0].world.now_s:
            raise InfrastructureError("the scheduler starts")
        named = [task for task in now[0].tasks if task.submission.name == submission.name]
        return named[0].number if named and named[0].word != "LOST" else None

    def explain(self, filed: SubmissionState, over: JobEnd, logs: Path) -> JobEnd:
        return over


class SimulatedScheduler:
    """Asks the simulated scheduler; see `orchestrator.launchers.base.Scheduler`."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster

    def jobs(self, ids: Iterable[str]) -> JobListing:
        run, wanted = now[0], set(ids)
        try:
            run.asked()
        except InfrastructureError as error:
            return JobListing(problem=error.what)
        is_blank = run.blank_s > run.world.now_s
        seen = {}
        for task in () if is_blank else run.tasks:
            if task.number in wanted and (found := self._observed(run, task)) is not None:
                seen[task.number, task.index] = found
        return JobListing(seen=seen, complete=True, scope="the simulated scheduler")

    def _observed(self, run: Any, task: Task) -> JobObservation | None:
        if task.word == "LOST":
            return None
        if not task.is_live and run.world.now_s - task.since_s > REMEMBERED_S:
            return None
        over = None
        if not task.is_live:
            cause = None if task.word == "COMPLETED" else Cause.NODE_LOST
            over = JobEnd(index=task.index, word=task.word, cause=cause, restarts=task.restarts)
        phase = {"PENDING": Phase.QUEUED, "RUNNING": Phase.RUNNING}.get(task.word, Phase.OVER)
        return JobObservation(phase, task.word, name=task.submission.name, restarts=task.restarts, over=over)

    def waiting(self, tasks: Sequence[str]) -> dict[str, str]:
        return {}

    def cancel(self, submission: Submission, tasks: Sequence[str]) -> None:
        now[0].asked()
        now[0].cancel(tasks)

    def release(self, tasks: Sequence[str]) -> None:
        pass
