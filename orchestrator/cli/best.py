"""`sweep best`: rank the cells by a metric, lowest or highest first; seeds are averaged."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from orchestrator.api.state import open_view
from orchestrator.api.status import rows_of
from orchestrator.cli.arguments import add_only, add_store, no_overrides
from orchestrator.cli.output import print_json, print_table
from orchestrator.errors import UserError, nearest
from orchestrator.results import (
    CellResult,
    RepeatGroup,
    axes_of,
    by_cell,
    is_seed,
    labelled,
    metrics_of,
    spread_over,
    spread_text,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "sweep", metavar="SWEEP", help="a name or a path to a YAML file, with @k for revision k"
    )
    parser.add_argument("metric", metavar="METRIC", help="a column of numbers of `sweep collect`")
    parser.add_argument("--max", action="store_true", help="the highest value is best; default: the lowest")
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


def run(args: argparse.Namespace) -> int:
    """Print the groups of cells with the best values of a metric."""
    if args.top < 0:
        raise UserError(f"--top is {args.top}", allowed="0 for all, or how many to show")
    view = open_view(args.sweep, no_overrides(args.words))
    rows = labelled(rows_of(view, args.only), {cell.cell: cell.axes for cell in view.sweep.cells})
    known = list(dict.fromkeys(axis for cell in view.sweep.cells for axis in cell.axes))
    for axis in args.over:
        if axis not in known:
            raise UserError(f"no axis {axis!r}", where=view.title, allowed=nearest(axis, known))
    axes = axes_of(rows, known)
    columns = {*known, *(name for cell in view.sweep.cells for name in cell.columns)}
    results = by_cell(rows, axes=axes, columns=columns)
    _check_metric(args.metric, results, view.title)
    # Cells that differ only in the seed form one group, ranked by its mean.
    over = [axis for axis in axes if is_seed(axis) or axis in args.over]
    groups = spread_over([result for result in results if args.metric in result.metrics], over)
    groups.sort(key=lambda group: group.metrics[args.metric].mean, reverse=args.max)
    shown = groups[: args.top] if args.top else groups
    if args.json:
        print_json([_plain(rank, group, args.metric) for rank, group in enumerate(shown, start=1)])
        return 0
    rest = [axis for axis in axes if axis not in over]
    lines = [
        [
            rank,
            spread_text(group.metrics[args.metric]),
            *(group.axes.get(axis, "–") for axis in rest),
            _cells(group),
        ]
        for rank, group in enumerate(shown, start=1)
    ]
    print_table(["rank", args.metric, *rest, "cells"], lines)
    return 0


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


def _cells(group: RepeatGroup) -> str:
    """Return the first cell of a group, and how many more there are."""
    first = group.cells[0]
    return first if len(group.cells) == 1 else f"{first} and {len(group.cells) - 1} more"


def _plain(rank: int, group: RepeatGroup, metric: str) -> dict[str, object]:
    """Return one rank for scripts."""
    found = group.metrics[metric]
    return {"rank": rank, "metric": metric, **found._asdict(), "axes": dict(group.axes), "cells": group.cells}
