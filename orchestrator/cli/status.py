"""`sweep status`: show the state of each cell, from any machine that can read the store."""

from __future__ import annotations

import argparse
from collections import Counter

from orchestrator.api.requests import code_drift
from orchestrator.api.state import open_view
from orchestrator.api.status import notes_of, retries_of, status_json
from orchestrator.cli.arguments import add_store, add_sweep, no_overrides
from orchestrator.cli.output import print_json, print_lines, print_table, print_warnings, shorten
from orchestrator.core.state import State
from orchestrator.text import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, only=True)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print the state of each cell."""
    view = open_view(args.sweep, no_overrides(args.words))
    cells = view.select(args.only)
    if args.json:
        print_json(status_json(view, cells))
        return 0
    counts = Counter(view.cells[cell.cell].state for cell in cells)
    summary = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    print(f"{view.title}: {counted(len(cells), 'cell')}: {summary}")
    print_warnings(view)
    print_lines(code_drift(view, cells), indent=2)
    rows = []
    for cell in cells:
        status = view.cells[cell.cell]
        stages = status.stages.values()
        num_done = sum(s.state is State.DONE for s in stages)
        seconds = sum(s.seconds or 0.0 for s in stages)
        # The table has room for one line per cell. `sweep why` prints the whole reason.
        reason = "" if status.state is State.DONE else shorten(status.reason, 100)
        rows.append(
            (
                cell.cell,
                status.state,
                f"{num_done}/{len(stages)}",
                retries_of(status),
                f"{seconds:.1f}",
                reason,
            )
        )
    print_table(("cell", "state", "stages", "retries", "seconds", "reason"), rows)
    for note, number in notes_of(view, cells).items():
        print(f"note: {note} ({counted(number, 'cell')})")
    return 0
