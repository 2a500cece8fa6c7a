"""`sweep collect`: write the result rows of sweeps as one table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orchestrator.api.state import SweepState, open_view, parse_reference, sealed_view, split_store, store_url
from orchestrator.api.status import rows_of
from orchestrator.cli.arguments import add_only
from orchestrator.cli.output import print_json
from orchestrator.errors import UserError, nearest
from orchestrator.store.ledger import open_ledger
from orchestrator.store.opening import as_usual
from orchestrator.store.table import widened, write_csv, write_table
from orchestrator.text import counted

FORMATS = ("parquet", "csv", "json")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "sweeps",
        nargs="+",
        metavar="SWEEP",
        help="names or paths, with @k for revision k, @* for all of them; also store.url=FOLDER",
    )
    add_only(parser)
    parser.add_argument("--format", choices=FORMATS, help="default: by the name of FILE, else csv")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument(
        "--wide", action="store_true", help="one row for the stages of a cell whose keys agree"
    )


def run(args: argparse.Namespace) -> int:
    """Write the rows of finished stages to a file or to standard output."""
    kind = _kind(args)
    url, words = split_store(args.sweeps)
    named = [view for word in words for view in _views(word, url)]
    # A revision that is named twice counts once.
    views = list({(view.sweep.name, view.number): view for view in named}.values())
    if not views:
        raise UserError("collect of which sweep?", fix="sweep collect SWEEP")
    rows = [row for view in views for row in rows_of(view, args.only)]
    if args.wide:
        rows = widened(rows)
    title = ", ".join(view.title for view in views)
    if args.out is None:
        if kind == "json":
            print_json(rows)
            return 0
        write_csv(rows, sys.stdout)
        # Standard output is the table alone, for a pipe.
        print(f"{title}: {counted(len(rows), 'row')}", file=sys.stderr)
        return 0
    if not args.out.absolute().parent.is_dir():
        raise UserError(f"no folder {args.out.absolute().parent}", where=f"--out {args.out}")
    # The file is the user's, not the store's: it gets the usual permissions.
    with as_usual():
        if kind == "json":
            import msgspec

            args.out.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1))
        else:
            write_table(rows, args.out, kind)
    print(f"{title}: {counted(len(rows), 'row')} in {args.out}")
    return 0


def _views(word: str, url: str | None) -> list[SweepState]:
    """Open the revisions that a word names: all of a sweep for ``SWEEP@*``, else one.

    Raises:
        UserError: there is no such sweep.
    """
    if not word.endswith("@*"):
        return [open_view(word, url)]
    name, ledger = parse_reference(word.removesuffix("@*")).name, open_ledger(store_url(url))
    numbers = ledger.revision_numbers(name)
    if not numbers:
        raise UserError(
            f"{name} was never launched here",
            where=ledger.objects.url,
            allowed=nearest(name, ledger.sweeps()),
            fix=f"sweep launch {name}",
        )
    return [sealed_view(ledger, name, number) for number in sorted(numbers)]


def _kind(args: argparse.Namespace) -> str:
    """Return the format of the table: of ``--json``, ``--format``, the file's ending, else CSV.

    Raises:
        UserError: the ending is unknown, or Parquet is requested on standard output.
    """
    if args.json:
        return "json"
    if args.format:
        if args.format == "parquet" and args.out is None:
            raise UserError("Parquet is no text", fix="--out FILE.parquet")
        return str(args.format)
    suffix = args.out.suffix.lstrip(".") if args.out else "csv"
    if suffix not in FORMATS:
        raise UserError(
            f"{args.out} has none of the known endings", allowed=", ".join(FORMATS), fix="--format csv"
        )
    return str(suffix)
