"""`sweep list`: the sweeps that exist, one line each, with their number of cells."""

from __future__ import annotations

import argparse

from orchestrator.commands.output import print_json, print_table
from orchestrator.commands.view import add_store, current_revision, no_overrides, store_url
from orchestrator.compose import find_sweeps
from orchestrator.store.ledger import open_ledger


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run(args: argparse.Namespace) -> int:
    """Lists the sweep files in reach and the sweeps that only the store knows."""
    ledger = open_ledger(store_url(no_overrides(args.words)))
    rows = []
    entries = find_sweeps()
    for entry in entries:
        rows.append(
            {
                "sweep": entry.name,
                "num_cells": entry.num_cells,
                "revision": current_revision(ledger, entry.name),
                "description": entry.description if not entry.error else f"error: {entry.error}",
                "path": str(entry.path),
            }
        )
    for name in sorted(set(ledger.sweeps()) - {entry.name for entry in entries}):
        number = current_revision(ledger, name)
        if number is None:
            continue
        sweep = ledger.revision(name, number).sweep
        rows.append(
            {
                "sweep": name,
                "num_cells": len(sweep.cells),
                "revision": number,
                "description": sweep.description,
                "path": "",
            }
        )
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
