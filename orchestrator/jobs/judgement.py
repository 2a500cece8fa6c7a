"""The decision whether a task of a scheduler is waiting, running, over or unknown. Pure functions.

A task is over only by a positive statement. This is a recorded end in the store, a final state that the
controller or accounting reports for this very job of this very cluster, or the job's own exit report. A job
that is missing from a listing is not over for that reason: the query may have used a filter, another cluster
may have replied, or the jobs of other users may be hidden. Treating it as over would give its cells a second
set of jobs. Absence counts only where the listing is complete for this job, and the reason is then recorded
with the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import NamedTuple

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.jobs.records import Accepted, DriverStatus, JobEnd, JobExitReport, Submission

SKEW_S = 2.0
"""Accepted clock difference within a cluster, in seconds; shorter than a restart of a controller."""

_OUR_NAMES = re.compile(r".+\.\d+\.\w{8}")
"""Pattern of submission names: the sweep, a number, and eight random characters."""


class Phase(StrEnum):
    """The phase of a task."""

    QUEUED = "queued"
    RUNNING = "running"
    OVER = "over"
    UNKNOWN = "unknown"


class JobObservation(NamedTuple):
    """A scheduler's current report about one task.

    Attributes:
        phase: Whether the task waits, runs or is over.
        word: The scheduler's own name of the state, such as ``PENDING``.
        name: Name of the job; "" when it was not reported.
        submitted_s: Time of submission, or of the last requeue, in seconds since 1970 by the scheduler's
            clock.
        reason: Why the task waits.
        start: Expected or actual start, for people.
        node: Machine on which it runs or ran.
        restarts: Number of restarts; None when it was not reported.
        before: Cause of the end before the last restart; None when there was none.
        before_word: The scheduler's name of that end.
        over: The end, if `phase` is OVER.
        listed: Whether the task is in the scheduler's current listing; otherwise only accounting reports it.
        may_return: Whether the scheduler may restart the task after `over`. A complete listing rules that
            out.
        stuck: What to change when the task can never start as it is, "" when it may start.
        may_release: Whether it is held since a node failed to start it, and may be released.
        is_ending: Whether it runs no more, though its processes may still end.
    """

    phase: Phase
    word: str
    reason: str = ""
    start: str = ""
    node: str = ""
    restarts: int | None = None
    before: Cause | None = None
    before_word: str = ""
    over: JobEnd | None = None
    name: str = ""
    listed: bool = True
    may_return: bool = False
    stuck: str = ""
    may_release: bool = False
    submitted_s: float | None = None
    is_ending: bool = False


class JobListing(NamedTuple):
    """A scheduler's reply to one query about many jobs.

    Attributes:
        seen: Observations by (job, index). A missing entry means unknown.
        problem: Why there is no reply, "" when there is one.
        complete: Whether it lists all live jobs of the user who queries. A missing job is then over, or never
            was.
        gap: Why it is not complete, "" when it is.
        everyone: Whether it also lists the jobs of other users.
        scope: Which scheduler replied, for the record of an end that follows from absence alone.
        controller: Address of the controller; see `Submission`.
    """

    seen: Mapping[tuple[str, int], JobObservation] = {}
    problem: str = ""
    complete: bool = False
    gap: str = ""
    everyone: bool = True
    scope: str = "the scheduler"
    controller: str = ""


class Asker(NamedTuple):
    """The user who queries a scheduler: the effective user of the process.

    Attributes:
        uid: Number of the user; -1 when unknown.
        name: Name in the system's user database; the number when it has none.
    """

    uid: int = -1
    name: str = ""


class SubmissionState(NamedTuple):
    """A submission with all of its records in the store.

    Attributes:
        submission: The intent.
        accepted: The scheduler's id; None before it is recorded.
        over: Recorded ends by task index.
        reports: The last exit report of each task without a recorded end.
        closed_at: Time at which each end was recorded.
        driver: The last status of a driver, None without one.
    """

    submission: Submission
    accepted: Accepted | None = None
    over: Mapping[int, JobEnd] = {}
    reports: Mapping[int, JobExitReport] = {}
    closed_at: Mapping[int, str] = {}
    driver: DriverStatus | None = None

    @property
    def heard_at(self) -> str:
        """Time of the last proof that the job exists, from the scheduler or the driver; "" for none."""
        times = [self.accepted.at] if self.accepted else []
        return max([*times, *([self.driver.at] if self.driver else [])], default="")

    @property
    def open_tasks(self) -> list[int]:
        """Indexes of the tasks without a recorded end."""
        return [index for index in range(len(self.submission.tasks)) if index not in self.over]

    def name(self, index: int) -> str:
        """Return a task's name for people and the scheduler: ``1234_5``, "" before it has an id."""
        return f"{self.accepted.job}_{index}" if self.accepted else ""


