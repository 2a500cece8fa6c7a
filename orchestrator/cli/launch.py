"""`sweep launch`: seal the sweep, record the wish, and run everything that is not done."""

from __future__ import annotations

import argparse

from orchestrator import provenance
from orchestrator.api.drift import print_code_drift
from orchestrator.api.estimates import missing_of, needs_of, refuse_blocked
from orchestrator.api.launching import (
    attempts_so_far,
    check_fit,
    detach,
    make_launcher,
    planned_request,
    seal,
)
from orchestrator.api.planning import engine_of, planned
from orchestrator.api.requests import build_request, submit_request, take_code
from orchestrator.api.settling import PendingLaunch, limits_of
from orchestrator.api.submission import Dispatch
from orchestrator.cli.arguments import add_composing, add_wait, again, split_store
from orchestrator.cli.attached import run_attached
from orchestrator.cli.jobs import print_scripts, submit_all
from orchestrator.core.state import State
from orchestrator.entry import outlive_the_reader
from orchestrator.store import layout
from orchestrator.store.ledger import open_ledger
from orchestrator.store.patience import Outage
from orchestrator.text import counted


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
