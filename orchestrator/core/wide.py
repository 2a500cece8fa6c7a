"""Result rows joined over the stages of a cell: one row where their keys agree. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

Row = dict[str, Any]

PER_STAGE: Final = ("stage", "seconds", "code")
"""Columns of the engine that differ from stage to stage; a joined row says them of all its stages."""


def widened(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return rows in which those of a cell's stages are joined, in the order of the first.

    Keys are the columns that two stages have in common and that hold no fractions. Rows join when they are
    equal, one to one or one to many: the one loss of a training joins each language of its evaluation. A
    fraction that both stages return under one name keeps it for the first, and is ``<stage>.<name>`` for the
    other. Rows that no key matches stay apart, and so do two stages with many rows and no key.

    Args:
        rows: as `orchestrator.store.table.collect_rows` returns them.
    """
    cells: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        stages = cells.setdefault((row["sweep"], row["revision"], row["cell"]), {})
        stages.setdefault(str(row["stage"]).partition("[")[0], []).append(dict(row))
    wide: list[Row] = []
    for stages in cells.values():
        (_, joined), *others = stages.items()
        apart: list[Row] = []
        for stage, more in others:
            both = _joined(joined, more, stage)
            if both is None:
                apart += more
            else:
                joined = both
        wide += [*joined, *apart]
    return wide


def _joined(rows: Sequence[Row], others: Sequence[Row], stage: str) -> list[Row] | None:
    """Return the rows of two tables joined, those without a match after them; None if they cannot be."""
    keys = _keys(rows, others)
    left, right = _by_key(rows, keys), _by_key(others, keys)
    shared = left.keys() & right.keys()
    if not shared or any(len(left[key]) > 1 < len(right[key]) for key in shared):
        return None
    joined = [
        merged
        for key, mine in left.items()
        for row in mine
        for merged in ([_merged(row, other, stage) for other in right[key]] if key in right else [row])
    ]
    return joined + [row for key, theirs in right.items() if key not in left for row in theirs]


def _keys(rows: Sequence[Row], others: Sequence[Row]) -> list[str]:
    every = [*rows, *others]
    common = [name for name in rows[0] if name not in PER_STAGE and all(name in row for row in every)]
    return [name for name in common if not any(isinstance(row[name], float) for row in every)]


def _by_key(rows: Iterable[Row], keys: Sequence[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(json.dumps([row[name] for name in keys], sort_keys=True), []).append(row)
    return found


def _merged(row: Row, other: Row, stage: str) -> Row:
    merged = dict(row)
    for name, value in other.items():
        if name == "seconds":
            merged[name] = (row[name] or 0.0) + (value or 0.0)
        elif name in PER_STAGE:
            words = f"{row[name]}+{value}" if value and row[name] else row[name] or value
            merged[name] = row[name] if value == row[name] else words
        elif merged.get(name) is None:
            merged[name] = value
        elif merged[name] != value:
            merged[f"{stage}.{name}"] = value
    return merged
