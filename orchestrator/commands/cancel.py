"""`sweep cancel`: stop cells and keep them from being claimed, until the next launch or rerun of them."""

from __future__ import annotations

import argparse

from orchestrator.commands.ask import ask
from orchestrator.commands.output import counted
from orchestrator.commands.view import add_store, add_sweep, no_overrides, open_view
from orchestrator.core.state import State
from orchestrator.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_sweep(parser, only=True, json=False)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Records the cancel; workers see it within seconds and checkpoint first."""
    view = open_view(args.sweep, no_overrides(args.words))
    if not view.sealed:
        raise UserError(f"{view.sweep.name} was never launched here", fix=f"sweep launch {view.sweep.name}")
    cells = [cell for cell in view.select(args.only) if view.cells[cell.cell].state is not State.DONE]
    running = sum(view.cells[cell.cell].state is State.RUNNING for cell in cells)
    if not cells:
        print(f"{view.title}: nothing to cancel, all these cells are done")
        return 0
    ask(view, "cancel", cells)
    print(f"{view.title}: cancelled {counted(len(cells), 'cell')}, {running} of them running")
    return 0
