"""`sweep status`: where each cell stands, from any machine that sees the store, also while it runs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from orchestrator.api.drift import code_drift, code_versions
from orchestrator.api.state import SweepState, open_view
from orchestrator.cli.arguments import add_store, add_sweep, no_overrides
from orchestrator.cli.output import print_json, print_lines, print_table, print_warnings, shorten
from orchestrator.core.state import CellStatus, State
from orchestrator.core.sweep import Cell
from orchestrator.text import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_sweep(parser, only=True)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the state of each cell."""
    view = open_view(args.sweep, no_overrides(args.words))
    cells = view.select(args.only)
    if args.json:
        print_json(as_json(view, cells))
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


def notes_of(view: SweepState, cells: Sequence[Cell]) -> Counter[str]:
    """Return what stages noted in the column `notes` of their rows, each with the number of its cells."""
    notes: Counter[str] = Counter()
    for cell in cells:
        found = [view.snapshot.evidence(digest).done for digest in cell.chain]
        rows = [row for done in found if done is not None for row in done.rows]
        notes.update({note for row in rows if isinstance(note := row.get("notes"), str) and note})
    return notes


def retries_of(status: CellStatus) -> int:
    """Return how often a stage of a cell was started again; `attempts` counts the first starts as well."""
    return sum(max(0, stage.attempts - 1) for stage in status.stages.values())


def as_json(view: SweepState, cells: Sequence[Cell]) -> dict[str, object]:
    """Returns the stable machine-readable form; `seconds` is the wall time of the last attempt of a stage."""
    counts = Counter(view.cells[cell.cell].state for cell in cells)
    rows = []
    for cell in cells:
        status = view.cells[cell.cell]
        stages = [
            {
                "stage": view.sweep.nodes[digest].name,
                "digest": digest,
                "state": stage.state,
                "cause": stage.cause,
                "attempts": stage.attempts,
                "seconds": stage.seconds,
                "reason": stage.reason,
            }
            for digest, stage in status.stages.items()
        ]
        rows.append(
            {
                "cell": cell.cell,
                "axes": cell.axes,
                "state": status.state,
                "cause": status.cause,
                "reason": status.reason,
                "attempts": status.attempts,
                "retries": retries_of(status),
                "stages": stages,
            }
        )
    return {
        "sweep": view.sweep.name,
        "revision": view.number,
        "counts": {str(state): n for state, n in counts.items()},
        "code": dict(code_versions(view, cells)),
        "problems": view.problems,
        "cells": rows,
    }
