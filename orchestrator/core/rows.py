"""What counts as a result row: a mapping with text keys to what JSON can say. Pure.

It knows the libraries that stages compute with only by the ``.item()`` of their scalars.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from orchestrator.errors import StageFailure


class _Refused(Exception):
    """Why a value cannot be in a row, and where in the row it is."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(why)
        self.path, self.why = path, why


def checked_rows(value: object, *, cause: str = "code") -> tuple[dict[str, Any], ...]:
    """Returns a stage's rows as plain JSON values: scalars of numpy and torch unwrapped, tuples as lists.

    Args:
        value: what the stage returned, or what its results file holds.
        cause: of the failure.

    Raises:
        StageFailure: it is no list of mappings (or None), or a row holds what JSON cannot say; names both.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise StageFailure(
            cause, f"the rows must be a list of mappings, they are {_name(value)}; return None for no rows"
        )
    rows = []
    for number, row in enumerate(value, start=1):
        if not isinstance(row, Mapping):
            raise StageFailure(cause, f"row {number} must be a mapping, it is {_name(row)}")
        try:
            rows.append(_mapping("", row))
        except _Refused as refused:
            where = f"row {number}, key {refused.path!r}" if refused.path else f"row {number}"
            raise StageFailure(cause, f"{where}: {refused.why}") from None
    return tuple(rows)


def _mapping(path: str, mapping: Mapping[Any, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise _Refused(path, f"keys must be text, one is {key!r}")
        name = _text(path, key)
        plain[name] = _plain(f"{path}.{name}" if path else name, value)
    return plain


def _plain(path: str, value: Any) -> Any:
    if isinstance(value, Mapping):  # first: a mapping's attributes may be its keys
        return _mapping(path, value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    match value:
        case None | bool():
            return value
        case str():
            return _text(path, value)
        case int():
            return int(value)
        case float():
            if not math.isfinite(value):
                raise _Refused(path, f"{float(value)} is no JSON; give None (null) instead")
            return float(value)
        case list() | tuple():
            return [_plain(f"{path}[{index}]", item) for index, item in enumerate(value)]
    hint = "; give its .tolist()" if hasattr(value, "tolist") else ""
    raise _Refused(path, f"{_name(value)} is no JSON value{hint}")


def _text(path: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Refused(path, f"{value!r} cannot be written as UTF-8") from None
    return str.__str__(value)


def _name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


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