class Judgement(NamedTuple):
    """The decision about one task.

    Attributes:
        filed: Submission of the task.
        task: Index of the task.
        phase: The phase.
        reason: The evidence, for people.
        seen: The scheduler's observation; None when there is none.
        over: The end, if `phase` is OVER.
        absence: Why the task's absence from the listing counts, "" when it does not.
    """

    filed: SubmissionState
    task: int
    phase: Phase
    reason: str
    seen: JobObservation | None = None
    over: JobEnd | None = None
    absence: str = ""

    @property
    def name(self) -> str:
        """Name of the task for people and the scheduler: ``1234_5``, "" before it has an id."""
        return self.filed.name(self.task)

    @property
    def is_ending(self) -> bool:
        """Whether the task is over, or the scheduler is ending it."""
        return self.over is not None or (self.seen is not None and self.seen.is_ending)


def judge(filed: SubmissionState, index: int, answer: JobListing, asker: Asker) -> Judgement:
    """Decide the phase of a task from all evidence. The first rule that applies decides.

    A task that is wrongly called over costs a second set of jobs; one that is wrongly held costs only time.
    Doubt therefore always gives "unknown", which holds the task's cells.

    1. The store has its recorded end: over.
    2. It has no id yet: unknown.
    3. The scheduler lists it: the reported phase. An end after which the scheduler may restart the job counts
       only if the listing is complete. A running state that only accounting reports is overruled by the exit
       report.
    4. A complete listing shows its number for another job: the scheduler has lost it, so it is over. A
       different name alone does not prove that, because people rename jobs (`is_ours`).
    5. The job wrote an exit report and requested no restart: over.
    6. Otherwise: unknown. If the listing is complete for this job, its absence counts, but only after a while
       and a second query (`orchestrator.api.reconciling`).

    Args:
        filed: The submission.
        index: Index of the task.
        answer: Reply of its scheduler.
        asker: User who queried.
    """
    accepted, name, judgement = filed.accepted, filed.name(index), partial(Judgement, filed, index)

    def ended(over: JobEnd, seen: JobObservation | None = None) -> Judgement:
        return judgement(Phase.OVER, ending(name, over), seen, over)

    # Rules 1 and 2: what the store alone proves.
    if (closed := filed.over.get(index)) is not None:
        return ended(closed)
    if accepted is None:
        submission = filed.submission
        waits = f"submission {submission.number} of {submission.at} was not answered by the scheduler"
        return judgement(Phase.UNKNOWN, f"{waits}; `sweep reconcile` settles it")
    # From here on, an empty `gap` means: the listing is complete for this job.
    gap = answer.problem or listing_gap(filed.submission, answer, asker)
    seen = None if answer.problem else answer.seen.get((accepted.job, index))
    report = filed.reports.get(index)
    # Rule 4.
    if seen is not None and seen.name not in ("", filed.submission.name):
        ours = None if gap else is_ours(filed, seen)
        if not gap and (other := _of_another_name(filed, index, seen, ours)) is not None:
            return other
        # An observation that may be another job's is ignored.
        seen = seen if ours else None
    # Rule 3: the scheduler lists it.
    if seen is not None and seen.over is not None and not (seen.may_return and gap):
        return ended(_completed(seen.over, filed, report), seen)
    # Accounting may show a job as running for ever, for example after a controller's loss of data.
    last_words = report is not None and not report.requeued
    if seen is not None and not (seen.phase in (Phase.UNKNOWN, Phase.OVER) and last_words):
        return _not_over(filed, index, seen, gap)
    # Rule 5: the job's own word.
    if report is not None and last_words:
        return ended(_reported(index, report))
    # Rule 6: silence is no proof.
    if answer.problem:
        return judgement(Phase.UNKNOWN, f"job {name}: {answer.problem}")
    why = gap or "the scheduler does not list it"
    absence = "" if gap else f"{answer.scope} lists all jobs of {_user(filed.submission)}, and not this one"
    return judgement(Phase.UNKNOWN, f"job {name}, accepted at {accepted.at}: {why}", absence=absence)


def _of_another_name(
    filed: SubmissionState, index: int, seen: JobObservation, ours: bool | None
) -> Judgement | None:
    """Judge a task whose number a complete listing shows under another name.

    Args:
        filed, index: of the task.
        seen: what the listing shows.
        ours: whether it is the task's job, by `is_ours`.

    Returns:
        None if it is, or if the observation proves nothing about the task.
    """
    name = filed.name(index)
    # Accounting keeps earlier jobs of the same number, so only a current listing proves the loss.
    if ours is False and seen.listed:
        lost = f"the scheduler lost it, and gave its number to {seen.name}"
        over = JobEnd(index=index, word="FORGOTTEN", cause=Cause.NODE_LOST, detail=lost)
        return Judgement(filed, index, Phase.OVER, ending(name, over), None, over)
    if ours is None and seen.over is None:
        why = f"job {name} is {seen.word} under the name {seen.name}: it was renamed, or is another job"
        return Judgement(filed, index, Phase.UNKNOWN, why, seen._replace(phase=Phase.UNKNOWN))
    return None


