"""`sweep rerun`: run the failed cells again, or those that a selector names; keeps every earlier attempt."""

from __future__ import annotations

import argparse
import sys

from orchestrator.api.launching import attempts_so_far, detach, make_launcher
from orchestrator.api.planning import engine_of
from orchestrator.api.requests import build_request, submit_request, take_code
from orchestrator.api.settling import PendingLaunch, limits_of
from orchestrator.api.state import SweepState, open_view
from orchestrator.cli.arguments import add_sweep, add_wait, split_store
from orchestrator.cli.attached import run_attached
from orchestrator.cli.jobs import submit_all
from orchestrator.cli.output import print_table, shorten
from orchestrator.core.records import Code, Request
from orchestrator.core.settings import RunSettings
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.entry import outlive_the_reader
from orchestrator.errors import UserError
from orchestrator.store import layout
from orchestrator.text import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
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
    """Says what it will do, then does it."""
    outlive_the_reader()
    url, rest = split_store(args.overrides)
    view = open_view(args.sweep, url)
    if not view.sealed:
        raise UserError(f"{view.sweep.name} was never launched here", fix=f"sweep launch {view.sweep.name}")
    view.check()
    settings, import_paths = engine_of(view, None, rest)
    view.ledger.refuse_unheld(settings)
    chosen = view.select(args.only) if args.only else _failed(view)
    cells = [cell for cell in chosen if view.cells[cell.cell].state is not State.DONE]
    if not cells:
        done = f"{counted(len(chosen), 'cell')} named, all done" if args.only else "no failed cells"
        print(f"{view.title}: {done}, nothing to rerun")
        return 0
    launcher = make_launcher(settings, len(cells))
    _say(view, cells)
    limits = None if args.dry_run else limits_of(launcher, args)
    if args.dry_run:
        return 0
    if (
        not args.yes
        and sys.stdin.isatty()
        and input("rerun them? [y/N] ").strip().lower() not in ("y", "yes")
    ):
        print("nothing was started")
        return 0
    if limits:
        launcher.meet(view.ledger.objects.url, view.ledger.objects.get(layout.STORE) or b"")
    wanted = limits or launcher.takes_snapshot
    code = take_code(view.ledger.objects, view.sweep, import_paths) if wanted else None
    request = _record(view, cells, settings, import_paths, code)
    if limits:
        wait = args.wait or (launcher.attached and not args.detach)
        return submit_all(view, [PendingLaunch(request, launcher, limits)], wait=wait)
    return detach(view, request) if args.detach else run_attached(view.fresh(), request, launcher)


def _failed(view: SweepState) -> list[Cell]:
    """Failed cells, and lost ones, which nobody runs any more."""
    return [
        c for c in view.sweep.cells if view.cells[c.cell].state in (State.FAILED, State.LOST, State.BLOCKED)
    ]


def _say(view: SweepState, cells: list[Cell]) -> None:
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


def _record(
    view: SweepState,
    cells: list[Cell],
    settings: RunSettings,
    import_paths: tuple[str, ...],
    code: Code | None,
) -> Request:
    view.ledger.prove_writable()
    after = attempts_so_far(view, cells)
    wish = build_request(
        view, "rerun", cells, after=after, settings=settings, import_paths=import_paths, code=code
    )
    return submit_request(view, wish)
