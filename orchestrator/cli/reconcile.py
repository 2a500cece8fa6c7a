"""`sweep reconcile`: record jobs that ended, and submit cells that no job holds; needs no daemon."""

from __future__ import annotations

import argparse

from orchestrator.api.reconciling import requests_of
from orchestrator.api.state import open_view
from orchestrator.api.submission import Dispatch, SubmitResult
from orchestrator.cli.arguments import add_store, add_sweep, add_wait, no_overrides
from orchestrator.cli.output import indented
from orchestrator.cli.progress import print_scripts, submit_all
from orchestrator.entry import outlive_the_reader


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, json=False)
    parser.add_argument("--dry-run", action="store_true", help="only print what would be submitted")
    add_wait(parser)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Make one pass, or with ``--wait`` as many as it takes."""
    outlive_the_reader()
    view = open_view(args.sweep, no_overrides(args.words))
    view.check()
    asked = requests_of(view, indented)
    if args.dry_run:
        given = SubmitResult()
        for each in asked:
            # Each request continues the numbers of the one before, as in a real pass.
            given.add(Dispatch(view, *each).dry_run(after=len(given.scripts)))
        return print_scripts(given)
    return submit_all(view, asked, wait=args.wait)
