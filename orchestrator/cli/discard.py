"""`sweep discard` and `cancel`: void products, and stop cells."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

from orchestrator.api.dropping import Discarded, discard_stage
from orchestrator.api.run import cancel_cells
from orchestrator.api.state import SweepState, open_view
from orchestrator.cli.output import (
    add_store,
    add_sweep,
    no_overrides,
    print_json,
    print_lines,
    print_warnings,
)
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.errors import UserError, counted, nearest


def configure_discard(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser)
    parser.add_argument("selector", metavar="SELECTOR", help="such as 'task=math', or a cell's id")
    parser.add_argument("--stage", required=True, help="whose products no longer count")
    parser.add_argument("--reason", required=True, help="kept with the void")
    add_store(parser)


def run_discard(args: argparse.Namespace) -> int:
    """Void the products of a stage, and those made from them in any sweep of the store.

    If none of the selected cells has a product, what unfinished attempts left behind is discarded instead.
    The next attempt then starts from nothing.
    """
    view = open_view(args.sweep, no_overrides(args.words))
    if not view.sealed:
        raise UserError(f"{view.sweep.name} was never launched here", fix=f"sweep launch {view.sweep.name}")
    if args.stage not in view.sweep.specs:
        raise UserError(
            f"{view.sweep.name} has no stage {args.stage!r}", allowed=nearest(args.stage, view.sweep.specs)
        )
    cells = view.select([args.selector])
    found = discard_stage(view, cells, args.stage, args.reason)
    # Cells outside the selection that share a discarded stage are made again too, so the user must see them.
    digests = {each.digest for each in found.stages}
    shared = sum(c not in cells and not digests.isdisjoint(c.stage_digests) for c in view.sweep.cells)
    if args.json:
        print_json(_discard_json(view, cells, found, shared))
        return 0
    if not found.stages:
        print(f"{view.title}: no product of {args.stage} in {counted(len(cells), 'cell')} to discard")
        return 0
    if found.num_unfinished:
        left = counted(found.num_unfinished, "unfinished stage")
        print(f"{view.title}: discarded what attempts of {left} left")
    else:
        print(f"{view.title}: discarded {counted(len(found.voided), 'product')}: {_by_stage(found.stages)}")
    print_warnings(view)
    if shared:
        print(f"  {counted(shared, 'other cell')} of this sweep used them and will be made again too")
    print(f"  next: sweep launch {view.sweep.name}{view.hint}")
    return 0


def _discard_json(view: SweepState, cells: Sequence[Cell], found: Discarded, shared: int) -> dict[str, Any]:
    """Return what was discarded, for scripts."""
    return {
        "sweep": view.sweep.name,
        "revision": view.number,
        "request": found.request,
        "cells": [cell.id for cell in cells],
        "stages": [
            {"stage": each.name, "digest": each.digest, "voided": each.digest in found.voided}
            for each in found.stages
        ],
        "num_shared": shared,
        "problems": view.warnings(),
    }


def _by_stage(instances: Sequence[StageInstance]) -> str:
    """Return how many of some stage instances belong to each stage, such as ``3 base, 9 train``."""
    counts = Counter(instance.stage for instance in instances)
    return ", ".join(f"{number} {stage}" for stage, number in counts.items())


def configure_cancel(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, only=True)
    add_store(parser)


def run_cancel(args: argparse.Namespace) -> int:
    """Record the cancel request. Workers read it within seconds, save a checkpoint and stop."""
    view = open_view(args.sweep, no_overrides(args.words))
    cancelled = cancel_cells(view, view.select(args.only))
    if args.json:
        print_json(
            {
                "sweep": view.sweep.name,
                "revision": view.number,
                "request": cancelled.request,
                "cells": [cell.id for cell in cancelled.cells],
                "num_running": cancelled.num_running,
                "kept": sorted(cancelled.kept),
                "notes": [*view.warnings(), *cancelled.lines],
            }
        )
        return 0
    print_warnings(view)
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
