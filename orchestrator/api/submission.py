"""Submission of cells to a scheduler: those that no job holds, as arrays of jobs.

Two launches may submit at once, and a launch may die at any point. Still, no cell may get two jobs. So the
intent is written before the scheduler is called:

1. create the record of submission N in the store (exclusive: one launch wins the number);
2. call the scheduler, which creates a job under a name that no other submission has;
3. record the job's id.

A launch that loses number N reads the state again and submits only what is still free. A launch that dies
between 2 and 3 leaves a submission without an id, whose job is found by its name later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import provenance
from orchestrator.api.estimates import longest_first, of_cell, sized
from orchestrator.api.state import SweepState
from orchestrator.core.evidence import NO_HOLDS
from orchestrator.core.failure import Cause
from orchestrator.core.gates import GateJobs, gate_jobs
from orchestrator.core.records import Request
from orchestrator.core.state import State, num_starved
from orchestrator.core.sweep import Cell
from orchestrator.errors import SchedulerUnavailable, UserError
from orchestrator.jobs.cells import LIMIT, JobArray, cut, first_try, grouped
from orchestrator.jobs.judgement import Phase
from orchestrator.jobs.records import JobEnd, Resources, Shortfalls, Submission
from orchestrator.jobs.submissions import Submissions, asker, is_beating
from orchestrator.launchers.base import Limits, SubmitOutcome, Submitter, Verdict
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.access import new_nonce

_WANTED = frozenset({State.PENDING, State.RELEASED, State.LOST, State.RUNNING})
"""States of cells that need a job if none holds them."""


@dataclass
class SubmitResult:
    """The result of one or more submissions.

    Attributes:
        submitted: submissions that the scheduler accepted, each with its job's id.
        scripts: submissions with the text that the scheduler would get; filled by a dry run.
        behind: number of cells that a limit holds back.
        limit: that limit, in the scheduler's words or as launcher settings.
        num_held: number of cells that a job holds already.
    """

    submitted: list[tuple[Submission, str]] = field(default_factory=list)
    scripts: list[tuple[Submission, str]] = field(default_factory=list)
    behind: int = 0
    limit: str = ""
    num_held: int = 0

    def add(self, more: SubmitResult) -> None:
        """Add the result for another request."""
        self.submitted += more.submitted
        self.scripts += more.scripts
        self.behind += more.behind
        self.num_held += more.num_held
        self.limit = more.limit or self.limit


class Dispatch:
    """The submission of one request's cells to a scheduler.

    Args:
        view: the sweep state after reconciliation; it is read again if another launch submits meanwhile.
        request: the launch or rerun. Its settings and code apply to cells that no later request names.
        submitter: the launcher of the request.
        limits: of the scheduler.
    """

    def __init__(self, view: SweepState, request: Request, submitter: Submitter, limits: Limits) -> None:
        self._view, self._request, self._submitter, self._limits = view, request, submitter, limits
        self._submissions = Submissions(view.ledger, view.sweep.name)
        self.given, self._has_filed, self._is_dry = SubmitResult(), False, True
        self._gates = GateJobs()

    def run(self, *, hold: str = "") -> SubmitResult:
        """Submit the cells that no job holds.

        A scheduler may refuse an array because the user has too many jobs. The limit is often unknown, so the
        size is searched for: after a refusal, half as many tasks are tried. For example, with room for 30:

            100 refused, 50 refused, 25 accepted, 25 refused, 12 refused, 6 refused, 3 accepted, ...

        A later call continues from there: if the last submission was refused, it tries as many tasks as have
        ended since (at least 1), then 1, 2, 4, ... more, so that a full scheduler refuses little.

        Args:
            hold: a limit because of which nothing is submitted now; the cells that wait for it are still
                counted.

        Returns:
            What was submitted and what was held back.

        Raises:
            UserError: a cell fits nowhere, or the scheduler refuses the job for good.
            SchedulerUnavailable: the scheduler does not answer.
        """
        self._is_dry = False
        groups, number = self._groups(), self._next_number()
        fits, is_refill = first_try(self._view.jobs.filed, self._limits.max_tasks)
        if hold := hold or self._view.holds.lack_of_space():
            fits, self.given.limit = 0, hold
        grows = 1
        while groups and fits:
            piece, rest = cut(groups[0], fits)
            submission = self._submission(piece, number)
            # Build the script before the record: a path that the scheduler cannot take must not use up a
            # number.
            text = self._text(submission)
            if not self._submissions.file(submission):  # another launch took the number
                self._view = self._view.fresh()
                groups, number = self._groups(), self._next_number()
                continue
            number, self._has_filed = number + 1, True
            if not self._take(submission, text):
                fits = len(piece.tasks) // 2
                continue
            groups[:1] = [rest] if rest.tasks and rest.max_running != 0 else []
            # The piece took the whole throttle. Arrays are throttled one by one, so another would exceed
            # `max_running`.
            if rest.max_running == 0:
                self._hold_back(sum(map(len, rest.tasks)))
            if is_refill:
                fits, grows = grows, 2 * grows
        self.given.behind += sum(len(cells) for group in groups for cells in group.tasks)
        return self.given

    @property
    def view(self) -> SweepState:
        """The sweep state after the submission."""
        return self._view.fresh() if self._has_filed else self._view

    def check(self) -> None:
        """Check, before anything is recorded, that jobs fit somewhere and that their script can be written.

        Raises:
            UserError: a job fits nowhere, or a path or option cannot be passed to the scheduler.
        """
        self._with_resources(self._unheld())
        for group in self._groups()[:1]:
            self._text(self._submission(group, self._next_number()))

    def dry_run(self, *, after: int = 0) -> SubmitResult:
        """Return what `run` would submit, without changing anything.

        Args:
            after: number of submissions that other requests would make before.
        """
        for number, group in enumerate(self._groups(), self._next_number() + after):
            submission = self._submission(group, number)
            self.given.scripts.append((submission, self._text(submission)))
        return self.given

    # Submitting

    def _hold_back(self, num_cells: int) -> None:
        """Count cells that the launcher's own limits hold back."""
        most = {"max_jobs": self._submitter.max_jobs, "max_running": self._submitter.max_running}
        self.given.behind += num_cells
        if num_cells:
            self.given.limit = " and ".join(f"launcher.{k}={v}" for k, v in most.items() if v is not None)

    def _next_number(self) -> int:
        """Return the number of the next submission."""
        filed = self._view.jobs.filed
        return (filed[-1].submission.number if filed else 0) + 1

    def _groups(self) -> list[JobArray]:
        """Return the cells that no job holds, as arrays; count those that our own limits hold back."""
        filed, cells = self._view.jobs.filed, self._unheld()
        most, self.given.behind = self._submitter.max_running, 0
        if most is not None:
            # An array that is still open may run `max_running` tasks at once, and never more than it has
            # open.
            most -= sum(
                min(each.submission.max_running or len(each.open_tasks), len(each.open_tasks))
                for each in filed
            )
        groups, behind = grouped(
            self._with_resources(cells),
            cells_per_job=self._submitter.cells_per_job,
            max_array_size=self._limits.max_tasks,
            max_running=most,
            held=sum(len(each.open_tasks) for each in filed),
            max_jobs=self._submitter.max_jobs,
            later=self._gates.later,
        )
        self._hold_back(behind)
        return groups

    def _unheld(self) -> list[Cell]:
        """Return the cells of the request that need a job and have none; count those that have one."""
        view, wanted, self.given.num_held = self._view, [], 0
        # A request that is not recorded yet will end all pauses for space, and turns.
        holds = view.holds if self._request.number else NO_HOLDS
        alone: list[tuple[int, Cell]] = []
        for cell in self._open():
            status, digest = view.cells[cell.id], self._next_stage(cell)
            # A worker without a job may run this very cell, such as one of a local launch.
            if self._is_held(cell) or is_beating(status, view.reader.evidence, of=cell.id):
                self.given.num_held += 1
            elif status.state in _WANTED:
                place, hold = holds.turns.get(digest), holds.stages.get(digest)
                if place:
                    alone.append((place, cell))
                elif place == 0 or hold is None or hold.pause_s is None:  # else its job would leave again
                    wanted.append(cell)
        # A queue knows no clock: what runs alone gets a job when no other job could start such a stage.
        others = [*wanted, *filter(self._is_held, view.sweep.cells if alone else ())]
        if alone and not any(self._next_stage(cell) in holds.turns for cell in others):
            wanted.append(min(alone, key=lambda each: each[0])[1])
        return wanted

    def _is_held(self, cell: Cell) -> bool:
        """Return whether a job holds a cell."""
        job = self._view.jobs.of_cell(cell.id)
        return job is not None and job.phase is not Phase.OVER

    def _next_stage(self, cell: Cell) -> str:
        """Return the digest of the first stage that a cell needs and that is not done; "" if all are."""
        stages = self._view.stages
        return next((each for each in self._view.chain(cell) if stages[each].state is not State.DONE), "")

    def _open(self) -> list[Cell]:
        """Return the cells of the request that run or have yet to run.

        A cancelled cell is none of them, though it runs as long as one of its stages does for another cell.
        """
        summary, request, states = self._view.request_summary, self._request, self._view.cells
        cells: Sequence[Cell] = self._view.sweep.cells
        if request.number:
            named = {cell for cell, number in summary.asked.items() if number == request.number}
            cells = [cell for cell in cells if cell.id in named - summary.cancelled]
        elif request.cells is not None:  # a request that is not recorded yet is the newest
            cells = [cell for cell in cells if cell.id in request.cells]
        wanted = (*_WANTED, State.QUEUED, State.UNKNOWN)
        # A cell that waits for a decision has nothing to run until then.
        return [c for c in cells if states[c.id].state in wanted and not states[c.id].is_undecided(c)]

    def _with_resources(self, cells: Sequence[Cell]) -> list[tuple[str, Resources]]:
        """Return each cell with the resources that its job needs, the longest first, by estimates if any."""
        if not cells:
            return []
        view, request = self._view, self._request
        # How many GPUs are best for a cell depends on all cells that run at the same time.
        is_moldable = request.settings is not None and request.settings.hardware.moldable
        some = self._open() if is_moldable else cells
        estimates, chosen, _ = sized(view, some, request, self._submitter, request.import_paths)
        ordered = longest_first(view, cells, estimates)
        hours = {digest: one.wall_hours for digest, one in estimates.items()}
        self._gates = gate_jobs(ordered, view.gates, view.stages, hours)
        if self._submitter.hardware() is None:  # workers without GPUs: the estimates give the order alone
            estimates = {}
        asked = [
            (view.subject(each), of_cell(each, estimates, view.chain(each)), self._shortfalls(each))
            for each in ordered
        ]
        every = [view.subject(cell) for cell in view.sweep.cells]
        return self._submitter.resources(asked, known=every, chosen=chosen)

    def _shortfalls(self, cell: Cell) -> Shortfalls:
        """Return how often a cell needed more, by the ends of its jobs and of the attempts at its stages."""
        view, after = self._view, self._view.request_summary.after
        todo = [digest for digest in view.chain(cell) if view.stages[digest].state is not State.DONE]
        starved = (num_starved(view.reader.evidence(digest), after.get(digest, 0)) for digest in todo)
        num_oom = max(view.jobs.count(cell.id, Cause.OOM_HOST), *starved, 0)
        return Shortfalls(num_oom, view.jobs.count(cell.id, Cause.TIMEOUT))

    def _submission(self, group: JobArray, number: int) -> Submission:
        """Return the record of a submission."""
        view, request = self._view, self._request
        before = self.given.submitted if group.is_later else []
        nonce, policy = new_nonce(), request.settings.policy if request.settings else view.policy
        return Submission(
            nonce=nonce,
            number=number,
            revision=view.number,
            request=request.number,
            launcher=self._submitter.name,
            cluster=self._limits.cluster,
            name=job_name(view.sweep.name, number, nonce),
            tasks=group.tasks,
            resources=group.resources,
            max_running=group.max_running,
            exclude=self._submitter.excluded(
                view.jobs.filed,
                view.ledger,
                self._limits.cluster,
                quarantine_s=policy.quarantine_s,
                is_dry=self._is_dry,
            ),
            code=request.code,
            folder=request.folder,
            logs=self._submitter.logs(view.sweep.name, number),
            by=provenance.user(),
            at=provenance.now(),
            uid=asker().uid,
            controller=self._limits.controller,
            after=self._gates.tasks((job, sent.tasks) for sent, job in before),
            after_s=self._gates.seconds if before else 0.0,
        )

    def _text(self, submission: Submission) -> str:
        """Return the script that the scheduler gets."""
        objects = self._view.ledger.objects
        code = snapshots.package_path(objects, submission.code.digest) if submission.code else Path()
        return self._submitter.text(
            submission,
            sweep=self._view.sweep.name,
            store=objects.url,
            code=code,
            logs=job_logs(self._view, submission),
        )

    def _take(self, submission: Submission, text: str) -> bool:
        """Submit a recorded submission, and return False if the scheduler is at its limit.

        Raises:
            UserError: the scheduler refuses the job for good.
            SchedulerUnavailable: the scheduler was not reached, or its answer was lost.
        """
        objects = self._view.ledger.objects
        key = layout.job_logs(self._view.sweep.name, submission.number)
        # The script is kept beside the logs, so that a user can see what the scheduler got.
        (objects.workspace(key) / self._submitter.file).write_text(text, encoding="utf-8")
        objects.upload(key)
        job_logs(self._view, submission).mkdir(parents=True, exist_ok=True)
        outcome = self._submitter.submit(submission, text)
        match outcome.verdict:
            case Verdict.ACCEPTED:
                self._submissions.accept(submission.number, outcome.job, at=provenance.now())
                self.given.submitted.append((submission, outcome.job))
                return True
            case Verdict.LIMIT:
                give_up(self._submissions, submission, LIMIT, outcome.message)
                self.given.limit = outcome.message
                return False
            case Verdict.REFUSED:
                give_up(self._submissions, submission, "REFUSED", outcome.message)
                raise self._refused(submission, outcome)
            case Verdict.UNREACHED:
                give_up(self._submissions, submission, "REFUSED", outcome.message)
                raise self._unreached(f"was not reached: {outcome.message}", "nothing was submitted to it")
        # The answer was lost, so the job may exist. The submission stays open, and its cells stay held.
        raise self._unreached(
            f"did not say whether it took submission {submission.number}: {outcome.message}",
            "nothing is submitted twice: its cells are held until that is known",
        )

    def _unreached(self, what: str, where: str) -> SchedulerUnavailable:
        """Return an error with the command that tries again later."""
        later = f"sweep reconcile {self._view.sweep.name}{self._view.hint}"
        return SchedulerUnavailable(f"{self._submitter.name} {what}", where=where, fix=f"later: {later}")

    def _refused(self, submission: Submission, outcome: SubmitOutcome) -> UserError:
        """Return an error with the place of the script that was refused."""
        script = layout.job_logs(self._view.sweep.name, submission.number)
        return UserError(
            f"{self._submitter.name} refuses the job: {outcome.message}",
            where=f"{self._view.ledger.objects.url}/{script}/{self._submitter.file}",
            fix="mend cluster.* or launcher.resources, and launch again"
            + (f"; left out are {', '.join(submission.exclude)}: sweep nodes" if submission.exclude else ""),
        )


def job_name(sweep: str, number: int, nonce: str) -> str:
    """Return the name of a submission's job: readable, and unique even among jobs of deleted stores."""
    return f"{sweep}.{number}.{nonce[:8]}"


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


def job_logs(view: SweepState, submission: Submission) -> Path:
    """Return the folder with the logs of a submission's jobs."""
    if submission.logs:
        return Path(submission.logs)
    return view.ledger.objects.folder(layout.job_logs(view.sweep.name, submission.number))
