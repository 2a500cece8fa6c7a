"""Giving cells to a scheduler: settling what was given before, then submitting what nobody holds.

It may be run again at any time, also by two people at once: an intent is created under the next number before
the scheduler is asked, and whoever loses that number decides anew.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from orchestrator import provenance
from orchestrator.commands.costs import estimates_of, of_cell
from orchestrator.commands.output import counted
from orchestrator.commands.view import View
from orchestrator.core.dispatch import Filed, Group, Jobs, Phase, grouped
from orchestrator.core.failure import Cause
from orchestrator.core.jobs import Over, Resources, Submission
from orchestrator.core.records import Request
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.launchers.base import Limits, Outcome, Submitter, Verdict
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.ledger import new_nonce
from orchestrator.store.submissions import Submissions

SECOND_LOOK_S = 5.0
_WANTED = frozenset({State.PENDING, State.RELEASED, State.LOST, State.RUNNING})


@dataclass
class Given:
    """What one pass did.

    Attributes:
        submitted: submissions that the scheduler took, with their job's id.
        scripts: what it was given, or would be.
        behind: cells that a limit keeps back.
        limit: that limit, in the scheduler's words or ours.
        num_held: cells that a job holds already.
        closed: tasks that were found over.
    """

    submitted: list[tuple[Submission, str]] = field(default_factory=list)
    scripts: list[tuple[Submission, str]] = field(default_factory=list)
    behind: int = 0
    limit: str = ""
    num_held: int = 0
    closed: list[Over] = field(default_factory=list)

    @property
    def num_cells(self) -> int:
        """Cells that were submitted."""
        return sum(len(cells) for submission, _ in self.submitted for cells in submission.tasks)


class Dispatch:
    """One pass over a sweep.

    Args:
        view: the revision; read anew where it has to be.
        request: the launch or rerun whose settings and code are used.
        submitter: its launcher.
        limits: of the scheduler.
    """

    def __init__(self, view: View, request: Request, submitter: Submitter, limits: Limits) -> None:
        self._view, self._request, self._submitter, self._limits = view, request, submitter, limits
        self._submissions = Submissions(view.ledger, view.sweep.name)
        self._fits = limits.max_tasks  # halved by each refusal for a limit, down to none
        self.given = Given()

    def run(self) -> Given:
        """Settles, then submits.

        Raises:
            UserError: a cell fits nowhere, or the scheduler refuses what it was given for good.
            InfrastructureError: the scheduler does not answer.
        """
        self._settle()
        groups, number = self._groups(), self._next_number()
        while groups and self._fits:
            group = _cut(groups[0], self._fits)
            submission = self._submission(group, number)
            text = self._text(submission)
            if not self._submissions.file(submission):  # another submits as well: see what is left
                self._view = self._view.fresh()
                groups, number = self._groups(), self._next_number()
                continue
            number += 1
            if self._take(submission, text):
                rest = groups[0].tasks[len(group.tasks) :]
                groups[:1] = [groups[0]._replace(tasks=rest)] if rest else []
            else:
                self._fits = len(group.tasks) // 2
        self.given.behind += sum(len(cells) for group in groups for cells in group.tasks)
        return self.given

    def check(self) -> None:
        """Finds out, before anything is recorded, whether every cell's job fits somewhere.

        Raises:
            UserError: one does not.
        """
        self._with_resources(self._unheld())

    def dry_run(self) -> Given:
        """Says what `run` would submit, word for word, and changes nothing."""
        for number, group in enumerate(self._groups(), self._next_number()):
            submission = self._submission(group, number)
            self.given.scripts.append((submission, self._text(submission)))
        return self.given

    # Settling

    def _settle(self) -> None:
        unanswered = [f for f in self._view.jobs.filed if f.accepted is None and f.open_tasks]
        for filed in unanswered:
            self._settle_unanswered(filed)
        if unanswered:
            self._view = self._view.fresh()
        news = self._view.jobs.news()
        for filed, over in [*news, *self._vanished()]:
            logs = job_logs(self._view, filed.submission)
            told = [self._submitter.explain(filed, each, logs) for each in over]
            self._submissions.close(filed.submission.number, told, at=provenance.now())
            self.given.closed += told
        if self.given.closed:
            self._view = self._view.fresh()

    def _settle_unanswered(self, filed: Filed) -> None:
        """Finds the job of an intent that has no id; one that stays unknown for long was never taken."""
        try:
            job = self._submitter.find(filed.submission)
        except InfrastructureError:
            return  # nothing is known: its cells stay held
        if job is not None:
            self._submissions.accept(filed.submission.number, job, at=provenance.now())
        elif _age_s(filed.submission.at) > self._submitter.settle_s:
            self._give_up(filed.submission, "the scheduler never had it", None)

    def _vanished(self) -> list[tuple[Filed, list[Over]]]:
        """Tasks that the scheduler, long after it took them, lists at neither of two looks nor by name."""
        missing = _missing(self._view.jobs, self._submitter.settle_s)
        if not missing:
            return []
        time.sleep(SECOND_LOOK_S)
        again = _missing(self._view.fresh().jobs, self._submitter.settle_s)
        found: dict[int, tuple[Filed, list[Over]]] = {}
        for key, filed in missing.items():
            if key in again and not self._is_known(filed):
                over = Over(
                    index=key[1],
                    word="VANISHED",
                    cause=Cause.NODE_LOST,
                    detail="the scheduler does not know it any more",
                )
                found.setdefault(key[0], (filed, []))[1].append(over)
        return list(found.values())

    def _is_known(self, filed: Filed) -> bool:
        """Whether the scheduler lists a job of that name, or does not answer."""
        try:
            return self._submitter.find(filed.submission) is not None
        except InfrastructureError:
            return True

    def _give_up(self, submission: Submission, why: str, cause: Cause | None) -> None:
        over = [
            Over(index=index, word="REFUSED", cause=cause, detail=why)
            for index in range(len(submission.tasks))
        ]
        self._submissions.close(submission.number, over, at=provenance.now())

    # Submitting

    def _next_number(self) -> int:
        filed = self._view.jobs.filed
        return (filed[-1].submission.number if filed else 0) + 1

    def _groups(self) -> list[Group]:
        """What nobody holds, as arrays; what our own limits keep back is counted."""
        filed, cells = self._view.jobs.filed, self._unheld()
        most = self._submitter.max_running
        if most is not None:
            most -= sum(
                min(each.submission.max_running or len(each.open_tasks), len(each.open_tasks))
                for each in filed
            )
        if most is not None and most <= 0:
            self.given.behind = len(cells)
            self.given.limit = f"launcher.max_running={self._submitter.max_running}"
            return []
        groups, self.given.behind = grouped(
            self._with_resources(cells),
            cells_per_job=self._submitter.cells_per_job,
            max_array_size=self._limits.max_tasks,
            max_running=most,
            held=sum(len(each.open_tasks) for each in filed),
            max_jobs=self._submitter.max_jobs,
        )
        if self.given.behind:
            self.given.limit = f"launcher.max_jobs={self._submitter.max_jobs}"
        return groups

    def _unheld(self) -> list[Cell]:
        view, wishes = self._view, self._view.wishes
        asked = set(self._request.cells) if self._request.cells is not None else None
        wanted, self.given.num_held = [], 0
        for cell in view.sweep.cells:
            is_asked = cell.cell in wishes.asked or asked is None or cell.cell in asked
            if not is_asked or view.cells[cell.cell].state not in (*_WANTED, State.QUEUED, State.UNKNOWN):
                continue
            job = view.jobs.of_cell(cell.cell)
            if (job is not None and job.phase is not Phase.OVER) or self._is_busy(cell):
                self.given.num_held += 1
            elif view.cells[cell.cell].state in _WANTED:
                wanted.append(cell)
        return wanted

    def _is_busy(self, cell: Cell) -> bool:
        """Whether somebody works on this very cell without a job, as far as its heartbeat's age tells."""
        for digest, status in self._view.cells[cell.cell].stages.items():
            if status.state is not State.RUNNING:
                continue
            last = self._view.snapshot.evidence(digest).attempts[-1]
            if last.claim is None or last.claim.cell != cell.cell:
                continue
            at = last.heartbeat.at if last.heartbeat else last.claim.at
            if _age_s(at) < 2 * last.claim.lease_s:
                return True
        return False

    def _with_resources(self, cells: Sequence[Cell]) -> list[tuple[str, Resources]]:
        view, hardware = self._view, self._submitter.hardware()
        settings = self._request.settings
        if not cells:
            return []
        estimates = {}
        if hardware is not None and settings is not None:
            estimates = estimates_of(
                view,
                cells,
                hardware=hardware,
                retention=settings.policy.retention,
                import_paths=self._request.import_paths,
                unfinished_only=True,
            )
        return self._submitter.resources(
            [
                (
                    view.subject(cell),
                    of_cell(cell, estimates),
                    view.jobs.count(cell.cell, Cause.OOM_HOST),
                )
                for cell in cells
            ]
        )

    def _submission(self, group: Group, number: int) -> Submission:
        view, request = self._view, self._request
        return Submission(
            nonce=new_nonce(),
            number=number,
            revision=view.number,
            request=request.number,
            launcher=self._submitter.name,
            cluster=self._limits.cluster,
            name=job_name(view.ledger.objects.url, view.sweep.name, number),
            tasks=group.tasks,
            resources=group.resources,
            max_running=group.max_running,
            exclude=self._submitter.excluded(view.jobs.filed),
            code=request.code,
            folder=request.folder,
            logs=self._submitter.logs(view.sweep.name, number),
            by=provenance.user(),
            at=provenance.now(),
        )

    def _text(self, submission: Submission) -> str:
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
        """Gives an intent that was created to the scheduler; False when it takes no more."""
        folder = self._view.ledger.objects.workspace(
            layout.job_logs(self._view.sweep.name, submission.number)
        )
        (folder / "job.sh").write_text(text)  # `sbatch` of it by hand does the same
        job_logs(self._view, submission).mkdir(parents=True, exist_ok=True)
        outcome = self._submitter.submit(submission, text)
        match outcome.verdict:
            case Verdict.ACCEPTED:
                self._submissions.accept(submission.number, outcome.job, at=provenance.now())
                self.given.submitted.append((submission, outcome.job))
                return True
            case Verdict.LIMIT:
                self._give_up(submission, outcome.said, None)
                self.given.limit = outcome.said
                return False
            case Verdict.REFUSED:
                self._give_up(submission, outcome.said, None)
                raise self._refused(submission, outcome)
            case Verdict.UNREACHED:
                self._give_up(submission, outcome.said, None)
        what = f"{self._submitter.name} did not take submission {submission.number}: {outcome.said}"
        held = (
            "whether it did is not known: nothing is submitted twice"
            if outcome.verdict is Verdict.UNCLEAR
            else ""
        )
        raise InfrastructureError(
            what, where=held, fix=f"sweep reconcile {self._view.sweep.name}{self._view.hint}"
        )

    def _refused(self, submission: Submission, outcome: Outcome) -> UserError:
        script = layout.job_logs(self._view.sweep.name, submission.number)
        return UserError(
            f"{self._submitter.name} refuses the job: {outcome.said}",
            where=f"{self._view.ledger.objects.url}/{script}/job.sh",
            fix="mend cluster.* or launcher.resources, and launch again",
        )


