"""`sweep diff`: show which fields make one cell, stage or revision different from another."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from typing import Any

from orchestrator.api.state import SweepState, open_view
from orchestrator.cli.output import add_store, no_overrides, print_json, print_table
from orchestrator.core.sweep import Cell
from orchestrator.core.tree import changed_keys
from orchestrator.errors import UserError, counted


def configure_diff(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("first", metavar="SWEEP@K | SWEEP", help="a revision, or the sweep of two cells")
    parser.add_argument("second", metavar="SWEEP@K | CELL")
    parser.add_argument("third", nargs="?", metavar="CELL")
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run_diff(args: argparse.Namespace) -> int:
    """Compare two revisions of a sweep, or two cells of one revision."""
    # The third word may be a cell or the store. argparse cannot decide, so the words are sorted out here.
    words = [w for w in (args.third, *args.words) if w is not None]
    url = no_overrides([w for w in words if w.startswith("store.url=")])
    rest = [w for w in words if not w.startswith("store.url=")]
    if rest:
        view = open_view(args.first, url)
        return _print_cells(view, view.cell(args.second), view.cell(rest[0]), args.json)
    return _print_revisions(open_view(args.first, url), _second(args, url), args.json)


def _second(args: argparse.Namespace, url: str | None) -> SweepState:
    """Open the second revision. If there is none, the error explains both forms of the verb."""
    try:
        return open_view(args.second, url)
    except UserError as error:
        raise UserError(
            error.what,
            allowed="two revisions, or a sweep and two of its cells",
            fix="sweep diff SWEEP@1 SWEEP@2, or sweep diff SWEEP CELL CELL",
        ) from error


def _stages(view: SweepState, other: SweepState, first: Cell, second: Cell) -> list[dict[str, Any]]:
    """Return, for each stage of two cells, whether it is the same and, if not, why.

    A stage has the same digest only if target, version, `reads` and inputs are all equal. So a difference is
    explained by one of these.

    Args:
        view, other: the revisions of the two cells.
        first, second: the cells.

    Returns:
        One dict a stage: its name (``stage``), whether the digests are equal (``same``), and the ``reason``.
    """
    mine = {view.sweep.stages[d].name: view.sweep.stages[d] for d in first.stage_digests}
    its = {other.sweep.stages[d].name: other.sweep.stages[d] for d in second.stage_digests}
    rows = []
    for name in dict.fromkeys((*mine, *its)):
        a, b = mine.get(name), its.get(name)
        if a is None or b is None:
            reason = "only in the second" if a is None else "only in the first"
        elif a.digest == b.digest:
            reason = "the same"
        else:
            old, new = view.sweep.specs[a.stage], other.sweep.specs[b.stage]
            reasons = [f"reads {key}" for key in changed_keys(a.reads, b.reads)]
            reasons += [f"version {old.version} to {new.version}"] if old.version != new.version else []
            inputs = {(i.stage, i.label): i.digest for i in a.inputs}
            others = {(i.stage, i.label): i.digest for i in b.inputs}
            differ = [s for s in dict.fromkeys((*inputs, *others)) if inputs.get(s) != others.get(s)]
            reasons += [f"input {stage}" + (f"[{label}]" if label else "") for stage, label in differ]
            reason = ", ".join(reasons) or "its target changed"
        rows.append({"stage": name, "same": reason == "the same", "reason": reason})
    return rows


def _named(view: SweepState) -> dict[str, Any]:
    """Return the name and number of a revision, for JSON."""
    return {"sweep": view.sweep.name, "revision": view.number}


def _print_cells(view: SweepState, first: Cell, second: Cell, as_json: bool) -> int:
    """Print how the configs and stages of two cells differ."""
    keys, stages = changed_keys(first.config, second.config), _stages(view, view, first, second)
    if as_json:
        cells = [first.id, second.id]
        print_json({**_named(view), "cells": cells, "config": keys, "stages": stages})
        return 0
    print(f"{view.title}: {first.id} and {second.id}")
    _print_keys(keys)
    print_table(("stage", "difference"), [(row["stage"], row["reason"]) for row in stages])
    return 0


def _print_keys(keys: Mapping[str, tuple[Any, Any]]) -> None:
    """Print the keys whose values differ."""
    if keys:
        print_table(("key", "first", "second"), [(k, repr(a), repr(b)) for k, (a, b) in keys.items()])
    else:
        print("the configs are equal")


def _print_revisions(old: SweepState, new: SweepState, as_json: bool) -> int:
    """Print how two revisions differ: cells that are the same, changed, or only in one of them.

    A cell whose config changed has another id. Two cells with equal axes in both revisions count as one
    changed cell. So a changed default is printed as one key, not as many removed and added cells.
    """
    before = {cell.id: cell for cell in old.sweep.cells}
    after = {cell.id: cell for cell in new.sweep.cells}
    removed = [cell for name, cell in before.items() if name not in after]
    added = [cell for name, cell in after.items() if name not in before]
    former = {tuple(cell.axes.items()): cell for cell in removed}
    counts: Counter[tuple[str, str, str]] = Counter()
    pairs: list[dict[str, Any]] = []
    for cell in added:
        twin = former.pop(tuple(cell.axes.items()), None)
        if twin is not None:
            keys = changed_keys(twin.config, cell.config)
            pairs.append(
                {"old": twin.id, "new": cell.id, "config": keys, "stages": _stages(old, new, twin, cell)}
            )
            counts.update((key, repr(a), repr(b)) for key, (a, b) in keys.items())
    matched = {pair["new"] for pair in pairs}
    only_new = [cell.id for cell in added if cell.id not in matched]
    only_old = [cell.id for cell in former.values()]
    same = len(set(before) & set(after))
    if as_json:
        changes = {"same": same, "changed": pairs, "only_first": only_old, "only_second": only_new}
        print_json({**_named(old), "second": _named(new), **changes})
        return 0
    print(f"{old.title} and {new.title}: {counted(same, 'cell')} the same, {len(pairs)} changed")
    if counts:
        rows = [(key, a, b, n) for (key, a, b), n in counts.most_common(40)]
        print_table(("key", old.title, new.title, "cells"), rows)
    for title, names in ((old.title, only_old), (new.title, only_new)):
        if names:
            print(f"only in {title}: {' '.join(names[:20])}" + (" ..." if len(names) > 20 else ""))
    stages = Counter(
        (s["stage"].partition("[")[0], s["reason"]) for p in pairs for s in p["stages"] if not s["same"]
    )
    if stages:
        print_table(("stage", "why it is another", "cells"), [(*key, n) for key, n in stages.most_common(20)])
    return 0
