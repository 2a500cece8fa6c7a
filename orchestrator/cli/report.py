"""`sweep report`: tables, figures and pages from the rows that there are, of a sweep or of a table.

What a report says is the report's own; here is only which ones, from which rows, and where they go.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from orchestrator.api.report_facts import about, curves
from orchestrator.api.state import SweepState, add_store, no_overrides, open_view
from orchestrator.cli.output import counted
from orchestrator.errors import InfrastructureError, SweepError, UserError
from orchestrator.registry import FITTING, REPORTS, TABLE_READER, load, lookup
from orchestrator.reporting import About, Offers, call, wants_facts
from orchestrator.store import layout
from orchestrator.store.table import Rows, collect_rows

GENERAL = "general"
"""The report of what no other report fits."""

NUMBERS = "report.json"
MOST_PATHS, MAIN_PATHS = 6, 3
"""Up to how many files are all listed, and else how many."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
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
    """Writes the reports and says where."""
    if args.table is not None:
        return _of_table(args)
    if args.sweep is None:
        raise UserError("a report of what?", fix="sweep report SWEEP, or sweep report --table FILE --out DIR")
    view = open_view(args.sweep, no_overrides(args.words))
    place = args.out.absolute() if args.out else None
    if place is None and not view.sealed and not args.json:
        print(f"{view.title}: nothing is done yet, and the store has no folder for its report")
        print(f"  sweep launch {args.sweep}{view.hint}, or --out DIR for what is planned")
        return 0
    _check_folder(place)
    with tempfile.TemporaryDirectory() as nowhere:
        if not view.sealed:
            place = place or Path(nowhere)  # JSON alone: the store has no folder for it
        reports, errors = _write_all(view, _names(args, view.sweep.report), place, over=args.over)
        written = [path for report in reports for path in report]
        if not args.json:
            view.warn()
        if not errors or not args.json:
            _say(written, args.json)
    for error in errors[1:]:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        raise errors[0]
    return 0


def _of_table(args: argparse.Namespace) -> int:
    words = [word for word in [args.sweep, *args.words] if word]
    if words:
        raise UserError(f"either a sweep or a table: {words[0]!r} beside --table {args.table}")
    if args.out is None:
        raise UserError("a table's report needs a folder", fix="--out DIR")
    _check_folder(args.out)
    rows: Rows = load(TABLE_READER)(args.table)
    folder, offers = args.out.absolute(), {"over": lambda: tuple(args.over)}
    (name,) = _names(args, ()) or (_fitting(rows, None, args.table),)
    _say(_write(name, rows, folder, offers, where=str(args.table)), args.json)
    return 0


def _names(args: argparse.Namespace, named: Sequence[str]) -> Sequence[str]:
    """Return the reports that the arguments or the sweep name; none where the columns decide."""
    if args.report and args.over and args.report != GENERAL:
        raise UserError(f"--over is of the general report, not of {args.report}", fix=f"--report {GENERAL}")
    if args.report or args.over:
        return (args.report or GENERAL,)
    return named


def _fitting(rows: Rows, facts: About | None, table: Path | None = None) -> str:
    """Return the first report whose columns are there, the general one where none fits."""
    for name, fits in FITTING.items():
        if load(fits)(rows, about=facts):
            return name
    if table is not None and not any("cell" in row for row in rows):
        raise UserError(
            f"no report fits the columns of {table}",
            allowed="a table as `collect` writes it, or one with the columns of the study",
            fix="--report study names what that one needs",
        )
    return GENERAL


def write_reports(view: SweepState) -> None:
    """Writes the sweep's reports at the end of a launch; one that fails costs no result."""
    if not view.sweep.report:
        return
    reports, errors = _write_all(view, view.sweep.report, None)
    for written in reports:
        for path in written:
            if path.suffix == ".md" and path.parent.joinpath(NUMBERS) not in written:
                print(f"\n{path.read_text(encoding='utf-8').rstrip()}")  # a report of a page or two
        if written:
            print()
            _say(written, as_json=False)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)


def _write_all(
    view: SweepState, names: Sequence[str], place: Path | None, *, over: Sequence[str] = ()
) -> tuple[list[list[Path]], list[SweepError]]:
    """Write some reports of a sweep, else the one that fits; return their files, and the errors of others."""
    rows = collect_rows(view.sweep, view.number, view.sweep.cells, view.cells, view.snapshot)
    facts = about(view)
    names = names or (_fitting(rows, facts),)
    offers = {"about": lambda: facts, "curves": lambda: curves(view), "over": lambda: tuple(over)}
    folder = place or view.ledger.objects.workspace(layout.report(view.sweep.name))
    _make_importable(view)
    written: list[list[Path]] = []
    errors: list[SweepError] = []
    for name in names:
        try:
            written.append(_write(name, rows, folder, offers, where=view.title))
        except SweepError as error:
            errors.append(error)
        except Exception as error:  # noqa: BLE001 - reports may be the user's own
            if not isinstance(error, OSError):
                traceback.print_exc()
            said = f"the report {name} failed: {type(error).__name__}: {error}"
            errors.append(InfrastructureError(said))
    if place is None:
        view.ledger.objects.upload(layout.report(view.sweep.name))
    return written, errors


def _write(name: str, rows: Rows, folder: Path, offers: Offers, *, where: str) -> list[Path]:
    report = lookup(REPORTS, name, kind="report")
    if not rows and not wants_facts(report):
        print(f"{where}: no rows yet, so nothing for the report {name}", file=sys.stderr)
        return []
    return call(report, rows, folder, offers)


def _make_importable(view: SweepState) -> None:
    """Lets a report of the user's own be found where the last launch found the stages."""
    folders = next((request.import_paths for request in reversed(view.requests) if request.import_paths), ())
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]


def _check_folder(folder: Path | None) -> None:
    """Refuses what can be no folder before anything is computed, rather than after.

    Raises:
        UserError: a file is in the way.
        InfrastructureError: nothing can be written there.
    """
    if folder is None:
        return
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"{nearest} is no folder", where=f"--out {folder}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InfrastructureError(f"{nearest} cannot be written", where=f"--out {folder}")


def _say(written: Sequence[Path], as_json: bool) -> None:
    """Prints where the files are, or what the numbers are.

    Raises:
        UserError: JSON is asked for and no report has any.
    """
    if not as_json:
        shown = written if len(written) <= MOST_PATHS else written[:MAIN_PATHS]
        for path in shown:
            print(path)
        if len(shown) < len(written):
            print(f"and {counted(len(written) - len(shown), 'more file')} in {shown[0].parent}")
        return
    numbers = [path for path in written if path.name == NUMBERS]
    if not numbers:
        raise UserError(f"none of the sweep's reports writes {NUMBERS}", fix=f"--report {GENERAL}")
    sys.stdout.write(numbers[0].read_text(encoding="utf-8").rstrip() + "\n")
