"""`sweep sync`: what mirrors lack of a sweep."""

from __future__ import annotations

import argparse

from orchestrator.api.exporting import sync
from orchestrator.api.state import open_view
from orchestrator.cli.output import add_sweep, print_json
from orchestrator.core.settings import split_store
from orchestrator.errors import counted
from orchestrator.registry import MIRRORS
from orchestrator.trackers.mirror import MirrorOutcome


def configure_sync(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser)
    parser.add_argument(
        "--to",
        action="append",
        required=True,
        metavar="MIRROR",
        help=f"{', '.join(MIRRORS)}; repeats",
    )
    parser.add_argument(
        "words",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="such as tracker.mlflow.experiment=NAME; default: as it was launched",
    )
    parser.epilog = (
        "exit codes: 0 the mirrors have all that the store has; 3 one does not, and the next sync goes on"
    )


def run_sync(args: argparse.Namespace) -> int:
    """Send what is missing, and print how much that was."""
    url, overrides = split_store(args.words)
    view = open_view(args.sweep, url)
    outcomes = sync(view, args.to, overrides)
    if args.json:
        print_json([_as_json(each) for each in outcomes])
    else:
        for each in outcomes:
            print(f"{each.summary}\n  {_amount(each)}")
            if each.problem:
                print(f"  {each.problem}" + (f"; {each.fix}" if each.fix else ""))
    return 3 if any(each.problem or each.num_lost for each in outcomes) else 0


def _amount(outcome: MirrorOutcome) -> str:
    sent = outcome.sent
    if not sent.cells:
        return "nothing was sent" if outcome.problem or outcome.num_lost else "nothing was missing"
    counts = f"{counted(sent.points, 'point')} and {counted(sent.results, 'result')}"
    return f"sent {counts} of {counted(len(sent.cells), 'cell')}"


def _as_json(outcome: MirrorOutcome) -> dict[str, object]:
    return {
        "to": outcome.name,
        "cells": len(outcome.sent.cells),
        "points": outcome.sent.points,
        "results": outcome.sent.results,
        "cells_lost": outcome.num_lost,
        "problem": outcome.problem,
    }
