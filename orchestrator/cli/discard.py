"""`sweep discard` and `cancel`: void products, and stop cells."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

from orchestrator import provenance
from orchestrator.api.requests import build_request
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
from orchestrator.core.records import Void
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.errors import InfrastructureError, UserError, counted, nearest
from orchestrator.store.access import new_nonce
from orchestrator.store.decisions import readable_revisions
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger


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
    stages = {
        digest: view.stages[digest]
        for cell in cells
        for digest in (*(gate.digest for gate in view.gates.cells.get(cell.id, ())), *cell.stage_digests)
        if view.instances[digest].stage == args.stage
    }
    named = {digest for digest, status in stages.items() if status.state is State.DONE}
    # Without products, discard what unfinished attempts left: checkpoints, a work folder, or an output that
    # would be read again.
    if not named:
        named = {d for d, status in stages.items() if status.attempts and status.state is not State.RUNNING}
    if not named and args.json:
        print_json(_discard_json(view, cells, None, [], 0))
    elif not named:
        print(f"{view.title}: no product of {args.stage} in {counted(len(cells), 'cell')} to discard")
    if not named:
        return 0
    unfinished = sum(stages[digest].state is not State.DONE for digest in named)
    gates = [instance for digest, instance in view.gates.instances.items() if digest in named]
    instances, after = [*gates, *_made_from(view.ledger, named, view.problems)], {}
    is_voided: dict[str, bool] = {}
    for instance in instances:
        # Attempts up to now no longer count against the retry budgets.
        after[instance.digest] = max(view.ledger.numbers(instance), default=0)
        is_voided[instance.digest] = _void(view, instance, args.reason, named)
    # The voids come first. If this process dies between the two, discarding again completes it.
    request = build_request(view, "discard", cells, after=after, reason=args.reason)
    number = view.ledger.add_request(view.sweep.name, request).number
    # Cells outside the selection that share a discarded stage are made again too, so the user must see them.
    shared = sum(
        1 for c in view.sweep.cells if c not in cells and set(c.stage_digests) & {n.digest for n in instances}
    )
    if args.json:
        facts = [
            {"stage": each.name, "digest": each.digest, "voided": is_voided[each.digest]}
            for each in instances
        ]
        print_json(_discard_json(view, cells, number, facts, shared))
        return 0
    if unfinished:
        print(f"{view.title}: discarded what attempts of {counted(unfinished, 'unfinished stage')} left")
    else:
        print(
            f"{view.title}: discarded {counted(sum(is_voided.values()), 'product')}: {_by_stage(instances)}"
        )
    print_warnings(view)
    if shared:
        print(f"  {counted(shared, 'other cell')} of this sweep used them and will be made again too")
    print(f"  next: sweep launch {view.sweep.name}{view.hint}")
    return 0


def _discard_json(
    view: SweepState,
    cells: Sequence[Cell],
    request: int | None,
    stages: Sequence[dict[str, Any]],
    shared: int,
) -> dict[str, Any]:
    """Return what was discarded, for scripts."""
    return {
        "sweep": view.sweep.name,
        "revision": view.number,
        "request": request,
        "cells": [cell.id for cell in cells],
        "stages": stages,
        "num_shared": shared,
        "problems": view.warnings(),
    }


def _made_from(ledger: Ledger, named: set[str], problems: list[str]) -> list[StageInstance]:
    """Return the named stages and all that use them as inputs, directly or not, in any sealed revision.

    Args:
        ledger: the store.
        named: digests of the stages to discard.
        problems: receives a line for each revision that cannot be read.
    """
    found: dict[str, StageInstance] = {}
    for sweep in ledger.sweeps():
        # What a damaged one takes from the named stages does not count either: its inputs are void.
        for sealed in readable_revisions(ledger, sweep, problems):
            revision = sealed.sweep
            # Within a cell, the inputs of a stage precede it in `chain`, so that one pass finds all that
            # follow.
            affected = set(named)
            for cell in revision.cells:
                for digest in cell.stage_digests:
                    instance = revision.stages[digest]
                    if digest in affected or any(taken.digest in affected for taken in instance.inputs):
                        affected.add(digest)
                        found[digest] = instance
    return list(found.values())


def _void(view: SweepState, instance: StageInstance, reason: str, named: set[str]) -> bool:
    """Void the current product of a stage, or the one that a running attempt is about to make.

    An attempt that runs now still uses the code before the fix. Its generation is voided in advance, so that
    its product never counts.

    Args:
        view: the revision.
        instance: the stage.
        reason: the user's words.
        named: digests that the user selected; the others are made from them.

    Returns:
        Whether a product that counted was voided.

    Raises:
        InfrastructureError: the records of the stage cannot be read.
    """
    # Not its files: a product is voided whether they are whole or not, and one may be retired at this moment.
    evidence = EvidenceReader(view.ledger, [instance], check_files=False).evidence(instance.digest)
    if evidence.unreadable:  # skipping it would void what was made from it, and let it count
        raise InfrastructureError(
            f"{instance.name} {instance.digest[:8]} was not discarded: {evidence.unreadable}",
            fix="discard again; what was discarded already stays so",
        )
    running = bool(evidence.attempts) and evidence.attempts[-1].end is None
    left = instance.digest in named and bool(evidence.attempts)
    if evidence.done is None and not running and not left and not evidence.damaged:
        return False
    void = Void(
        nonce=new_nonce(),
        generation=evidence.generation,
        kind="discarded",
        reason=reason if instance.digest in named else f"it was made from what was discarded: {reason}",
        by=provenance.user(),
        at=provenance.now(),
    )
    return view.ledger.void(instance, void) and evidence.done is not None


def _by_stage(instances: list[StageInstance]) -> str:
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
                "notes": cancelled.lines,
            }
        )
        return 0
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
