"""`sweep cancel`: stop cells and keep them from being claimed, until the next launch or rerun of them."""

from __future__ import annotations

import argparse

from orchestrator.api.run import cancel_cells
from orchestrator.api.state import open_view
from orchestrator.cli.arguments import add_store, add_sweep, no_overrides
from orchestrator.cli.output import print_lines
from orchestrator.text import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, only=True, json=False)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Record the cancel request. Workers read it within seconds, save a checkpoint and stop."""
    view = open_view(args.sweep, no_overrides(args.words))
    cancelled = cancel_cells(view, view.select(args.only))
    if cancelled.kept:
        print(
            f"{view.title}: {counted(len(cancelled.kept), 'cell')} go on: the current revision has them too"
        )
        print(f"  to cancel them: sweep cancel {view.sweep.name}{view.hint}")
    if not cancelled.cells:
        print(f"{view.title}: nothing to cancel" + ("" if cancelled.kept else ", all these cells are done"))
        return 0
    num_cells = counted(len(cancelled.cells), "cell")
    print(f"{view.title}: cancelled {num_cells}, {cancelled.num_running} of them running")
    print_lines(cancelled.lines, indent=2)
    return 0
