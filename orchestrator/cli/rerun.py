"""`sweep rerun`: run the failed cells again, or those that a selector names; keeps every earlier attempt."""

from __future__ import annotations

import argparse
import sys

from orchestrator.api.launching import check_launch, engine_of, failed_cells
from orchestrator.api.state import SweepState, open_view, split_store
from orchestrator.cli.arguments import add_sweep, add_wait
from orchestrator.cli.attached import follow
from orchestrator.cli.output import print_table, shorten
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.entry import outlive_the_reader
from orchestrator.errors import UserError
from orchestrator.text import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, only=True, json=False)
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="of the engine, such as launcher.workers=4",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would run")
    parser.add_argument("--yes", action="store_true", help="do not ask on a terminal")
    parser.add_argument("--detach", action="store_true", help="return at once")
    add_wait(parser)


def run(args: argparse.Namespace) -> int:
    """Print which cells will run again, confirm on a terminal, and run them."""
    outlive_the_reader()
    url, rest = split_store(args.overrides)
    view = open_view(args.sweep, url)
    if not view.sealed:
        raise UserError(f"{view.sweep.name} was never launched here", fix=f"sweep launch {view.sweep.name}")
    view.check()
    settings, import_paths = engine_of(view, None, rest)
    chosen = view.select(args.only) if args.only else failed_cells(view)
    # A done cell stays done; `sweep discard` makes it run again.
    cells = [cell for cell in chosen if view.cells[cell.cell].state is not State.DONE]
    if not cells:
        done = f"{counted(len(chosen), 'cell')} named, all done" if args.only else "no failed cells"
        print(f"{view.title}: {done}, nothing to rerun")
        return 0
    if args.dry_run:
        _print_cells(view, cells)
        return 0
    fix = f"sweep prefetch {view.sweep.name}@{view.number}{view.hint}"
    # The checks come before the question, so that a user does not confirm what is then refused.
    checked = check_launch("rerun", view, cells, settings=settings, import_paths=import_paths, prefetch=fix)
    _print_cells(view, cells)
    if (
        not args.yes
        and sys.stdin.isatty()
        and input("rerun them? [y/N] ").strip().lower() not in ("y", "yes")
    ):
        print("nothing was started")
        return 0
    return follow(checked, checked.seal(print), wait=args.wait, is_detached=args.detach)


def _print_cells(view: SweepState, cells: list[Cell]) -> None:
    """Print the cells to run again, each with the stages that are not done."""
    print(f"{view.title}: rerun {counted(len(cells), 'cell')}; what is done stays, checkpoints are used")
    rows = []
    for cell in cells:
        status = view.cells[cell.cell]
        stages = [
            view.sweep.nodes[d].name
            for d, s in status.stages.items()
            if s.state not in (State.DONE, State.RUNNING)
        ]
        rows.append((cell.cell, status.state, status.attempts, " ".join(stages), shorten(status.reason, 80)))
    print_table(("cell", "state", "attempts", "stages to run", "reason"), rows)
