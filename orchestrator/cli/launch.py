"""`sweep launch`: seal the sweep, record the wish, and run everything that is not done."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from orchestrator import provenance
from orchestrator.api.drift import print_code_drift
from orchestrator.api.estimates import estimates_of, missing_of, needs_of, refuse_blocked
from orchestrator.api.requests import build_request, plan_code, submit_request, take_code
from orchestrator.api.state import SweepState, sealed_view, split_store
from orchestrator.api.submission import Dispatch
from orchestrator.cli.attached import detach, make_launcher, run_attached
from orchestrator.cli.output import counted
from orchestrator.cli.plan import add_composing, again, engine_of, planned
from orchestrator.cli.reconcile import PendingLaunch, add_wait, limits_of, print_scripts, submit_all
from orchestrator.compose import Composition
from orchestrator.core.records import Request, Revision
from orchestrator.core.settings import RunSettings
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.entry import outlive_the_reader
from orchestrator.launchers.base import Launcher, Submitter
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger, content_digest, open_ledger
from orchestrator.store.patience import Outage


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_composing(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="only print what would be submitted (Slurm, Ray)"
    )
    add_wait(parser)
    parser.add_argument(
        "--detach", action="store_true", help="return at once; the launch goes on without a terminal"
    )


def run(args: argparse.Namespace) -> int:
    """Launches a sweep, attached unless asked otherwise."""
    outlive_the_reader()
    view, composition = planned(args.sweep, args.overrides, args.name)
    view.check()
    cells = view.select(args.only)
    settings, import_paths = engine_of(view, composition, split_store(args.overrides)[1])
    view.ledger.refuse_unheld(settings, view.sweep)
    launcher = make_launcher(settings, len(cells))
    refuse_blocked(view, missing_of(needs_of(view, cells, import_paths)), fix=again("prefetch", args))
    check_fit(view, cells, settings, launcher, import_paths)
    limits = limits_of(launcher, args)
    if limits is not None:
        dispatch = Dispatch(
            view, planned_request(view, cells, args, settings, import_paths), launcher, limits
        )
        if args.dry_run:
            return print_scripts(dispatch.dry_run(), limits.notes)
        dispatch.check()
    ledger = open_ledger(
        view.ledger.objects.url, create=True, at=provenance.now(), shared=settings.store.shared
    ).patient(Outage(settings.store.outage_s, print))
    ledger.prove_writable()
    if limits:
        launcher.meet(ledger.objects.url, ledger.objects.get(layout.STORE) or b"")
    sealed = seal(ledger, composition, args.overrides) if composition else view
    print(f"{sealed.title}: {sealed.sweep.description}")
    for note in (*(composition.notes if composition else ()), *(limits.notes if limits else ())):
        print(f"  note: {note}")
    sealed.warn()
    print_code_drift(sealed, cells, import_paths)
    num_done = sum(view.cells[cell.cell].state is State.DONE for cell in cells)
    print(f"  {counted(len(cells), 'cell')}, {num_done} of them done; store {ledger.objects.url}")
    takes_code = limits or launcher.takes_snapshot
    request = submit_request(
        sealed,
        build_request(
            sealed,
            "launch",
            cells if args.only else None,
            after=attempts_so_far(view, cells),
            settings=settings,
            import_paths=import_paths,
            code=take_code(ledger.objects, view.sweep, import_paths) if takes_code else None,
        ),
    )
    if limits:
        wait = args.wait or (launcher.attached and not args.detach)
        return submit_all(sealed, [PendingLaunch(request, launcher, limits)], wait=wait)
    if args.detach:
        return detach(sealed, request)
    return run_attached(sealed.fresh(), request, launcher)


def planned_request(
    view: SweepState,
    cells: Sequence[Cell],
    args: argparse.Namespace,
    settings: RunSettings,
    import_paths: tuple[str, ...],
) -> Request:
    """Returns the request that a launch would record; its code is not stored yet."""
    return build_request(
        view,
        "launch",
        cells if args.only else None,
        settings=settings,
        import_paths=import_paths,
        code=plan_code(view.ledger.objects, view.sweep, import_paths).code,
    )


def check_fit(
    view: SweepState,
    cells: Sequence[Cell],
    settings: RunSettings,
    launcher: Launcher | Submitter,
    import_paths: Sequence[str],
) -> None:
    """Refuses, before anything is recorded, cells that cannot fit what one worker of the launcher has.

    Raises:
        UserError: there is such a cell.
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
    """Seals what was composed, or finds the revision with the same content."""
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
    """Returns, for each stage that is not done, the number of its last attempt: budgets count from there."""
    return {
        digest: status.attempts
        for cell in cells
        for digest, status in view.cells[cell.cell].stages.items()
        if status.state is not State.DONE and status.attempts
    }
