"""What is known of one task that was given to a scheduler: the evidence, and the one decision over it. Pure.

A task is over only by a positive statement: a closing in the store, a terminal state that the controller or
accounting gives to this very job of this very cluster, or the job's own last words. That a scheduler does not
list a job says nothing by itself: the question may have had a filter, another cluster may have answered, or
the jobs of other users may be hidden. Absence counts only where the answer is complete for this job; then the
reason is kept with the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.jobs.records import Accepted, DriverStatus, JobEnd, JobExitReport, Submission

SKEW_S = 2.0
"""How much the clocks of a cluster may differ: less than the restart of a controller takes."""

_OUR_NAMES = re.compile(r".+\.\d+\.\w{8}")
"""What submissions are named: the sweep, a number, and eight characters that no other has."""


class Phase(StrEnum):
    """Where a task stands."""

    QUEUED = "queued"
    RUNNING = "running"
    OVER = "over"
    UNKNOWN = "unknown"


class JobObservation(NamedTuple):
    """What a scheduler says of a task now.

    Attributes:
        phase: whether it waits, runs or is over.
        word: the scheduler's own, such as ``PENDING``.
        name: of the job; "" when the answer does not tell.
        submitted_s: when it was submitted, or started anew, in seconds since 1970 by the scheduler's clock.
        reason: why it waits.
        start: when it may start, or did, for people.
        node: where it runs or ran.
        restarts: how often it was started anew; None when the answer does not tell.
        before: the cause of the last end before a restart, None when there was none.
        before_word: that end in the scheduler's word.
        over: the end, where `phase` says so.
        listed: whether the scheduler lists it among what it has now; else only its accounts tell of it.
        may_return: whether the scheduler may start it anew after `over`, unless it lists all that lives.
        stuck: what to change when it can never start as it is, "" for a job that may.
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
    submitted_s: float | None = None


class JobListing(NamedTuple):
    """A scheduler's answer to one question about many jobs.

    Attributes:
        seen: what is known by (job, index); what is absent is not known.
        problem: why there is no answer, "" when there is one.
        complete: whether it lists all living jobs of the user who asks: what is absent is over, or never was.
        gap: why it does not, "" when it does.
        everyone: whether it lists the jobs of other users as well.
        scope: which scheduler answered, for the record of an end that is known by absence alone.
        controller: where it was reached; see `Submission`.
    """

    seen: Mapping[tuple[str, int], JobObservation] = {}
    problem: str = ""
    complete: bool = False
    gap: str = ""
    everyone: bool = True
    scope: str = "the scheduler"
    controller: str = ""


class Asker(NamedTuple):
    """Who asks a scheduler: the effective user of the process.

    Attributes:
        uid: the user's number; -1 for one that is not known.
        name: by the system's user database; the number where it has none.
    """

    uid: int = -1
    name: str = ""


class SubmissionState(NamedTuple):
    """A submission with all that the store says of it; `closed_at` is when each task was found over."""

    submission: Submission
    accepted: Accepted | None = None
    over: Mapping[int, JobEnd] = {}
    reports: Mapping[int, JobExitReport] = {}
    closed_at: Mapping[int, str] = {}
    driver: DriverStatus | None = None

    @property
    def heard_at(self) -> str:
        """When the scheduler, or the job itself, last said that there is such a job; "" for never."""
        told = [self.accepted.at] if self.accepted else []
        return max([*told, *([self.driver.at] if self.driver else [])], default="")

    @property
    def open_tasks(self) -> list[int]:
        """Indexes of the tasks that are not known to be over."""
        return [index for index in range(len(self.submission.tasks)) if index not in self.over]

    def name(self, index: int) -> str:
        """Return what people and the scheduler call a task: ``1234_5``, "" before it has an id."""
        return f"{self.accepted.job}_{index}" if self.accepted else ""


class Judgement(NamedTuple):
    """What is known of one task.

    Attributes:
        phase: where it stands.
        reason: the evidence, for people.
        seen: what the scheduler says of it, None when it says nothing.
        over: the end, where `phase` is OVER.
        absence: why it counts that the scheduler does not list the task, "" where it does not count.
    """

    phase: Phase
    reason: str
    seen: JobObservation | None = None
    over: JobEnd | None = None
    absence: str = ""


