"""`sweep report`: write tables, figures and pages from the rows that exist, of a sweep or of a table.

This module selects the reports, their rows and their folder. The content belongs to each report.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orchestrator.api.reports import (
    check_folder,
    fitting_report,
    write_report,
    write_sweep_reports,
)
from orchestrator.api.state import open_view
from orchestrator.cli.arguments import add_store, no_overrides
from orchestrator.cli.output import NUMBERS, print_warnings, print_written, to_stderr
from orchestrator.errors import UserError
from orchestrator.registry import GENERAL, TABLE_READER, load
from orchestrator.store.table import Rows


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "sweep",
        metavar="SWEEP",
        nargs="?",
        help="a name or a path to a YAML file, with @k for revision k",
    )
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="rows as `collect` writes them: .parquet or .csv"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: the sweep's report folder in the store"
    )
    parser.add_argument(
        "--report",
        metavar="NAME",
        help=f"such as {GENERAL}; default: what the sweep names, else what its columns fit",
    )
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="AXIS",
        help="mean and spread over this axis as over seeds, in the general report; repeats",
    )
    parser.add_argument("--json", action="store_true", help=f"print {NUMBERS} alone")
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Write the reports, and print where they are."""
    if args.table is not None:
        return _of_table(args)
    if args.sweep is None:
        raise UserError("a report of what?", fix="sweep report SWEEP, or sweep report --table FILE --out DIR")
    view = open_view(args.sweep, no_overrides(args.words))
    place = args.out.absolute() if args.out else None
    # The default folder lies in the store, which does not exist before the first launch.
    if place is None and not view.sealed and not args.json:
        print(f"{view.title}: nothing is done yet, and the store has no folder for its report")
        print(f"  sweep launch {args.sweep}{view.hint}, or --out DIR for what is planned")
        return 0
    check_folder(place)
    with tempfile.TemporaryDirectory() as nowhere:
        if not view.sealed:
            place = place or Path(nowhere)  # only JSON is printed; no store folder exists yet
        reports, errors = write_sweep_reports(
            view, _names(args, view.sweep.report), place, notify=to_stderr, over=args.over
        )
        written = [path for report in reports for path in report]
        if not args.json:
            print_warnings(view)
        if not errors or not args.json:
            print_written(written, args.json)
    # The first error is raised below, so that it decides the exit code. The other reports were still written.
    for error in errors[1:]:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        raise errors[0]
    return 0


def _of_table(args: argparse.Namespace) -> int:
    """Write the report of a table that `sweep collect` wrote."""
    words = [word for word in [args.sweep, *args.words] if word]
    if words:
        raise UserError(f"either a sweep or a table: {words[0]!r} beside --table {args.table}")
    if args.out is None:
        raise UserError("a table's report needs a folder", fix="--out DIR")
    check_folder(args.out)
    rows: Rows = load(TABLE_READER)(args.table)
    folder, offers = args.out.absolute(), {"over": lambda: tuple(args.over)}
    (name,) = _names(args, ()) or (fitting_report(rows, None, args.table),)
    print_written(
        write_report(name, rows, folder, offers, where=str(args.table), notify=to_stderr), args.json
    )
    return 0


def _names(args: argparse.Namespace, named: Sequence[str]) -> Sequence[str]:
    """Return the reports that the arguments or the sweep name; none if the columns decide.

    Args:
        args: of the verb.
        named: the reports that the sweep names.

    Raises:
        UserError: ``--over`` is combined with a report that cannot use it.
    """
    if args.report and args.over and args.report != GENERAL:
        raise UserError(f"--over is of the general report, not of {args.report}", fix=f"--report {GENERAL}")
    if args.report or args.over:
        return (args.report or GENERAL,)
    return named
