"""`sweep launch`: seal the sweep, record the request, and run everything that is not done."""

from __future__ import annotations

import argparse

from orchestrator.api.launching import (
    check_launch,
    engine_of,
    planned,
)
from orchestrator.api.requests import code_drift
from orchestrator.api.state import split_store
from orchestrator.cli.arguments import add_composing, add_wait, again
from orchestrator.cli.attached import follow
from orchestrator.cli.output import ComposeProgress, print_lines, print_warnings
from orchestrator.cli.progress import print_scripts
from orchestrator.core.state import State
from orchestrator.entry import outlive_the_reader
from orchestrator.text import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_composing(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="only print what would be submitted (Slurm, Ray)"
    )
    add_wait(parser)
    parser.add_argument(
        "--detach", action="store_true", help="return at once; the launch goes on without a terminal"
    )


def run(args: argparse.Namespace) -> int:
    """Check, seal and launch a sweep; follow it to its end unless it runs as jobs or detached."""
    outlive_the_reader()
    view, composition = planned(args.sweep, args.overrides, args.name, progress=ComposeProgress())
    view.check()
    cells = view.select(args.only)
    settings, import_paths = engine_of(view, composition, split_store(args.overrides)[1])
    # All checks come before the first write, so a refused launch leaves no trace in the store.
    checked = check_launch(
        "launch",
        view,
        cells,
        settings=settings,
        import_paths=import_paths,
        composition=composition,
        overrides=args.overrides,
        names_cells=bool(args.only),
        dry_run=args.dry_run,
        prefetch=again("prefetch", args),
    )
    notes = checked.limits.notes if checked.limits else ()
    if args.dry_run:
        return print_scripts(checked.dispatch().dry_run(), notes)
    # From here on, the store is changed.
    sealed = checked.seal(print)
    print(f"{sealed.title}: {sealed.sweep.description}")
    for note in (*(composition.notes if composition else ()), *notes):
        print(f"  note: {note}")
    print_warnings(sealed)
    print_lines(code_drift(sealed, cells, import_paths), indent=2)
    num_done = sum(view.cells[cell.cell].state is State.DONE for cell in cells)
    print(f"  {counted(len(cells), 'cell')}, {num_done} of them done; store {sealed.ledger.objects.url}")
    return follow(checked, sealed, wait=args.wait, is_detached=args.detach)
