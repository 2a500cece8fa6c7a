"""`sweep show`: print a cell's resolved config, its digests, and where its files are."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from orchestrator.api.requests import retired_line
from orchestrator.api.state import SweepState, open_view
from orchestrator.cli.arguments import add_cell, add_store, add_sweep, no_overrides
from orchestrator.cli.output import print_json, print_table
from orchestrator.core.records import remaining_files
from orchestrator.core.sweep import StageInstance
from orchestrator.store import layout
from orchestrator.trackers.base import history


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser)
    add_cell(parser)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print one cell."""
    view = open_view(args.sweep, no_overrides(args.words))
    cell = view.cell(args.cell)
    stages: list[dict[str, Any]] = []
    for digest in cell.chain:
        node, evidence = view.sweep.nodes[digest], view.snapshot.evidence(digest)
        number = evidence.attempts[-1].number if evidence.attempts else None
        # The last attempt need not be the one that made the product: it may have been lost after another had
        # finished.
        if evidence.done is not None:
            number = evidence.done.attempt
        where = "" if number is None else layout.payload(node.stage, digest, number)
        stages.append(
            {
                "stage": node.name,
                "digest": digest,
                "state": view.cells[cell.cell].stages[digest].state,
                "folder": f"{view.ledger.objects.url}/{where}" if where else None,
                "files": [f.path for f in remaining_files(evidence.done.files, evidence.retired)]
                if evidence.done
                else [],
                "retired": evidence.retired,
                "reads": node.reads,
                "metrics": _last_metrics(view, node, number),
                "inputs": [view.sweep.nodes[i.digest].name for i in node.inputs],
            }
        )
    if args.json:
        print_json(
            {
                "sweep": view.sweep.name,
                "revision": view.number,
                "cell": cell.cell,
                "axes": cell.axes,
                "columns": cell.columns,
                "config": cell.config,
                "stages": stages,
            }
        )
        return 0
    print(f"{view.title} {cell.cell}")
    print(msgspec.yaml.encode(cell.config).decode())
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


def _last_metrics(view: SweepState, node: StageInstance, number: int | None) -> dict[str, Any]:
    """Return the last line of metrics that an attempt logged, empty without one."""
    rows = history(view.ledger, node, number) if number is not None else []
    return rows[-1] if rows else {}
