"""`sweep new`: a starting sweep file for a script or a Hydra app."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.api.starting import starting_file
from orchestrator.errors import UserError


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
