"""`sweep query`: SQL over the states and results of sweeps."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.api.query import Answer, answer_of, query_of
from orchestrator.api.tables import TABLES
from orchestrator.cli.output import add_store, existing_store, print_table
from orchestrator.errors import UserError, counted
from orchestrator.store.opening import as_usual
from orchestrator.store.table import flat

if TYPE_CHECKING:
    import pyarrow

FORMATS = ("table", "csv", "json", "parquet")


def configure_query(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("sql", metavar="SQL", help="one SELECT, in DuckDB's dialect")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="SWEEP",
        help="only this sweep, with @k for revision k, @* for all; repeats; default: all, as last launched",
    )
    parser.add_argument("--format", choices=FORMATS, help="default: by the name of FILE, else table")
    parser.add_argument("--json", action="store_true", help="the same as --format json: an array of objects")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    add_store(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = tables_help()


def tables_help() -> str:
    """Return the tables with their columns, types and units, as lines of text."""
    more = {
        "cells": "one column more for each axis, after cell",
        "results": "as `sweep collect`: also the axes, the sweep's `columns`, and what stages returned;\n"
        "  a returned name that is an axis or one of these columns gets the suffix _row",
        "predictions": "also the columns of the files `predictions.parquet` of products",
    }
    lines = ['tables (times in UTC; an axis with a dot in its name is quoted: "model.lr"):']
    for name, columns in TABLES.items():
        lines += ["", f"{name}" + (f": {more[name]}" if name in more else "")]
        lines += [f"  {column.name:<16} {column.type:<10} {column.means}" for column in columns]
    return "\n".join(lines)


def run_query(args: argparse.Namespace) -> int:
    """Print the result of a query, or write it to a file."""
    kind = _format(args)
    if args.out is not None and not args.out.absolute().parent.is_dir():
        raise UserError(f"no folder {args.out.absolute().parent}", where=f"--out {args.out}")
    ledger = existing_store(args.words)
    if kind == "parquet":
        table = query_of(ledger, args.sql, args.sweep)
        with as_usual():
            _write_parquet(table, args.out)
        print(f"{counted(table.num_rows, 'row')} in {args.out}")
        return 0
    found = answer_of(ledger, args.sql, args.sweep)
    if args.out is None:
        _write(found, kind, sys.stdout)
        return 0
    # The file is the user's, not the store's: it gets the usual permissions.
    with as_usual(), args.out.open("w", encoding="utf-8", newline="") as stream:
        _write(found, kind, stream)
    print(f"{counted(len(found.rows), 'row')} in {args.out}")
    return 0


def _format(args: argparse.Namespace) -> str:
    """Return the format: of ``--json``, ``--format``, the file's ending, else a table.

    Raises:
        UserError: the ending is unknown, or the format does not fit where it goes.
    """
    suffix = args.out.suffix.lstrip(".") if args.out else "table"
    kind = "json" if args.json else args.format or suffix
    if kind not in FORMATS or (args.out and kind == "table"):
        raise UserError(f"{args.out} has none of the known endings", allowed=".csv, .json, .parquet")
    if kind == "parquet" and args.out is None:
        raise UserError("Parquet is no text", fix="--out FILE.parquet")
    return str(kind)


def _write(found: Answer, kind: str, stream: TextIO) -> None:
    if kind == "table":
        print_table(found.columns, [[_short(value) for value in row] for row in found.rows])
    elif kind == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(found.columns)
        writer.writerows([flat(value) for value in row] for row in found.rows)
    else:
        rows = [
            {name: _plain(value) for name, value in zip(found.columns, row, strict=True)}
            for row in found.rows
        ]
        stream.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def _write_parquet(table: pyarrow.Table, path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path)


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it: no number that JSON lacks, times and decimals as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | bool):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
