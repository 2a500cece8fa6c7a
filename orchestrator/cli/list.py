"""`sweep list`: list the sweeps that exist, one line each, with their number of cells."""

from __future__ import annotations

import argparse
from typing import Any

from orchestrator.api.state import current_revision, store_url
from orchestrator.cli.arguments import add_store, no_overrides
from orchestrator.cli.output import print_json, print_table
from orchestrator.compose.files import SweepEntry, find_sweeps, shipped
from orchestrator.store.ledger import Ledger, open_ledger


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run(args: argparse.Namespace) -> int:
    """List the user's sweep files, then sweeps found only in the store, then those shipped here."""
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
    sweep = ledger.revision(name, number).sweep
    return {
        "sweep": name,
        "num_cells": len(sweep.cells),
        "revision": number,
        "description": sweep.description,
        "path": "",
    }
