"""A launch or rerun, from the composed or sealed sweep through all checks to the recorded request."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from orchestrator import provenance
from orchestrator.api.estimates import estimates_of, gpus_held, held_seconds, molded
from orchestrator.api.requests import (
    build_request,
    gate_facts,
    missing_of,
    needs_of,
    plan_code,
    refuse_blocked,
    take_code,
)
from orchestrator.api.state import (
    Notify,
    SweepState,
    current_revision,
    naming_the_store,
    parse_reference,
    sealed_view,
)
from orchestrator.api.submission import Dispatch
from orchestrator.compose.files import locate
from orchestrator.compose.main import Composition, compose
from orchestrator.compose.overrides import run_settings, run_settings_with
from orchestrator.core.records import Code, Request, Revision
from orchestrator.core.settings import RunSettings, split_store
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.costs import Estimate
from orchestrator.errors import UserError
from orchestrator.jobs.submissions import spending_now
from orchestrator.launchers.base import Launcher, Limits, Submitter, hardware_for
from orchestrator.registry import CHECK_NOTIFY, LAUNCHERS, check_trackers, load, lookup
from orchestrator.store import layout
from orchestrator.store.access import Outage, new_nonce
from orchestrator.store.ledger import Ledger, content_digest, open_ledger
from orchestrator.store.opening import store_url


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
            source=provenance.without_secrets(composition.source),
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
        for digest in view.chain(cell)
        for status in (view.stages[digest],)
        if status.state is not State.DONE and status.attempts
    }


def with_code(view: SweepState, digest: str) -> SweepState:
    """Return the state of the same revision as a launch of this code would find it: what it holds back.

    Args:
        view: the sweep state.
        digest: of the code.
    """
    if not view.holds.cells:
        return view
    changed = view.with_gates(view.gates)
    changed.codes = dict.fromkeys(view.codes, digest)
    return changed


def make_launcher(settings: RunSettings, num_cells: int) -> Any:
    """Return the launcher that the settings name.

    Args:
        settings: of the run.
        num_cells: number of cells to run.

    Raises:
        UserError: there is no such launcher or tracker, or it cannot meet the settings.
    """
    check_trackers(
        settings.tracker.name, settings.tracker.mirrors
    )  # wrong options are an error before anything is recorded
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


@dataclass(kw_only=True)
class CheckedLaunch:
    """A launch or rerun that has passed every check, and of which nothing is recorded yet.

    Creating one checks everything that can be checked before anything is recorded or submitted. Then call
    `seal` and `record`; a dry run calls `dispatch` instead.

    Attributes:
        verb: the kind of request to record.
        view: the revision, as composed or as the store holds it.
        cells: to run.
        settings: to run under.
        import_paths: folders from which the user's stages are imported.
        composition: what was composed; None for a revision from the store.
        overrides: the words that it was composed with, recorded with the revision.
        names_cells: whether the request lists these cells; otherwise it is for all cells of the revision.
        dry_run: whether nothing will be submitted, so that the scheduler need not answer.
        prefetch: the command that fetches what cells lack, for the error.
        launcher: made from the settings.
        limits: of its scheduler; None for a launcher without a scheduler.

    Raises:
        UserError: a cell lacks what it needs or fits nowhere, or a setting or path cannot be used.
        InfrastructureError: the scheduler does not answer.
    """

    verb: Literal["launch", "rerun"]
    view: SweepState
    cells: Sequence[Cell]
    settings: RunSettings
    import_paths: tuple[str, ...]
    composition: Composition | None = None
    overrides: Sequence[str] = ()
    names_cells: bool = True
    dry_run: bool = False
    prefetch: str = ""
    launcher: Any = field(init=False)
    limits: Limits | None = field(init=False)

    def __post_init__(self) -> None:
        view, cells, import_paths = self.view, self.cells, self.import_paths
        view.check()
        load(CHECK_NOTIFY)(self.settings.notify)
        view.ledger.refuse_unheld(self.settings, view.sweep)
        check_trackers(self.settings.tracker.name, self.settings.tracker.mirrors, here=True)
        self.launcher = make_launcher(self.settings, len(cells))
        if self.settings.is_external:
            self.launcher.check([view.subject(cell) for cell in view.sweep.cells])
        refuse_blocked(view, missing_of(needs_of(view, cells, import_paths)), fix=self.prefetch)
        hardware = hardware_for(self.launcher, self.settings)
        gpus = self.launcher.gpus() if self.settings.hardware.moldable else None
        if hardware is not None or gpus is not None or self.settings.policy.budget.is_set:
            # The estimate of a cell that fits nowhere is an error.
            estimates = estimates_of(
                view,
                cells,
                hardware=hardware or self.settings.hardware.assumed,
                retention=self.settings.policy.retention,
                import_paths=import_paths,
                unfinished_only=True,
            )
            if gpus is not None:
                molded(view, cells, estimates, gpus)
            if self.settings.policy.budget.is_set:
                self._refuse_over_budget(estimates)
        self.limits = limits_of(self.launcher, view.sweep.name, dry_run=self.dry_run)
        if self.limits is not None and not self.dry_run:
            self.dispatch().check()

    def _refuse_over_budget(self, estimates: Mapping[str, Estimate]) -> None:
        """Raise if the cells would cost more than the budget allows."""
        policy, view = self.settings.policy, self.view
        todo = [cell for cell in self.cells if view.cells[cell.id].state is not State.DONE]
        held = gpus_held(view, todo, estimates, self.launcher, self.settings)
        seconds = held_seconds(view, todo, estimates, held) if any(held.values()) else {}
        spent = spending_now(view.ledger, view.sweep.name, policy)
        needed = {digest for cell in todo for digest in cell.stage_digests}.intersection(seconds)
        policy.budget.refuse(
            view.sweep.name,
            spent_s=spent.gpu_seconds if spent else 0.0,
            needed_s=sum(seconds[digest] for digest in needed),
            num_cells=len(todo) if seconds else 0,
            now=time.time(),
        )

    def dispatch(self) -> Dispatch:
        """Return the submission of the cells, for a request that is not recorded."""
        assert self.limits is not None
        code = plan_code(self.view.ledger.objects, self.view.sweep, self.import_paths).code
        view = with_code(self.view, code.version)
        return Dispatch(view, self._request(view, code, {}), self.launcher, self.limits)

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
        request = self._request(sealed, code, attempts_so_far(self.view, self.cells))
        gates = gate_facts(sealed, request, self.launcher.hardware(), self.import_paths)
        request = msgspec.structs.replace(request, gates=gates)
        if self.names_cells:  # else failures of other cells would hold back the named ones again at once
            others = attempts_so_far(self.view, self.view.sweep.cells)
            failures = {digest: number for digest, number in others.items() if digest not in request.after}
            request = msgspec.structs.replace(request, failures=failures)
        return sealed.ledger.add_request(sealed.sweep.name, request)

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


def failed_cells(view: SweepState) -> list[Cell]:
    """Return the cells that failed, lost their worker or are blocked."""
    return [
        c for c in view.sweep.cells if view.cells[c.id].state in (State.FAILED, State.LOST, State.BLOCKED)
    ]


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


def composed_or_sealed(
    word: str,
    overrides: Sequence[str],
    name: str | None = None,
    *,
    progress: Callable[[int, int], None] = lambda number, of: None,
    given: Mapping[str, Any] | None = None,
) -> tuple[SweepState, Composition | None]:
    """Compose a sweep and find its revision in the store; ``SWEEP@k`` is read from the store instead.

    Args:
        word: a name, a path to a YAML file, or ``SWEEP@k``.
        overrides: as on the command line.
        name: another name for this variant.
        progress: called with the number of composed points and of all points.
        given: the content of a sweep file, in place of one that `word` names.

    Returns:
        The revision, and the composition; None for a revision from the store.

    Raises:
        UserError: the sweep or an override is wrong.
    """
    url, rest = split_store(overrides)
    ledger = open_ledger(store_url(url))
    number = _sealed_number(ledger, word) if given is None else None
    if number is not None:
        sweep = parse_reference(word).name
        if name:
            raise UserError(f"{sweep}@{number} is sealed under its name", fix="--name goes with a sweep file")
        view = sealed_view(ledger, sweep, number)
        # A sealed revision cannot be changed, but its run settings can. This call rejects all other
        # overrides.
        run_settings_of(view, None, rest)
        return view, None
    with naming_the_store(ledger):
        composition = compose(word, overrides, name=name, progress=progress, given=given)
    ledger = open_ledger(store_url(composition.settings.store.url))
    return as_view(ledger, composition), composition


def run_settings_of(
    view: SweepState, composition: Composition | None, overrides: Sequence[str] = ()
) -> tuple[RunSettings, tuple[str, ...]]:
    """Return run settings and import paths: as composed, or for a sealed revision those of its last launch.

    Args:
        view: the revision.
        composition: what was composed; None for a sealed revision.
        overrides: of run settings, applied to those of the last launch.

    Raises:
        UserError: an override changes something other than run settings.
    """
    if composition is not None:
        return composition.settings, composition.import_paths
    for request in reversed(view.requests):
        if request.settings:
            changed = run_settings_with(request.settings, overrides) if overrides else request.settings
            return changed, request.import_paths
    return run_settings(overrides), ()


def _sealed_number(ledger: Ledger, word: str) -> int | None:
    """Return the revision that ``SWEEP@k`` names, else the current one if the sweep has no file."""
    reference = parse_reference(word)
    if reference.revision is None:
        try:
            locate(word, Path.cwd())
        except UserError:
            return current_revision(ledger, reference.name)
    return reference.revision


def as_view(ledger: Ledger, composition: Composition) -> SweepState:
    """Return the sealed revision with this content, else an unsealed one with the next number."""
    sweep = composition.sweep
    number = ledger.find_content(sweep.name, content_digest(sweep))
    if number is not None:
        return sealed_view(ledger, sweep.name, number)
    return SweepState(ledger, sweep, max(ledger.revision_numbers(sweep.name), default=0) + 1, sealed=False)