def job_name(url: str, sweep: str, number: int) -> str:
    """Returns the name of a submission's job: readable, and no other's in this store or another."""
    store = hashlib.sha256(url.encode()).hexdigest()[:6]
    return f"{sweep}.{number}.{store}"


def _cut(group: Group, most: int) -> Group:
    return group._replace(tasks=group.tasks[:most])


def _missing(jobs: Jobs, settle_s: float) -> dict[tuple[int, int], Filed]:
    """Tasks that an answer does not list, though the scheduler took them long ago."""
    if jobs.problem:
        return {}
    return {
        (filed.submission.number, index): filed
        for filed in jobs.filed
        for index in filed.open_tasks
        if filed.accepted is not None
        and _age_s(filed.accepted.at) > settle_s
        and (job := jobs.job(filed, index)).phase is not Phase.OVER
        and job.seen is None
    }


def job_logs(view: View, submission: Submission) -> Path:
    """Returns the folder of the logs of a submission's jobs."""
    if submission.logs:
        return Path(submission.logs)
    return view.ledger.objects.download(layout.job_logs(view.sweep.name, submission.number))


def _age_s(at: str) -> float:
    """How long ago a record was written, by the clocks of the machines that submit."""
    try:
        return time.time() - datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0


def print_given(view: View, given: Given) -> None:
    """Says what was submitted and what was not."""
    for submission, job in given.submitted:
        cells = counted(sum(map(len, submission.tasks)), "cell")
        print(f"  job {job}: {cells} in {counted(len(submission.tasks), 'task')}")
    if given.behind:
        print(f"  {counted(given.behind, 'cell')} held back by a limit: {given.limit}")
        print(f"    later: sweep reconcile {view.sweep.name}{view.hint}")
