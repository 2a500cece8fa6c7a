"""`sweep import`: results of old Hydra multiruns as done cells."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.api.importing import import_jobs
from orchestrator.cli.output import add_store, no_overrides, print_lines
from orchestrator.compose.given import metric
from orchestrator.errors import counted, one_line

MAX_SHOWN = 5
"""Jobs without results that are listed."""


def configure_import(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("folder", metavar="FOLDER", help="with jobs at any depth, such as multirun/")
    parser.add_argument("--app", metavar="SCRIPT", help="the app's script; default: the name of the job")
    parser.add_argument("--name", help="of the sweep; default: that of the script")
    parser.add_argument("--results", metavar="FILE", help="in each job's folder; default: metrics.json")
    parser.add_argument(
        "--metric", metavar="NAME=REGEX", action="append", default=[], help="in each job's *.log; repeats"
    )
    parser.add_argument(
        "--volatile", metavar="KEY", action="append", default=[], help="no part of the identity; repeats"
    )
    add_store(parser)


def run_import(args: argparse.Namespace) -> int:
    """Import the jobs, and print how many cells are done by them, and which jobs are left out.

    Raises:
        UserError: the folder holds no job with results.
    """
    found = import_jobs(
        Path(args.folder),
        script=args.app,
        name=args.name,
        results=args.results,
        metrics=dict(map(metric, args.metric)),
        volatile=args.volatile,
        url=no_overrides(args.words),
    )
    view = found.view
    print(f"{view.title}: {counted(len(view.sweep.cells), 'cell')}, {found.num_new} of them imported")
    left_out = [f"left out: {folder}: {one_line(why, 120)}" for folder, why in found.left_out.items()]
    more = [f"and {len(left_out) - MAX_SHOWN} more jobs without results"] if len(left_out) > MAX_SHOWN else []
    print_lines([*left_out[:MAX_SHOWN], *more], indent=2)
    return 0
