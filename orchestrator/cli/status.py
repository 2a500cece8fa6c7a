"""`sweep list`, `status`, `why` and `show`: sweeps, states of cells, the evidence and the files of one."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.api.requests import code_drift, retired_line
from orchestrator.api.state import SweepState, current_revision, open_view
from orchestrator.api.status import (
    explain,
    explanation_lines,
    notes_of,
    remedies_of,
    retries_of,
    status_json,
    undelivered_of,
)
from orchestrator.api.waiting import decision_line, next_decision
from orchestrator.cli.output import (
    LongStep,
    add_cell,
    add_store,
    add_sweep,
    no_overrides,
    print_json,
    print_lines,
    print_table,
    print_warnings,
)
from orchestrator.core.evidence import remaining_files
from orchestrator.core.identity import SEALED
from orchestrator.core.sealed import most_cells
from orchestrator.core.state import State
from orchestrator.core.sweep import StageInstance
from orchestrator.core.tree import without_key
from orchestrator.errors import DamagedRecord, UserError, counted, one_line
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.store.opening import store_url

if TYPE_CHECKING:
    from orchestrator.compose.files import SweepEntry


def configure_status(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, only=True)
    parser.add_argument("--spent", action="store_true", help="show for how long GPUs were held, and for what")
    add_store(parser)


def _print_spent(view: SweepState, *, as_json: bool) -> int:
    """Print what the sweep has cost, and where the held time went."""
    # Here, because the states alone do not need them.
    from orchestrator.api.spent import HOUR_S, spent_json, spent_of, summary_line, unit_of
    from orchestrator.core.goodput import shares_of

    found = spent_of(view)
    data = spent_json(view, found)
    if as_json:
        print_json(data)
        return 0
    if not found:
        print(f"{view.title}: no worker has held anything yet")
    for each in found:
        print(f"{view.title}: {summary_line(each)}")
        shares = shares_of(each)
        rows = [
            (name, f"{amount / HOUR_S:.4f}", f"{100 * shares[name]:.1f}")
            for name, amount in each.parts.items()
        ]
        print_table(("part", unit_of(each), "%"), rows)
        for why, amount in sorted(each.lost_by.items(), key=lambda item: -item[1]):
            print(f"  lost by {why}: {amount / HOUR_S:.4f}")
    limits = {name: limit for name in ("gpu_hours", "until") if (limit := data["budget"][name]) is not None}
    if limits:
        named = ", ".join(f"policy.budget.{name}={limit}" for name, limit in limits.items())
        print(f"budget: {data['budget']['spent_gpu_hours']:.4g} GPU-hours are spent; {named}")
    return 0


def run_status(args: argparse.Namespace) -> int:
    """Print the state of each cell, or what the sweep has cost."""
    view = open_view(args.sweep, no_overrides(args.words))
    if args.spent:
        if args.only:
            raise UserError("--spent is about the whole sweep", fix="leave --only out")
        return _print_spent(view, as_json=args.json)
    with LongStep("reading the store"):
        cells, _ = view.select(args.only), view.cells
    if args.json:
        print_json(status_json(view, cells))
        return 0
    counts = Counter(view.cells[cell.id].state for cell in cells)
    summary = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    # What follows may have taken seconds to read, and a page of it may be looked at for longer.
    at = time.strftime("%H:%M:%S", time.localtime(view.as_of))
    print(f"{view.title}: {counted(len(cells), 'cell')}: {summary} (at {at})")
    print_warnings(view)
    print_lines(code_drift(view, cells), indent=2)
    if (left := next_decision(view)) is not None:
        print(f"  {decision_line(left)}")
    rows: list[tuple[object, ...]] = []
    chosen = view.chosen_gpus
    for cell in cells:
        status = view.cells[cell.id]
        stages = status.stages.values()
        num_done = sum(s.state is State.DONE for s in stages)
        seconds = sum(s.seconds or 0.0 for s in stages)
        # The table has room for one line per cell. `sweep why` prints the whole reason.
        reason = "" if status.state is State.DONE else one_line(status.reason, 100)
        rows.append(
            (
                cell.id,
                status.state,
                f"{num_done}/{len(stages)}",
                retries_of(status),
                f"{seconds:.1f}",
                *((chosen.get(cell.id, "-"),) if chosen else ()),
                reason,
            )
        )
    gpus = ("GPUs",) if chosen else ()
    print_table(("cell", "state", "stages", "retries", "seconds", *gpus, "reason"), rows)
    remedies = remedies_of(view, cells)
    used = Counter(
        (view.instances[digest].stage, remedies[digest])
        for cell in cells
        for digest in view.stages_of(cell)
        if digest in remedies
    )
    for (stage, remedy), number in used.items():
        print(f"remedy: {stage}: {remedy} ({counted(number, 'cell')})")
    for note, number in notes_of(view, cells).items():
        print(f"note: {note} ({counted(number, 'cell')})")
    for each in undelivered_of(view):
        print(f"not delivered by {each.channel}: {each.event}: {each.why}")
    return 0


def configure_why(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser)
    add_cell(parser)
    add_store(parser)


def run_why(args: argparse.Namespace) -> int:
    """Print the evidence for the state of one cell."""
    view = open_view(args.sweep, no_overrides(args.words))
    cell = view.cell(args.cell)
    found = explain(view, cell)
    if args.json:
        print_json(found)
        return 0
    state, *lines = explanation_lines(found)
    print(f"{view.title} {cell.id}\n{state}")
    print_warnings(view)
    print_lines(lines)
    return 0


def configure_show(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser)
    add_cell(parser)
    add_store(parser)


def run_show(args: argparse.Namespace) -> int:
    """Print one cell."""
    view = open_view(args.sweep, no_overrides(args.words))
    cell = view.cell(args.cell)
    stages: list[dict[str, Any]] = []
    for digest in cell.stage_digests:
        instance, evidence = view.sweep.stages[digest], view.reader.evidence(digest)
        number = evidence.attempts[-1].number if evidence.attempts else None
        # The last attempt need not be the one that made the product: it may have been lost after another had
        # finished.
        if evidence.done is not None:
            number = evidence.done.attempt
        where = "" if number is None else layout.payload(instance, number)
        stages.append(
            {
                "stage": instance.name,
                "digest": digest,
                "state": view.cells[cell.id].stages[digest].state,
                "folder": f"{view.ledger.objects.url}/{where}" if where else None,
                "files": [f.path for f in remaining_files(evidence.done.files, evidence.retired)]
                if evidence.done
                else [],
                "retired": evidence.retired,
                "reads": instance.reads,
                "metrics": _last_metrics(view, instance, number),
                "inputs": [view.sweep.stages[i.digest].name for i in instance.inputs],
            }
        )
    if args.json:
        print_json(
            {
                "sweep": view.sweep.name,
                "revision": view.number,
                "cell": cell.id,
                "axes": cell.axes,
                "columns": cell.columns,
                "config": cell.config,
                "stages": stages,
            }
        )
        return 0
    print(f"{view.title} {cell.id}")
    print(msgspec.yaml.encode(without_key(cell.config, SEALED)).decode())
    for stage in stages:
        if stage["metrics"]:
            text = ", ".join(f"{key} {value}" for key, value in stage["metrics"].items())
            print(f"last metrics of {stage['stage']}: {text}")
    print_table(
        ("stage", "digest", "state", "files in"),
        [(s["stage"], str(s["digest"])[:12], s["state"], s["folder"] or "-") for s in stages],
    )
    for stage in stages:
        for retired in stage["retired"]:
            print(f"retired of {stage['stage']}: {retired_line(retired)}")
    return 0


def _last_metrics(view: SweepState, instance: StageInstance, number: int | None) -> dict[str, Any]:
    """Return the last line of metrics that an attempt logged, empty without one."""
    from orchestrator.trackers.base import history  # only `sweep show` needs it

    rows = history(view.ledger, instance, number) if number is not None else []
    return rows[-1] if rows else {}


def configure_list(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run_list(args: argparse.Namespace) -> int:
    """List the user's sweep files, then sweeps found only in the store, then those shipped here."""
    # Here, because it imports Hydra, which the other verbs of this module need not.
    from orchestrator.compose.files import find_sweeps, shipped

    ledger = open_ledger(store_url(no_overrides(args.words)))
    entries = find_sweeps()
    place = shipped("sweeps").resolve()
    own = [entry for entry in entries if entry.path.parent != place]
    alone = sorted(set(ledger.sweeps()) - {entry.name for entry in entries})
    rows = [
        *(_of_file(ledger, entry) for entry in own),
        *(row for name in alone if (row := _of_store(ledger, name)) is not None),
        *(_of_file(ledger, entry) for entry in entries if entry not in own),
    ]
    if args.json:
        print_json(rows)
        return 0
    shown = [
        (
            r["sweep"],
            "?" if r["num_cells"] is None else r["num_cells"],
            r["revision"] or "-",
            r["description"],
        )
        for r in rows
    ]
    print_table(("sweep", "cells", "revision", "description"), shown)
    return 0


def _of_file(ledger: Ledger, entry: SweepEntry) -> dict[str, Any]:
    """Return the line of a sweep file. A file with an error is listed with the error."""
    return {
        "sweep": entry.name,
        "num_cells": entry.num_cells,
        "revision": current_revision(ledger, entry.name),
        "description": entry.description if not entry.error else f"error: {entry.error}",
        "path": str(entry.path),
    }


def _of_store(ledger: Ledger, name: str) -> dict[str, Any] | None:
    """Return the line of a sweep in the store, None if it was never sealed."""
    # Records of a launch that died before it sealed anything leave a name without a revision.
    number = current_revision(ledger, name)
    if number is None:
        return None
    try:
        sweep = ledger.revision(name, number).sweep
    except DamagedRecord as error:
        what = f"error: {error.what}"
        return {"sweep": name, "num_cells": None, "revision": number, "description": what, "path": ""}
    return {
        "sweep": name,
        "num_cells": sum(map(most_cells, sweep.phases, (None, *sweep.phases))) or len(sweep.cells),
        "revision": number,
        "description": sweep.description,
        "path": "",
    }
