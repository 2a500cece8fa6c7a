"""A launch or rerun, from its checks to its recorded request, and the passes that submit its jobs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orchestrator import provenance
from orchestrator.api.estimates import estimates_of, missing_of, needs_of, refuse_blocked
from orchestrator.api.requests import build_request, plan_code, submit_request, take_code
from orchestrator.api.settling import lines_of as unsettled
from orchestrator.api.settling import reconcile_jobs
from orchestrator.api.state import Notify, SweepState, sealed_view
from orchestrator.api.submission import Dispatch, SubmitResult, lines_of
from orchestrator.compose import Composition
from orchestrator.core.records import Code, Request, Revision
from orchestrator.core.settings import RunSettings
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import SweepError, UserError
from orchestrator.launchers.base import Launcher, Limits, Submitter
from orchestrator.launchers.jobs import settings_of
from orchestrator.registry import LAUNCHERS, lookup
from orchestrator.store import layout
from orchestrator.store.access import Outage, new_nonce
from orchestrator.store.ledger import Ledger, content_digest, open_ledger
from orchestrator.trackers.mirror import make_mirror


def check_fit(
    view: SweepState,
    cells: Sequence[Cell],
    settings: RunSettings,
    launcher: Launcher | Submitter,
    import_paths: Sequence[str],
) -> None:
    """Raise if a cell cannot fit on what one worker of the launcher has, before anything is recorded.

    Raises:
        UserError: a cell does not fit.
    """
    hardware = launcher.hardware()
    if hardware is not None:
        estimates_of(
            view,
            cells,
            hardware=hardware,
            retention=settings.policy.retention,
            import_paths=import_paths,
            unfinished_only=True,
        )


def seal(ledger: Ledger, composition: Composition, overrides: Sequence[str]) -> SweepState:
    """Seal a composed sweep as a revision, or return the revision with the same content.

    Args:
        ledger: the store.
        composition: what was composed.
        overrides: the words that it was composed with, recorded with the revision.
    """
    # Launching an unchanged sweep again must not make a new revision.
    content = content_digest(composition.sweep)

    def revision(number: int) -> Revision:
        return Revision(
            nonce=new_nonce(),
            number=number,
            content=content,
            sweep=composition.sweep,
            source=provenance.without_secrets(composition.source.read_text(encoding="utf-8")),
            overrides=tuple(map(provenance.without_secrets, overrides)),
            notes=composition.notes,
            at=provenance.now(),
        )

    sealed = ledger.seal(revision, composition.sweep.name, content)
    return sealed_view(ledger, composition.sweep.name, sealed.number)


def attempts_so_far(view: SweepState, cells: Sequence[Cell]) -> dict[str, int]:
    """Return the number of the last attempt of each stage that is not done, by digest.

    Retry budgets start again at a launch or rerun: only attempts after these count.
    """
    return {
        digest: status.attempts
        for cell in cells
        for digest, status in view.cells[cell.cell].stages.items()
        if status.state is not State.DONE and status.attempts
    }


def make_launcher(settings: RunSettings, num_cells: int) -> Any:
    """Return the launcher that the settings name.

    Args:
        settings: of the run.
        num_cells: number of cells to run.

    Raises:
        UserError: there is no such launcher or tracker, or it cannot meet the settings.
    """
    # The mirror is only made to validate the tracker's options, before anything is recorded.
    make_mirror(settings, Path())
    made = lookup(LAUNCHERS, settings.launcher["name"], kind="launcher")
    return made(settings.launcher, num_cells, settings.cluster)


class Detached(NamedTuple):
    """A background process that runs the cells of a request.

    Attributes:
        process: the leader of a session of its own, so that it survives the terminal.
        log: file with all that it prints.
    """

    process: subprocess.Popen[bytes]
    log: Path


def detach(view: SweepState, request: Request) -> Detached:
    """Start a background process that runs the cells of a recorded request, and return at once."""
    folder = view.ledger.objects.workspace(layout.logs(view.sweep.name))
    log = folder / f"request-{request.number}-launcher.log"
    command = [sys.executable, "-m", "orchestrator.cli.attached", view.ledger.objects.url, view.sweep.name]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [*command, str(request.number)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    return Detached(process, log)


@dataclass(frozen=True, kw_only=True)
class CheckedLaunch:
    """A launch or rerun that has passed every check, and of which nothing is recorded yet.

    Call `seal`, then `record`; a dry run calls `dispatch` instead.

    Attributes:
        verb: the kind of request to record.
        view: the revision, as composed or as the store holds it.
        composition: what was composed; None for a revision from the store.
        overrides: the words that it was composed with, recorded with the revision.
        cells: to run.
        names_cells: whether the request lists these cells; otherwise it is for all cells of the revision.
        settings: to run under.
        import_paths: folders from which the user's stages are imported.
        launcher: made from the settings.
        limits: of its scheduler; None for a launcher without a scheduler.
    """

    verb: Literal["launch", "rerun"]
    view: SweepState
    composition: Composition | None
    overrides: Sequence[str]
    cells: Sequence[Cell]
    names_cells: bool
    settings: RunSettings
    import_paths: tuple[str, ...]
    launcher: Any
    limits: Limits | None

    def dispatch(self) -> Dispatch:
        """Return the submission of the cells, for a request that is not recorded."""
        assert self.limits is not None
        code = plan_code(self.view.ledger.objects, self.view.sweep, self.import_paths).code
        return Dispatch(self.view, self._request(self.view, code, {}), self.launcher, self.limits)

    def seal(self, notify: Notify) -> SweepState:
        """Create the store if there is none, prove that it can be written, and seal the revision.

        Args:
            notify: called with lines about a store that does not answer for a while.

        Raises:
            UserError: the store cannot be used, or the cluster's Python environment differs.
            InfrastructureError: the store or the cluster does not answer.
        """
        ledger = open_ledger(
            self.view.ledger.objects.url, create=True, at=provenance.now(), shared=self.settings.store.shared
        ).patient(Outage(self.settings.store.outage_s, notify))
        ledger.prove_writable()
        if self.limits:
            self.launcher.meet(ledger.objects.url, ledger.objects.get(layout.STORE) or b"")
        return seal(ledger, self.composition, self.overrides) if self.composition else self.view

    def record(self, sealed: SweepState, notify: Notify) -> Request:
        """Store the code if workers run a snapshot of it, and record the request.

        Args:
            sealed: the result of `seal`.
            notify: called with warnings about credentials in the code.
        """
        # Local workers run the checkout itself, unless they are set to run a snapshot.
        code = None
        if self.limits or self.launcher.takes_snapshot:
            code = take_code(sealed.ledger.objects, sealed.sweep, self.import_paths, notify)
        return submit_request(sealed, self._request(sealed, code, attempts_so_far(self.view, self.cells)))

    def _request(self, view: SweepState, code: Code | None, after: dict[str, int]) -> Request:
        """Return the request, not recorded yet."""
        return build_request(
            view,
            self.verb,
            self.cells if self.names_cells else None,
            after=after,
            settings=self.settings,
            import_paths=self.import_paths,
            code=code,
        )


def check_launch(
    verb: Literal["launch", "rerun"],
    view: SweepState,
    cells: Sequence[Cell],
    *,
    settings: RunSettings,
    import_paths: tuple[str, ...],
    composition: Composition | None = None,
    overrides: Sequence[str] = (),
    names_cells: bool = True,
    dry_run: bool = False,
    prefetch: str = "",
) -> CheckedLaunch:
    """Check everything that can be checked before anything is recorded or submitted.

    Args:
        verb: launch or rerun; both take this path.
        view: the revision.
        cells: to run.
        settings: to run under.
        import_paths: folders from which the user's stages are imported.
        composition: what was composed; None for a revision from the store.
        overrides: the words that it was composed with.
        names_cells: whether the request lists these cells; otherwise it is for all cells of the revision.
        dry_run: whether nothing will be submitted, so that the scheduler need not answer.
        prefetch: the command that fetches what cells lack, for the error.

    Raises:
        UserError: a cell lacks what it needs or fits nowhere, or a setting or path cannot be used.
        InfrastructureError: the scheduler does not answer.
    """
    view.check()
    view.ledger.refuse_unheld(settings, view.sweep)
    launcher = make_launcher(settings, len(cells))
    refuse_blocked(view, missing_of(needs_of(view, cells, import_paths)), fix=prefetch)
    check_fit(view, cells, settings, launcher, import_paths)
    checked = CheckedLaunch(
        verb=verb,
        view=view,
        composition=composition,
        overrides=overrides,
        cells=cells,
        names_cells=names_cells,
        settings=settings,
        import_paths=import_paths,
        launcher=launcher,
        limits=limits_of(launcher, view.sweep.name, dry_run=dry_run),
    )
    if checked.limits is not None and not dry_run:
        checked.dispatch().check()
    return checked


def failed_cells(view: SweepState) -> list[Cell]:
    """Return the cells that failed, lost their worker or are blocked."""
    return [
        c for c in view.sweep.cells if view.cells[c.cell].state in (State.FAILED, State.LOST, State.BLOCKED)
    ]


class PendingLaunch(NamedTuple):
    """A request that runs as jobs, the launcher of its settings, and the limits of its scheduler."""

    request: Request
    submitter: Submitter
    limits: Limits


def requests_of(view: SweepState, notify: Notify) -> list[PendingLaunch]:
    """Return the requests that matter for jobs of a revision.

    A request matters if its settings and code apply to a cell, or if it has open jobs. The newest launch or
    rerun always does. A sweep may have jobs of several schedulers; those that do not answer are reported and
    skipped.

    Args:
        view: the sweep state.
        notify: called with a line for each skipped scheduler.

    Raises:
        UserError: nothing was launched as jobs, or the cluster cannot be found from this machine.
        InfrastructureError: no scheduler answers.
    """
    started = [r for r in view.requests if r.settings is not None and r.revision == view.number]
    if not started:
        raise UserError(f"{view.title} was never launched here", fix=f"sweep launch {view.sweep.name}")
    numbers = {view.wishes.asked.get(cell.cell) for cell in view.sweep.cells}
    # Jobs of earlier requests may still be open. Their ends must be recorded too.
    numbers |= {each.submission.request for each in view.jobs.filed if each.open_tasks}
    asked: list[PendingLaunch] = []
    silent: list[SweepError] = []
    for request in started:
        submitter = make_launcher(settings_of(request), len(view.sweep.cells))
        if not isinstance(submitter, Submitter) or not (request.number in numbers or request is started[-1]):
            continue
        try:
            asked.append(PendingLaunch(request, submitter, submitter.limits()))
        except SweepError as error:  # such as a cluster that is only reachable from its own machines
            silent.append(error)
    if silent and not asked:
        raise silent[-1]
    for problem in silent:
        notify(f"left for later: {problem.what}")
    if not asked:
        raise UserError(
            f"{view.title} was last launched with a launcher that has no jobs",
            where=f"launcher={settings_of(started[-1]).launcher['name']}",
            fix=f"sweep launch {view.sweep.name} launcher=slurm{view.hint}, or launcher=ray",
        )
    return asked


def limits_of(launcher: Launcher | Submitter, sweep: str, *, dry_run: bool = False) -> Limits | None:
    """Return the limits of a launcher's scheduler; None if the launcher has no scheduler.

    In a dry run, a scheduler that does not answer is replaced by its usual limits.

    Raises:
        UserError: a dry run of a launcher that submits nothing.
        InfrastructureError: the scheduler does not answer.
    """
    if isinstance(launcher, Submitter):
        return launcher.limits(dry_run=dry_run)
    if dry_run:
        raise UserError("this launcher submits nothing", fix=f"sweep plan {sweep}")
    return None


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
    view, given = settled.view, SubmitResult()
    for each in asked:
        dispatch = Dispatch(view, *each)
        try:
            given.add(dispatch.run(hold="" if settled.closed else hold))
        except SweepError:  # earlier submissions have been made, so they are reported
            given.add(SubmitResult(submitted=dispatch.given.submitted))
            for line in lines_of(view, given):
                notify(line)
            raise
        view = dispatch.view
    return SubmitPass(view, given, [*lines_of(view, given), *unsettled(view, settled)])


_OPEN = frozenset({State.RUNNING, State.QUEUED, State.UNKNOWN, State.PENDING, State.RELEASED, State.LOST})
"""States of cells that have not ended."""


def is_open(view: SweepState, cell: Cell) -> bool:
    """Return whether a cell may still run as a job: it has not ended, and its job, if any, can start."""
    job = view.jobs.of_cell(cell.cell)
    can_never_start = job is not None and job.seen is not None and bool(job.seen.stuck)
    return view.cells[cell.cell].state in _OPEN and not can_never_start
