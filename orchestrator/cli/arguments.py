"""Arguments that several verbs share, and the store that they name."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from orchestrator.api.state import split_store
from orchestrator.errors import UserError


def add_sweep(parser: argparse.ArgumentParser, *, only: bool = False, json: bool = True) -> None:
    """Adds the arguments that most verbs share."""
    parser.add_argument(
        "sweep", metavar="SWEEP", help="a name or a path to a YAML file, with @k for revision k"
    )
    if only:
        add_only(parser)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON alone")


def add_only(parser: argparse.ArgumentParser) -> None:
    """Adds the selector that narrows a verb."""
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SELECTOR",
        help="such as 'model=a state=failed'; repeats",
    )


def add_cell(parser: argparse.ArgumentParser) -> None:
    """Adds the one cell that a verb speaks of."""
    parser.add_argument("cell", metavar="CELL", help="a cell's id or the beginning of it")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Adds, last, the store of a verb that takes no other setting; see `no_overrides`."""
    parser.add_argument("words", nargs="*", default=[], metavar="store.url=FOLDER", help="another store")


def no_overrides(words: Sequence[str]) -> str | None:
    """Returns the store that a reading verb's words name.

    Raises:
        UserError: a word is no ``store.url=``.
    """
    url, rest = split_store(words)
    if rest:
        raise UserError(f"unexpected {rest[0]!r}", allowed="only store.url=FOLDER may be set here")
    return url


def add_composing(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of verbs that compose a sweep."""
    parser.add_argument("sweep", metavar="SWEEP", help="a name or path, or SWEEP@k for sealed revision k")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="in Hydra's grammar: model=a,b lr=1e-4"
    )
    parser.add_argument("--name", help="keep this variant apart under another name")
    add_only(parser)


def again(verb: str, args: argparse.Namespace) -> str:
    """Returns the command that gives another verb what this one was given."""
    only = [word for selector in args.only for word in ("--only", selector)]
    name = ["--name", args.name] if args.name else []
    return shlex.join(["sweep", verb, args.sweep, *args.overrides, *name, *only])


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Adds the wish to stay."""
    parser.add_argument(
        "--wait",
        action="store_true",
        help="stay, and submit again what is left, until all cells have ended; Ctrl-C leaves the jobs alone",
    )
