"""Reconciling the store with the scheduler: lost job ids, jobs that are over, and jobs that vanished."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator import provenance
from orchestrator.api.state import SweepState
from orchestrator.core.failure import Cause
from orchestrator.errors import DamagedRecord, InfrastructureError
from orchestrator.jobs.judgement import SubmissionState
from orchestrator.jobs.records import JobEnd, Submission
from orchestrator.jobs.submissions import Submissions
from orchestrator.launchers.base import Submitter
from orchestrator.launchers.jobs import BEAT_S
from orchestrator.store import layout
from orchestrator.text import counted

SECOND_LOOK_S = 5.0
"""Seconds between two listings, both of which must lack a job before it counts as vanished."""


class Reconciled(NamedTuple):
    """The result of a reconciliation.

    Attributes:
        view: the sweep state, read afterwards.
        closed: tasks that were found to be over, and were recorded so.
        unanswered: submissions that the scheduler may or may not have accepted.
    """

    view: SweepState
    closed: list[JobEnd]
    unanswered: list[Submission]


def reconcile_jobs(view: SweepState, submitters: Sequence[Submitter]) -> Reconciled:
    """Record in the store what is known about the jobs of a sweep.

    Schedulers forget jobs, so the end of each job is recorded as soon as it is known. There are three steps:
    find the jobs of submissions without an id, record jobs whose end is known, and record jobs that vanished.

    Args:
        view: the sweep state.
        submitters: of the launchers whose jobs may be reconciled; jobs of other launchers are left alone.

    Raises:
        DamagedRecord: a submission cannot be read, so its cells may have jobs.
    """
    submissions = Submissions(view.ledger, view.sweep.name)
    damaged: list[str] = []
    filed = submissions.read(damaged)
    if damaged:
        raise DamagedRecord(damaged[0], where="nothing is submitted: its cells may have a job")
    by_name = {submitter.name: submitter for submitter in submitters}
    # A process that died between submitting and recording the id leaves such a submission.
    lost = [each for each in filed if each.accepted is None and each.open_tasks]
    unanswered = [each.submission for each in lost if not _answered(submissions, each.submission, by_name)]
    if lost:
        view = view.fresh()
    closed: list[JobEnd] = []
    for each, over in [*view.jobs.news(), *_vanished(view, by_name)]:
        logs, submitter = job_logs(view, each.submission), by_name.get(each.submission.launcher)
        told = [submitter.explain(each, one, logs) for one in over] if submitter else list(over)
        # Closing is final. Later readers do not query the scheduler about these tasks again.
        submissions.close(each.submission.number, told, at=provenance.now())
        closed += told
    return Reconciled(view.fresh() if closed else view, closed, unanswered)


def lines_of(view: SweepState, settled: Reconciled) -> list[str]:
    """Return lines on open questions: unanswered submissions, stuck jobs, jobs of old revisions.

    Args:
        view: the sweep state.
        settled: the result of the reconciliation.
    """
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
    older = settled.view.jobs.older(view.number, {cell.id for cell in view.sweep.cells})
    for revision, number in sorted(older.items()):
        lines.append(f"  {counted(number, 'job')} of {name}@{revision} not over yet")
        lines.append(f"    no longer wanted? sweep cancel {name}@{revision}{view.hint}")
    return lines


def _answered(submissions: Submissions, submission: Submission, by_name: Mapping[str, Submitter]) -> bool:
    """Find the job of a submission without an id, and return whether the question is settled.

    The job is found by its unique name. A scheduler that answers, and still does not list the name after
    `settle_s`, never accepted the submission, which is then given up.
    """
    submitter = by_name.get(submission.launcher)
    if submitter is None:
        return False
    try:
        job = submitter.find(submission)
    except InfrastructureError:
        return False  # no answer proves nothing; its cells stay held
    if job is not None:
        submissions.accept(submission.number, job, at=provenance.now())
    elif provenance.age_s(submission.at) > submitter.settle_s:
        give_up(submissions, submission, "REFUSED", "the scheduler never had it")
    else:
        return False
    return True


def give_up(submissions: Submissions, submission: Submission, word: str, why: str) -> None:
    """Record that a submission never became a job.

    A job that starts from it after all reads this record, and claims nothing.

    Args:
        submissions: of the sweep.
        submission: to give up.
        word: the kind of end, such as ``REFUSED``.
        why: the reason, for people.
    """
    over = [JobEnd(index=index, word=word, detail=why) for index in range(len(submission.tasks))]
    submissions.close(submission.number, over, at=provenance.now())


def _vanished(
    view: SweepState, by_name: Mapping[str, Submitter]
) -> list[tuple[SubmissionState, tuple[JobEnd, ...]]]:
    """Return tasks missing from two consecutive scheduler listings, with no recorded end.

    A missing job is not proof of its end: a listing may be incomplete, or may be filtered by user or cluster.
    A task counts as vanished only if all of these hold:

    - both listings are complete for this job, and both lack it;
    - nothing was heard of it for `settle_s`;
    - its driver, if it has one, wrote nothing between the two.

    Slurm, for one, keeps no account of a task that was cancelled while other tasks of its array were waiting.

    Args:
        view: the sweep state.
        by_name: name of a launcher to its submitter.

    Returns:
        By submission, the ends of its vanished tasks.
    """
    old = {
        key: filed
        for key, (filed, _) in view.jobs.missing().items()
        if filed.submission.launcher in by_name
        and provenance.age_s(filed.heard_at) > by_name[filed.submission.launcher].settle_s
    }
    if not old:
        return []
    # Wait for one more beat of a driver. Its silence is then proved without comparing clocks of two machines.
    driven = any(filed.driver for filed in old.values())
    time.sleep(SECOND_LOOK_S + BEAT_S if driven else SECOND_LOOK_S)
    jobs = view.fresh().jobs
    again = jobs.missing()
    found: dict[int, tuple[SubmissionState, list[JobEnd]]] = {}
    for (number, index), filed in old.items():
        if (number, index) in again and again[(number, index)][0].driver == filed.driver:
            why = f"{again[(number, index)][1]}, twice"
            # The scheduler creates the log when the task starts.
            log = job_logs(view, filed.submission) / f"{index}.log"
            if jobs.knows(filed) and not log.exists():
                word, cause, detail = "CANCELLED", Cause.CANCELLED, "somebody cancelled it while it waited"
            else:
                word, cause, detail = "VANISHED", Cause.NODE_LOST, "no accounts tell how it ended"
            over = JobEnd(index=index, word=word, cause=cause, detail=f"{detail}: {why}")
            found.setdefault(number, (filed, []))[1].append(over)
    return [(filed, tuple(over)) for filed, over in found.values()]


def job_logs(view: SweepState, submission: Submission) -> Path:
    """Return the folder with the logs of a submission's jobs."""
    if submission.logs:
        return Path(submission.logs)
    return view.ledger.objects.folder(layout.job_logs(view.sweep.name, submission.number))
