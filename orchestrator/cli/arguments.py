"""Command-line arguments that several verbs share, and the store that these arguments name."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from orchestrator.core.settings import split_store
from orchestrator.errors import UserError


def add_sweep(parser: argparse.ArgumentParser, *, only: bool = False, json: bool = True) -> None:
    """Add the SWEEP argument, and optionally ``--only`` and ``--json``.

    Args:
        parser: of the verb.
        only: whether the verb takes selectors.
        json: whether the verb can print JSON.
    """
    parser.add_argument(
        "sweep", metavar="SWEEP", help="a name or a path to a YAML file, with @k for revision k"
    )
    if only:
        add_only(parser)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON alone")


def add_only(parser: argparse.ArgumentParser) -> None:
    """Add ``--only``, which restricts a verb to selected cells."""
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SELECTOR",
        help="such as 'model=a state=failed'; repeats",
    )


def add_cell(parser: argparse.ArgumentParser) -> None:
    """Add the CELL argument, for verbs that work on one cell."""
    parser.add_argument("cell", metavar="CELL", help="a cell's id or the beginning of it")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add ``store.url=FOLDER`` for a verb that takes no other setting.

    It collects all remaining words, so it comes last. `no_overrides` checks them. ``--store URL`` is
    converted to this word before the verb parses its arguments.
    """
    parser.add_argument("words", nargs="*", default=[], metavar="store.url=FOLDER", help="another store")


def no_overrides(words: Sequence[str]) -> str | None:
    """Return the store that the remaining words of a read-only verb name, None if they name none.

    Raises:
        UserError: a word is not ``store.url=``.
    """
    url, rest = split_store(words)
    if rest:
        raise UserError(f"unexpected {rest[0]!r}", allowed="only store.url=FOLDER may be set here")
    return url


def add_composing(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of verbs that compose a sweep: the sweep, overrides, ``--name`` and ``--only``."""
    parser.add_argument("sweep", metavar="SWEEP", help="a name or path, or SWEEP@k for sealed revision k")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="in Hydra's grammar: model=a,b lr=1e-4"
    )
    parser.add_argument("--name", help="keep this variant apart under another name")
    add_only(parser)


def again(verb: str, args: argparse.Namespace) -> str:
    """Return a command line that runs another verb with the same sweep, overrides, name and selectors."""
    only = [word for selector in args.only for word in ("--only", selector)]
    name = ["--name", args.name] if args.name else []
    # The user copies this line into a shell, so selectors with spaces and brackets must be quoted.
    return shlex.join(["sweep", verb, args.sweep, *args.overrides, *name, *only])


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Add ``--wait``, which keeps a verb running until all cells have ended."""
    parser.add_argument(
        "--wait",
        action="store_true",
        help="stay, and submit again what is left, until all cells have ended; Ctrl-C leaves the jobs alone",
    )
