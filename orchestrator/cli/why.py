"""`sweep why`: show the evidence behind a cell's state: attempts, and products read and verified again."""

from __future__ import annotations

import argparse

from orchestrator.api.state import open_view
from orchestrator.api.status import explain, explanation_lines
from orchestrator.cli.arguments import add_cell, add_store, add_sweep, no_overrides
from orchestrator.cli.output import print_json, print_lines, print_warnings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser)
    add_cell(parser)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print the evidence for the state of one cell."""
    view = open_view(args.sweep, no_overrides(args.words))
    cell = view.cell(args.cell)
    found = explain(view, cell)
    if args.json:
        print_json(found)
        return 0
    state, *lines = explanation_lines(found)
    print(f"{view.title} {cell.cell}\n{state}")
    print_warnings(view)
    print_lines(lines)
    return 0