def judge(filed: SubmissionState, index: int, answer: JobListing, asker: Asker) -> Judgement:
    """Decide where a task stands, by all the evidence there is. The first rule that applies counts.

    1. The store holds its closing: over.
    2. It has no id yet: unknown, and held.
    3. The scheduler lists it: what that says. An end after which the scheduler may start the job anew counts
       only where the answer lists all that lives. Life that only accounting reports ends by the job's report.
    4. The scheduler lists its number for another job, in an answer that is complete: it was forgotten. A name
       alone does not make it another job: people rename jobs (`is_ours`).
    5. The job left its last words and did not ask to be started anew: over.
    6. Anything else: unknown, and held. Where the answer is complete for this job, its absence counts, but
       only after a while and a second look (`orchestrator.api.settling`).

    Args:
        filed: the submission.
        index: of the task.
        answer: of its scheduler.
        asker: who asked.
    """
    accepted, name = filed.accepted, filed.name(index)
    if (closed := filed.over.get(index)) is not None:
        return _ended(name, closed)
    if accepted is None:
        submission = filed.submission
        waits = f"submission {submission.number} of {submission.at} was not answered by the scheduler"
        return Judgement(Phase.UNKNOWN, f"{waits}; `sweep reconcile` settles it")
    gap = answer.problem or listing_gap(filed.submission, answer, asker)
    seen = None if answer.problem else answer.seen.get((accepted.job, index))
    report = filed.reports.get(index)
    if seen is not None and seen.name not in ("", filed.submission.name):
        ours = None if gap else is_ours(filed, seen)
        if ours is False and not gap and seen.listed:
            lost = f"the scheduler lost it, and gave its number to {seen.name}"
            return _ended(name, JobEnd(index=index, word="FORGOTTEN", cause=Cause.NODE_LOST, detail=lost))
        if ours is None and not gap and seen.over is None:
            why = f"job {name} is {seen.word} under the name {seen.name}: it was renamed, or is another job"
            return Judgement(Phase.UNKNOWN, why, seen._replace(phase=Phase.UNKNOWN))
        seen = None if gap or not ours else seen
    if seen is not None and seen.over is not None and not (seen.may_return and gap):
        return _ended(name, _completed(seen.over, filed, report), seen)
    last_words = report is not None and not report.requeued
    if seen is not None and not (seen.phase in (Phase.UNKNOWN, Phase.OVER) and last_words):
        if seen.over is not None:
            told = seen._replace(phase=Phase.UNKNOWN, over=None)
            return Judgement(
                Phase.UNKNOWN, f"job {name} ended {seen.word}, and may be started anew: {gap}", told
            )
        if gap and not seen.listed:
            return Judgement(Phase.UNKNOWN, f"job {name} is {seen.word} by its accounts: {gap}", seen)
        return Judgement(seen.phase, _living(name, seen) + _of_driver(filed.driver), seen)
    if report is not None and last_words:
        return _ended(name, _reported(index, report))
    if answer.problem:
        return Judgement(Phase.UNKNOWN, f"job {name}: {answer.problem}")
    why = gap or "the scheduler does not list it"
    absence = "" if gap else f"{answer.scope} lists all jobs of {_user(filed.submission)}, and not this one"
    return Judgement(Phase.UNKNOWN, f"job {name}, accepted at {accepted.at}: {why}", absence=absence)


def listing_gap(submission: Submission, answer: JobListing, asker: Asker) -> str:
    """Return why a job that is missing from an answer may live all the same, "" when its absence counts."""
    if not answer.complete:
        return answer.gap or "the scheduler does not list it"
    if not same_controller(submission, answer.controller):
        was = f"{submission.cluster} was reached at {submission.controller}"
        return f"{was}, and this one at {answer.controller}: it may be another of the same name"
    if answer.everyone or is_own(submission, asker):
        return ""
    return f"it is a job of {_user(submission)}, and the scheduler shows {asker.name} only their own"


def is_ours(filed: SubmissionState, seen: JobObservation) -> bool | None:
    """Return whether the job that a scheduler lists under a submission's number is the submission's.

    A controller that lost its last seconds gives numbers out again, and people rename jobs. Numbers are
    unique at a time: what had this one when its acceptance was recorded is ours under any name.

    Args:
        filed: the submission, with its number.
        seen: what has that number.

    Returns:
        None where nothing tells: a job under another name that was started anew, which renews its time.
    """
    if not seen.name or filed.submission.name in seen.name:  # as it is, or with what a site adds
        return True
    if filed.accepted is None or _OUR_NAMES.fullmatch(seen.name):  # nobody renames a job to another of ours
        return False
    if seen.submitted_s is not None and filed.accepted.at:
        accepted_s = datetime.fromisoformat(filed.accepted.at).timestamp()
        if seen.submitted_s <= accepted_s + SKEW_S:
            return True
    return None if seen.restarts else False


def same_controller(submission: Submission, controller: str) -> bool:
    """Return whether a controller is the submission's, as far as is known: a name may be given twice."""
    before, now = set(submission.controller.split()), set(controller.split())
    return not before or not now or bool(before & now)


def is_own(submission: Submission, asker: Asker) -> bool:
    """Return whether a submission's jobs belong to the user who asks."""
    if submission.uid is not None:
        return submission.uid == asker.uid
    return bool(asker.name) and _user(submission) == asker.name


def _user(submission: Submission) -> str:
    return submission.by.rpartition("@")[0] or submission.by or "its user"


def _ended(name: str, over: JobEnd, seen: JobObservation | None = None) -> Judgement:
    return Judgement(Phase.OVER, ending(name, over), seen, over)


def _completed(over: JobEnd, filed: SubmissionState, report: JobExitReport | None) -> JobEnd:
    """Add to an end that the scheduler gives what the driver counted and what the job itself said."""
    if filed.driver is not None:  # a driver counts its starts itself
        over = msgspec.structs.replace(over, restarts=filed.driver.restart)
    if report is None or report.requeued or report.restart != over.restarts:
        return over
    return msgspec.structs.replace(over, detail=report.why or over.detail, idle=not report.claimed)


def _reported(index: int, report: JobExitReport) -> JobEnd:
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
    """Say how a job ended."""
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