def _not_over(filed: SubmissionState, index: int, seen: JobObservation, gap: str) -> Judgement:
    """Judge a task that the scheduler reports, and whose end is not proven."""
    judgement, name = partial(Judgement, filed, index), filed.name(index)
    if seen.over is not None:
        ended = f"job {name} ended {seen.word}, and may be started anew: {gap}"
        return judgement(Phase.UNKNOWN, ended, seen._replace(phase=Phase.UNKNOWN, over=None))
    if gap and not seen.listed:
        return judgement(Phase.UNKNOWN, f"job {name} is {seen.word} by its accounts: {gap}", seen)
    return judgement(seen.phase, _living(name, seen) + _of_driver(filed.driver), seen)


def listing_gap(submission: Submission, answer: JobListing, asker: Asker) -> str:
    """Return why a job that is missing from a listing may still live, "" when its absence counts."""
    if not answer.complete:
        return answer.gap or "the scheduler does not list it"
    if not same_controller(submission, answer.controller):
        was = f"{submission.cluster} was reached at {submission.controller}"
        return f"{was}, and this one at {answer.controller}: it may be another of the same name"
    if answer.everyone or is_own(submission, asker):
        return ""
    return f"it is a job of {_user(submission)}, and the scheduler shows {asker.name} only their own"


def is_ours(filed: SubmissionState, seen: JobObservation) -> bool | None:
    """Return whether a listed job with a submission's number is that submission's job.

    A controller that lost its last seconds may assign a number again, and people rename jobs. Numbers are
    unique at any one time. A job that had the number when our acceptance was recorded is therefore ours,
    whatever its name::

        accepted at 10:00, listed "renamed", submitted 09:59     ours: renamed
        accepted at 10:00, listed "other",   submitted 10:05     not ours: the number was assigned again
        the same after a restart, which renews its time          None: undecided

    Args:
        filed: The submission, with its number.
        seen: The job that has this number.

    Returns:
        None when nothing decides: a job under another name that was restarted.
    """
    if not seen.name or filed.submission.name in seen.name:  # sites may add a prefix or suffix
        return True
    # A name of our form belongs to another submission: nobody renames a job to one.
    if filed.accepted is None or _OUR_NAMES.fullmatch(seen.name):
        return False
    if seen.submitted_s is not None and filed.accepted.at:
        accepted_s = datetime.fromisoformat(filed.accepted.at).timestamp()
        if seen.submitted_s <= accepted_s + SKEW_S:
            return True
    return None if seen.restarts else False


def same_controller(submission: Submission, controller: str) -> bool:
    """Return whether a controller may be the submission's.

    Two clusters can have the same name, so addresses are compared where both are recorded.
    """
    before, now = set(submission.controller.split()), set(controller.split())
    return not before or not now or bool(before & now)


def is_own(submission: Submission, asker: Asker) -> bool:
    """Return whether a submission's jobs belong to the user who queries."""
    # The number decides where it was recorded: a name in the environment survives `su`.
    if submission.uid is not None:
        return submission.uid == asker.uid
    return bool(asker.name) and _user(submission) == asker.name


def _user(submission: Submission) -> str:
    """Return the name of the user who submitted, for people and older records without a number."""
    return submission.by.rpartition("@")[0] or submission.by or "its user"


def _completed(over: JobEnd, filed: SubmissionState, report: JobExitReport | None) -> JobEnd:
    """Complete a scheduler's end with the driver's restart count and the job's own exit report."""
    if filed.driver is not None:
        over = msgspec.structs.replace(over, restarts=filed.driver.restart)
    # The report of an earlier start does not explain this end.
    if report is None or report.requeued or report.restart != over.restarts:
        return over
    return msgspec.structs.replace(over, detail=report.why or over.detail, idle=not report.claimed)


def _reported(index: int, report: JobExitReport) -> JobEnd:
    """Return the end of a task from its exit report alone."""
    return JobEnd(
        index=index,
        word="EXITED",
        cause=report.cause,
        detail=report.why,
        node=report.node,
        restarts=report.restart,
        seconds=report.seconds,
        idle=not report.claimed,
    )


def ending(name: str, over: JobEnd) -> str:
    """Return a sentence about how a job ended."""
    parts = [f"job {name} ended {over.word}" if name else "it was never a job"]
    if over.node:
        parts[0] += f" on {over.node}"
    if over.detail:
        parts.append(over.detail)
    return ": ".join(parts)


def _living(name: str, seen: JobObservation) -> str:
    if seen.phase is Phase.RUNNING:
        return f"job {name} runs on {seen.node}" if seen.node else f"job {name} runs"
    if seen.phase is Phase.UNKNOWN:
        return f"job {name} is {seen.word}, {seen.reason or 'of which nothing is known here'}"
    again = f" to be started anew after {seen.before_word}" if seen.before_word else ""
    why = f": {seen.reason}" if seen.reason and seen.reason != "None" else ""
    never = f"; it can never start so: {seen.stuck}" if seen.stuck else ""
    start = f", expected to start at {seen.start}" if seen.start else ""
    return f"job {name} waits{again}{why}{start}{never}"


def _of_driver(driver: DriverStatus | None) -> str:
    return f"; {driver.text}" if driver and driver.text else ""
