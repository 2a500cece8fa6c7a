"""Passes over the jobs of a sweep: record in the store what the scheduler reports, then submit free cells."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from orchestrator import provenance
from orchestrator.api.state import Notify, SweepState
from orchestrator.api.submission import Dispatch, SubmitResult, give_up, job_logs
from orchestrator.core.failure import Cause
from orchestrator.core.records import Request
from orchestrator.core.state import GOOD, State
from orchestrator.core.sweep import Cell
from orchestrator.errors import (
    AccessDenied,
    DamagedRecord,
    InfrastructureError,
    SchedulerUnavailable,
    SweepError,
    counted,
)
from orchestrator.jobs.cells import scheduler_of
from orchestrator.jobs.judgement import SubmissionState
from orchestrator.jobs.records import BEAT_S, JobEnd, Submission
from orchestrator.jobs.submissions import Submissions, settings_of
from orchestrator.launchers.base import Limits, Submitter, scheduler
from orchestrator.registry import NOTIFIER, load
from orchestrator.store.access import error_line

WAIT_S, MAX_WAIT_S = 2.0, 30.0
"""Shortest and longest pause between two passes, in seconds."""

HOLD_S = 600.0
"""Seconds before a full scheduler is tried again. It is tried earlier if a job has ended."""

NOTICES_S = 60.0
"""Seconds for the notices of a single pass. No job waits for them."""

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
        ends = [submitter.explain(each, one, logs) for one in over] if submitter else list(over)
        # Closing is final. Later readers do not query the scheduler about these tasks again.
        submissions.close(each.submission.number, ends, at=provenance.now())
        closed += ends
    for each, task in view.jobs.failed_starts():
        with contextlib.suppress(InfrastructureError):  # it stays held, and the next look tries again
            scheduler(*scheduler_of(each.submission)).release([task])
    return Reconciled(view.fresh() if closed else view, closed, unanswered)


def open_questions(view: SweepState, settled: Reconciled) -> list[str]:
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


class PendingLaunch(NamedTuple):
    """A request that runs as jobs, the launcher of its settings, and the limits of its scheduler."""

    request: Request
    submitter: Submitter
    limits: Limits


class Notifies(Protocol):
    """What sends the notices of a sweep: `orchestrator.trackers.notifier.Notifier`."""

    def poll(self) -> None:
        """Send what is due in the background, at times."""

    def finish(self, limit_s: float = ...) -> None:
        """Send what is due at the end, in bounded time."""


def notifier_of(view: SweepState, request: Request, notify: Notify) -> Notifies:
    """Return what sends the notices of a sweep, by the settings of a launch; nothing if it has none.

    Args:
        view: the revision.
        request: the launch.
        notify: called with a line for each notice.
    """
    made: Notifies = load(NOTIFIER)(
        view.ledger.objects.url, view.sweep.name, settings_of(request).notify, notify
    )
    return made


def submission_lines(view: SweepState, given: SubmitResult) -> list[str]:
    """Return lines on what was submitted and what was held back."""
    lines = []
    for submission, job in given.submitted:
        cells = counted(sum(map(len, submission.tasks)), "cell")
        lines.append(f"  job {job}: {cells} in {counted(len(submission.tasks), 'task')}")
    if given.behind:
        lines.append(f"  {counted(given.behind, 'cell')} held back by a limit: {given.limit}")
        lines.append(f"    later: sweep reconcile {view.sweep.name}{view.hint}")
    return lines


def decide_now(view: SweepState) -> SweepState:
    """Record the decisions that can be made, and return the state with the cells that follow from them."""
    if view.open_decision is None or not view.sealed:
        return view
    news = view.decisions.advance(view.facts, by=f"{provenance.user()} on {platform.node()}")
    return view.fresh() if news else view


class SubmitPass(NamedTuple):
    """The result of one pass: the sweep state, what was submitted, and lines about both."""

    view: SweepState
    given: SubmitResult
    lines: list[str]


def submit_pass(
    view: SweepState, asked: Sequence[PendingLaunch], *, notify: Notify, hold: str = ""
) -> SubmitPass:
    """Record what is known about the jobs of a sweep, and submit the cells that no job holds.

    A pass may be repeated at any time, also by several launches at once.

    Args:
        view: the revision; its state is read again.
        asked: the requests whose cells are submitted.
        notify: called with lines on what was submitted, if an error follows.
        hold: a limit because of which cells are submitted only if a job was found to be over.

    Raises:
        UserError: a cell fits nowhere, or the scheduler refuses the job for good.
        InfrastructureError: the scheduler does not answer.
    """
    settled = reconcile_jobs(view.fresh(), [each.submitter for each in asked])
    view, given = decide_now(settled.view), SubmitResult()
    for each in asked:
        dispatch = Dispatch(view, *each)
        try:
            given.add(dispatch.run(hold="" if settled.closed else hold))
        except SweepError:  # earlier submissions have been made, so they are reported
            given.add(SubmitResult(submitted=dispatch.given.submitted))
            for line in submission_lines(view, given):
                notify(line)
            raise
        view = dispatch.view
    return SubmitPass(view, given, [*submission_lines(view, given), *open_questions(view, settled)])


_OPEN = frozenset({State.RUNNING, State.QUEUED, State.UNKNOWN, State.PENDING, State.RELEASED, State.LOST})
"""States of cells that have not ended."""


def is_open(view: SweepState, cell: Cell) -> bool:
    """Return whether a cell may still run as a job: it has not ended, and its job, if any, can start."""
    job = view.jobs.of_cell(cell.id)
    can_never_start = job is not None and job.seen is not None and bool(job.seen.stuck)
    status = view.cells[cell.id]
    return status.state in _OPEN and not can_never_start and not status.is_undecided(cell)


def is_well(view: SweepState, cells: Sequence[Cell]) -> bool:
    """Return whether cells have ended as they should, and no decision of the sweep is left open."""
    return view.open_decision is None and all(view.cells[cell.id].state in GOOD for cell in cells)


def undecided_lines(view: SweepState) -> list[str]:
    """Return a line on the decision that is left open, with the reason; none if there is none."""
    found = view.open_decision
    return [] if found is None else [f"\n{found.title}: not decided: {found.reason}"]


class JobPasses:
    """Passes over the jobs of some requests, one after another, until none of their cells can go on.

    An outage of the scheduler or of the store may pass, so it only delays the next pass. A scheduler that is
    at its limit is not tried at every pass, because each refusal is recorded in the store. The limit holds
    for `HOLD_S`, or until a job of the sweep ends. One that is not reached is tried again after 30 s, 60 s,
    and so on up to `HOLD_S`, because these submissions are recorded too.

    Args:
        view: the sweep state after a pass.
        asked: the requests.

    Attributes:
        view: the sweep state after the last pass.
        pause_s: seconds to wait before the next pass.
        problem: why the last pass failed, and what to do, in lines; "" if it did not.
    """

    def __init__(self, view: SweepState, asked: Sequence[PendingLaunch]) -> None:
        self.view = view
        self._asked = asked
        self._numbers = {each.request.number for each in asked}
        self.pause_s = WAIT_S
        self.problem = ""
        self._limit = ""
        self._limit_until_s = 0.0
        self._num_outages = 0
        self._notices: list[str] = []
        self._notifier = notifier_of(view, asked[-1].request, self._notices.append)

    @property
    def cells(self) -> list[Cell]:
        """The cells of the requests. A later launch may have taken over some, and decides about them."""
        asked = self.view.request_summary.asked
        return [cell for cell in self.view.sweep.cells if asked.get(cell.id) in self._numbers]

    @property
    def is_open(self) -> bool:
        """Whether a cell may still run, or come to exist."""
        found = self.view.open_decision
        comes = found is not None and found.is_passing
        return comes or any(is_open(self.view, cell) for cell in self.cells)

    def make(self, notify: Notify) -> list[str]:
        """Make one pass, and return lines about it; none after an outage, which `problem` describes.

        Raises:
            UserError: a cell fits nowhere, or the scheduler refuses the job for good.
            DamagedRecord: a submission cannot be read, so its cells may have jobs.
            AccessDenied: the scheduler's certificate is not trusted, or it does not accept the token.
        """
        self._notifier.poll()
        start_s = time.monotonic()
        hold = self._limit if start_s < self._limit_until_s else ""
        try:
            done = submit_pass(self.view, self._asked, notify=notify, hold=hold)
        except (DamagedRecord, AccessDenied):
            raise
        except (InfrastructureError, OSError) as error:
            self.problem, self.pause_s, self.view = error_line(error), MAX_WAIT_S, self.view.fresh()
            if isinstance(error, SchedulerUnavailable):
                self.problem = str(error)
                if not hold:  # else nothing was submitted
                    self._limit, pause_s = error.what, MAX_WAIT_S * 2.0 ** min(self._num_outages, 9)
                    self._limit_until_s = start_s + min(HOLD_S, pause_s)
                    self._num_outages += 1
            return []
        self.problem = ""
        self._num_outages = self._num_outages if hold else 0
        # Restart the hold only for a new limit or after a successful submission, so that it does expire.
        # A full disk is looked at in each pass: it costs no refusal, and no end of a job frees it.
        limit = done.given.limit if done.given.limit != done.view.holds.lack_of_space() else ""
        if limit != self._limit or done.given.submitted:
            self._limit, self._limit_until_s = limit, start_s + HOLD_S
        self.view = done.view
        # A pass over a large sweep is slow: the pause grows, so that passes take at most 5 % of the time.
        self.pause_s = min(MAX_WAIT_S, max(WAIT_S, 20 * (time.monotonic() - start_s)))
        return [*done.lines, *self._taken()]

    def finish(self) -> list[str]:
        """Send the notices that are due at the end, and return lines about them."""
        self._notifier.finish()
        return self._taken()

    def _taken(self) -> list[str]:
        lines = [f"  {line}" for line in self._notices]
        self._notices.clear()
        return lines
