"""`sweep collect`, `best` and `report`: the result rows as a table, as a ranking, and as a report."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orchestrator.api.reports import check_folder, fitting_report, write_report, write_sweep_reports
from orchestrator.api.state import SweepState, open_view, parse_reference, sealed_view
from orchestrator.api.status import rows_of
from orchestrator.cli.output import (
    NUMBERS,
    LongStep,
    add_only,
    add_store,
    no_overrides,
    print_json,
    print_table,
    print_warnings,
    print_written,
    to_stderr,
)
from orchestrator.core.settings import split_store
from orchestrator.core.state import State
from orchestrator.errors import UserError, counted, nearest
from orchestrator.registry import GENERAL, TABLE_READER, load
from orchestrator.results import (
    CellResult,
    RepeatGroup,
    axes_of,
    by_cell,
    direction,
    is_seed,
    labelled,
    metrics_of,
    spread_over,
    spread_text,
    texts_among_numbers,
)
from orchestrator.store import layout
from orchestrator.store.ledger import open_ledger
from orchestrator.store.opening import as_usual, store_url
from orchestrator.store.table import Rows, widened, write_csv, write_table

FORMATS = ("parquet", "csv", "json")


def configure_collect(parser: argparse.ArgumentParser) -> None:
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


def run_collect(args: argparse.Namespace) -> int:
    """Write the rows of finished stages to a file or to standard output."""
    kind = _format(args)
    url, words = split_store(args.sweeps)
    named = [view for word in words for view in _revisions(word, url)]
    # A revision that is named twice counts once.
    views = list({(view.sweep.name, view.number): view for view in named}.values())
    rows: Rows = []
    with LongStep("collecting") as step:
        for number, view in enumerate(views):
            step(number, len(views) if len(views) > 1 else 0)
            view.check_decisions()  # half of the rows would pass for all of them
            rows += rows_of(view, args.only)
    if args.wide:
        rows = widened(rows)
    title = ", ".join(view.title for view in views)
    if not rows and any(cell.state is State.DONE for view in views for cell in view.cells.values()):
        hint = "cells are done without result rows: the stage's command needs `results` or `metric`"
        print(f"{hint}; then `sweep discard` and launch", file=sys.stderr)
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


def _revisions(word: str, url: str | None) -> list[SweepState]:
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


def _format(args: argparse.Namespace) -> str:
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


def configure_best(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "sweep", metavar="SWEEP", help="a name or a path to a YAML file, with @k for revision k"
    )
    parser.add_argument("metric", metavar="METRIC", help="a column of numbers of `sweep collect`")
    better = parser.add_mutually_exclusive_group()
    better.add_argument("--max", action="store_true", help="the highest value is best; default: by its name")
    better.add_argument("--min", action="store_true", help="the lowest value is best")
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="AXIS",
        help="rank by the mean over this axis, as over seeds; repeats",
    )
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many to show; default 5, 0 all")
    add_only(parser)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    add_store(parser)


def run_best(args: argparse.Namespace) -> int:
    """Print the groups of cells with the best values of a metric."""
    if args.top < 0:
        raise UserError(f"--top is {args.top}", allowed="0 for all, or how many to show")
    view = open_view(args.sweep, no_overrides(args.words))
    view.check_decisions()  # the best of half of the cells would pass for the best of all
    with LongStep("collecting"):
        every = labelled(rows_of(view, args.only), {cell.id: cell.axes for cell in view.sweep.cells})
        rows = [row for row in every if view.cells[row["cell"]].state is not State.STOPPED]
    known = list(dict.fromkeys(axis for cell in view.sweep.cells for axis in cell.axes))
    for axis in args.over:
        if axis not in known:
            raise UserError(f"no axis {axis!r}", where=view.title, allowed=nearest(axis, known))
    axes = axes_of(rows, known)
    columns = {*known, *(name for cell in view.sweep.cells for name in cell.columns)}
    results = by_cell(rows, axes=axes, columns=columns)
    _check_metric(args.metric, results, view.title)
    for line in texts_among_numbers(rows, [args.metric]):
        print(f"note: {line}", file=sys.stderr)
    # Cells that differ only in the seed form one group, ranked by its mean.
    over = [axis for axis in axes if is_seed(axis) or axis in args.over]
    groups = spread_over([result for result in results if args.metric in result.metrics], over)
    better = "max" if args.max else "min" if args.min else direction(args.metric)
    groups.sort(key=lambda group: group.metrics[args.metric].mean, reverse=better == "max")
    shown = groups[: args.top] if args.top else groups
    if args.json:
        print_json([_rank_json(rank, group, args.metric) for rank, group in enumerate(shown, start=1)])
        return 0
    if not args.max and not args.min and better != "min":
        # On standard error, since the table may go into a pipe.
        print(_unasked(args.metric, better), file=sys.stderr)
    rest = [axis for axis in axes if axis not in over]
    lines = [
        [
            rank,
            spread_text(group.metrics[args.metric]),
            *(str(group.axes.get(axis, "")) or "–" for axis in rest),
            _first_cells(group),
        ]
        for rank, group in enumerate(shown, start=1)
    ]
    print_table(["rank", args.metric, *rest, "cells"], lines)
    return 0


def _unasked(metric: str, better: str | None) -> str:
    """Return which values come first where no option names the direction."""
    if better == "max":
        return f"the highest {metric} first, as its name suggests; --min for the lowest"
    return f"the lowest {metric} first; --max for the highest"


def _check_metric(metric: str, results: Sequence[CellResult], title: str) -> None:
    """Raise if the metric is not exactly one column of numbers.

    Args:
        metric: the column that the user named.
        results: of all cells.
        title: of the revision, for the error.

    Raises:
        UserError: no column has the name, or several columns do for different stages or labels.
    """
    names = metrics_of(results)
    if metric in names:
        return
    if not results:
        raise UserError("no cell has a result row", where=title, fix="sweep status shows where it stands")
    longer = [name for name in names if name.startswith(f"{metric}[") or name.endswith(f".{metric}")]
    raise UserError(
        f"{metric!r} is {'several columns' if len(longer) > 1 else 'no column of numbers'}",
        where=title,
        allowed=", ".join(longer) if longer else nearest(metric, names),
    )


def _first_cells(group: RepeatGroup) -> str:
    """Return the first cell of a group, and how many more there are."""
    first = group.cells[0]
    return first if len(group.cells) == 1 else f"{first} and {len(group.cells) - 1} more"


def _rank_json(rank: int, group: RepeatGroup, metric: str) -> dict[str, object]:
    """Return one rank for scripts."""
    found = group.metrics[metric]
    return {"rank": rank, "metric": metric, **found._asdict(), "axes": dict(group.axes), "cells": group.cells}


def configure_report(parser: argparse.ArgumentParser) -> None:
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


def run_report(args: argparse.Namespace) -> int:
    """Write the reports, and print where they are."""
    if args.table is not None:
        return _report_of_table(args)
    if args.sweep is None:
        raise UserError("a report of what?", fix="sweep report SWEEP, or sweep report --table FILE --out DIR")
    view = open_view(args.sweep, no_overrides(args.words))
    place = args.out.absolute() if args.out else None
    # The default folder lies in the store, which does not exist before the first launch.
    if place is None and not view.sealed and not args.json:
        print(f"{view.title}: nothing is done yet, and the store has no folder for its report")
        print(f"  sweep launch {args.sweep}{view.hint}, or --out DIR for what is planned")
        return 0
    inside = layout.report(view.sweep.name)
    check_folder(view.ledger.objects.folder(inside) if place is None and view.sealed else place)
    with tempfile.TemporaryDirectory() as nowhere:
        if not view.sealed:
            place = place or Path(nowhere)  # only JSON is printed; no store folder exists yet
        named = _reports_of(args, view.sweep.report)
        with LongStep("writing the report"):
            reports, errors = write_sweep_reports(view, named, place, notify=to_stderr, over=args.over)
        written = [path for report in reports for path in report]
        if not args.json:
            print_warnings(view)
        if not errors or not args.json:
            _print_report(written, as_json=args.json)
    # The first error is raised below, so that it decides the exit code. The other reports were still written.
    for error in errors[1:]:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        raise errors[0]
    return 0


def _report_of_table(args: argparse.Namespace) -> int:
    """Write the report of a table that `sweep collect` wrote."""
    words = [word for word in [args.sweep, *args.words] if word]
    if words:
        raise UserError(f"either a sweep or a table: {words[0]!r} beside --table {args.table}")
    if args.out is None:
        raise UserError("a table's report needs a folder", fix="--out DIR")
    check_folder(args.out)
    rows: Rows = load(TABLE_READER)(args.table)
    folder, offers = args.out.absolute(), {"over": lambda: tuple(args.over)}
    (name,) = _reports_of(args, ()) or (fitting_report(rows, None, args.table),)
    with LongStep("writing the report"):
        written = write_report(name, rows, folder, offers, where=str(args.table), notify=to_stderr)
    _print_report(written, as_json=args.json)
    return 0


def _print_report(written: Sequence[Path], *, as_json: bool) -> None:
    """Print the paths of the written files, or the content of ``report.json``.

    Raises:
        UserError: JSON is requested and no report wrote any.
    """
    if not as_json:
        print_written(written)
        return
    numbers = [path for path in written if path.name == NUMBERS]
    if not numbers:
        raise UserError(f"none of the sweep's reports writes {NUMBERS}", fix=f"--report {GENERAL}")
    sys.stdout.write(numbers[0].read_text(encoding="utf-8").rstrip() + "\n")


def _reports_of(args: argparse.Namespace, named: Sequence[str]) -> Sequence[str]:
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
