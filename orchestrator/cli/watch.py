"""`sweep watch`: a sweep live in the terminal."""

from __future__ import annotations

import argparse
import os
import sys

from orchestrator.cli.output import add_store, add_sweep, no_overrides
from orchestrator.errors import UserError
from orchestrator.registry import require

COLOURLESS = ("dumb", "unknown", "vt100", "vt102", "vt220")
"""Terminals that have no colours, by TERM; those whose name ends in ``-m`` or ``-mono`` have none either."""


def configure_watch(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, only=True, json=False)
    parser.add_argument(
        "--rows",
        action="append",
        default=[],
        metavar="AXIS",
        help="an axis for the rows of the grid, the others are columns; repeats; default: by their sizes",
    )
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="S", help="seconds between two looks, at least (2)"
    )
    add_store(parser)


def run_watch(args: argparse.Namespace) -> int:
    """Show the sweep until the user quits. Nothing is written but the requests that the user confirms."""
    if not 0.2 <= args.interval <= 3600:
        raise UserError(f"--interval {args.interval:g}", allowed="0.2 to 3600 seconds")
    require("watch", what="sweep watch")
    from orchestrator.api.overview import Watched

    watched = Watched(args.sweep, no_overrides(args.words), args.rows)
    # Wrong selectors are an error at the start; those that are typed later are refused on the screen.
    watched.view.select(args.only)
    # Textual draws on standard error.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        fix = f"sweep status {args.sweep}, or sweep events {args.sweep} --follow"
        raise UserError("watch needs a terminal", fix=fix)
    # Textual reads this at the start, and then leaves all colours out.
    term = os.environ.get("TERM", "")
    if term in COLOURLESS or term.endswith(("-m", "-mono")):
        os.environ["NO_COLOR"] = "1"
    from orchestrator.watching.app import WatchApp

    app = WatchApp(watched, args.only, args.interval)
    app.run()
    if app.broken is not None:
        raise app.broken
    return 3 if app.return_code else 0
