"""`sweep failures`: show what failed, with failures that look alike as one group (read-only)."""

from __future__ import annotations

import argparse

from orchestrator.api.failures import failure_lines, failures_of
from orchestrator.api.state import open_view
from orchestrator.cli.arguments import add_store, add_sweep, no_overrides
from orchestrator.cli.output import print_json, print_lines, print_warnings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, only=True)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print the groups of failures, that with the most cells first."""
    view = open_view(args.sweep, no_overrides(args.words))
    groups = failures_of(view, view.select(args.only))
    if args.json:
        print_json({"sweep": view.sweep.name, "revision": view.number, "failures": groups})
        return 0
    print_warnings(view)
    if not groups:
        print(f"{view.title}: nothing failed")
    for group in groups:
        print_lines(failure_lines(group))
    return 0
