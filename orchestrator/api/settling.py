"""Settling what was given to a scheduler: ids that were lost, jobs that are over, jobs that vanished."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator import provenance
from orchestrator.api.state import SweepState
from orchestrator.core.failure import Cause
from orchestrator.errors import InfrastructureError
from orchestrator.jobs.judgement import SubmissionState
from orchestrator.jobs.records import JobEnd, Submission
from orchestrator.jobs.submissions import Submissions
from orchestrator.launchers.base import Submitter
from orchestrator.launchers.jobs import BEAT_S
from orchestrator.store import layout
from orchestrator.text import counted

SECOND_LOOK_S = 5.0


class Reconciled(NamedTuple):
    """What settling found.

    Attributes:
        view: read after it.
        closed: tasks that were found over.
        unanswered: submissions of which it is still not known whether the scheduler took them.
    """

    view: SweepState
    closed: list[JobEnd]
    unanswered: list[Submission]


def reconcile_jobs(view: SweepState, submitters: Sequence[Submitter]) -> Reconciled:
    """Records what is known by now of the jobs of a sweep.

    Args:
        view: of the sweep.
        submitters: of the launchers whose jobs may be settled; those of others are left as they are.

    Raises:
        InfrastructureError: a submission cannot be read, so its cells may have jobs.
    """
    submissions = Submissions(view.ledger, view.sweep.name)
    damaged: list[str] = []
    filed = submissions.read(damaged)
    if damaged:
        raise InfrastructureError(damaged[0], where="nothing is submitted: its cells may have a job")
    by_name = {submitter.name: submitter for submitter in submitters}
    lost = [each for each in filed if each.accepted is None and each.open_tasks]
    unanswered = [each.submission for each in lost if not _answered(submissions, each.submission, by_name)]
    if lost:
        view = view.fresh()
    closed: list[JobEnd] = []
    for each, over in [*view.jobs.news(), *_vanished(view, by_name)]:
        logs, submitter = job_logs(view, each.submission), by_name.get(each.submission.launcher)
        told = [submitter.explain(each, one, logs) for one in over] if submitter else list(over)
        submissions.close(each.submission.number, told, at=provenance.now())
        closed += told
    return Reconciled(view.fresh() if closed else view, closed, unanswered)


def lines_of(view: SweepState, settled: Reconciled) -> list[str]:
    """Says what is not known, and what is no longer wanted."""
    lines, name = [], view.sweep.name
    for submission in settled.unanswered:
        cells = counted(sum(map(len, submission.tasks)), "cell")
        lines.append(f"  submission {submission.number} ({cells}) of {submission.at} was not answered")
        lines.append(f"    later: sweep reconcile {name}{view.hint}, which finds its job or submits it again")
    waits: dict[tuple[str, str], int] = {}
    for _, seen in view.jobs.stuck():
        waits[(seen.reason, seen.stuck)] = waits.get((seen.reason, seen.stuck), 0) + 1
    for (reason, advice), number in waits.items():
        lines.append(f"  {counted(number, 'job')} can never start so: {reason}: {advice}")
        lines.append(f"    then: sweep cancel {name}{view.hint}, and launch again")
    older = settled.view.jobs.older(view.number, {cell.cell for cell in view.sweep.cells})
    for revision, number in sorted(older.items()):
        lines.append(f"  {counted(number, 'job')} of {name}@{revision} not over yet")
        lines.append(f"    no longer wanted? sweep cancel {name}@{revision}{view.hint}")
    return lines


def _answered(submissions: Submissions, submission: Submission, by_name: Mapping[str, Submitter]) -> bool:
    """Looks for the job of an intent that has no id; one that stays unknown for long was never taken."""
    submitter = by_name.get(submission.launcher)
    if submitter is None:
        return False
    try:
        job = submitter.find(submission)
    except InfrastructureError:
        return False  # nothing is known: its cells stay held
    if job is not None:
        submissions.accept(submission.number, job, at=provenance.now())
    elif provenance.age_s(submission.at) > submitter.settle_s:
        give_up(submissions, submission, "REFUSED", "the scheduler never had it")
    else:
        return False
    return True


def give_up(submissions: Submissions, submission: Submission, word: str, why: str) -> None:
    """Records that an intent never became a job."""
    over = [JobEnd(index=index, word=word, detail=why) for index in range(len(submission.tasks))]
    submissions.close(submission.number, over, at=provenance.now())


def _vanished(
    view: SweepState, by_name: Mapping[str, Submitter]
) -> list[tuple[SubmissionState, tuple[JobEnd, ...]]]:
    """Return tasks that two complete listings lack, and of whose end nothing else is known.

    Slurm keeps no account of a task that was cancelled while other tasks of its array waited on.
    """
    old = {
        key: filed
        for key, (filed, _) in view.jobs.missing().items()
        if filed.submission.launcher in by_name
        and provenance.age_s(filed.heard_at) > by_name[filed.submission.launcher].settle_s
    }
    if not old:
        return []
    driven = any(filed.driver for filed in old.values())  # whose silence is told by their beat, not by clocks
    time.sleep(SECOND_LOOK_S + BEAT_S if driven else SECOND_LOOK_S)
    jobs = view.fresh().jobs
    again = jobs.missing()
    found: dict[int, tuple[SubmissionState, list[JobEnd]]] = {}
    for (number, index), filed in old.items():
        if (number, index) in again and again[(number, index)][0].driver == filed.driver:
            why = f"{again[(number, index)][1]}, twice"
            log = job_logs(view, filed.submission) / f"{index}.log"  # which the scheduler makes at a start
            if jobs.knows(filed) and not log.exists():
                word, cause, detail = "CANCELLED", Cause.CANCELLED, "somebody cancelled it while it waited"
            else:
                word, cause, detail = "VANISHED", Cause.NODE_LOST, "no accounts tell how it ended"
            over = JobEnd(index=index, word=word, cause=cause, detail=f"{detail}: {why}")
            found.setdefault(number, (filed, []))[1].append(over)
    return [(filed, tuple(over)) for filed, over in found.values()]


def job_logs(view: SweepState, submission: Submission) -> Path:
    """Returns the folder of the logs of a submission's jobs."""
    if submission.logs:
        return Path(submission.logs)
    return view.ledger.objects.folder(layout.job_logs(view.sweep.name, submission.number))
