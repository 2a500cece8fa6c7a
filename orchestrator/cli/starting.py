"""`sweep new` and `sweep import`: a sweep from a script, a Hydra app, or the results of old multiruns."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.api.importing import import_jobs
from orchestrator.api.starting import starting_file
from orchestrator.cli.output import add_store, no_overrides, print_lines
from orchestrator.compose.given import metric
from orchestrator.errors import UserError, counted, one_line


def configure_new(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("script", metavar="SCRIPT", help="such as train.py; relative to this folder")
    parser.add_argument("--output", metavar="FILE", help="default: SCRIPT with .yaml; - prints it")
    parser.add_argument("--python", metavar="PATH", help="the interpreter of a Hydra app")


def run_new(args: argparse.Namespace) -> int:
    """Write the file, and print what to do with it.

    Raises:
        UserError: the file exists, or the script cannot be read.
    """
    path = Path(args.output or f"{Path(args.script).stem}.yaml")
    if args.output != "-" and path.exists():
        raise UserError(f"{path} exists", fix=f"sweep new {args.script} --output FILE")
    text = starting_file(args.script, Path.cwd(), python=args.python)
    if args.output == "-":
        print(text, end="")
        return 0
    path.write_text(text, encoding="utf-8")
    print(f"{path} is written; choose what varies in it, then: sweep plan {path}")
    return 0


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
