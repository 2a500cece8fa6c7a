"""Result rows: validation of what a stage returns, and the join of the rows of a cell's stages. Pure.

A row is a mapping from text keys to JSON values. Scalars of numpy and torch are recognised by their
``.item()`` alone, so this module imports neither library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from orchestrator.errors import StageFailure


class _Refused(Exception):
    """Raised when a value cannot be in a row, with the place of the value in the row."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(why)
        self.path, self.why = path, why


def checked_rows(value: object, *, cause: str = "code") -> tuple[dict[str, Any], ...]:
    """Return a stage's rows as plain JSON values.

    Scalars of numpy and torch are unwrapped, and tuples become lists.

    Args:
        value: what the stage returned, or what its results file contains.
        cause: failure cause to raise with.

    Raises:
        StageFailure: `value` is neither None nor a list of mappings, or a row contains a value that JSON
            cannot represent. The message names the row and the key.
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
    if isinstance(value, Mapping):  # first, since a mapping may offer its keys as attributes
        return _mapping(path, value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        # A scalar of numpy or torch: an array without dimensions.
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
        # A lone surrogate is valid in a Python string, but not in UTF-8, and so not in a JSON record.
        value.encode()
    except UnicodeEncodeError:
        raise _Refused(path, f"{value!r} cannot be written as UTF-8") from None
    return str.__str__(value)


def _name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


Row = dict[str, Any]

PER_STAGE: Final = ("stage", "seconds", "code")
"""Columns of the engine that differ between stages. A joined row combines the values of its stages."""


def widened(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return rows in which the rows of a cell's stages are joined, in the order of the first stage.

    The keys of the join are the columns that all rows of both stages have and that contain no fractions. Rows
    join if their keys are equal, one to one or one to many. For example, the single row of a training joins
    each row of its evaluation:

        train      loss=1.25                  ->   loss=1.25  language=en  score=0.5
        evaluate   language=en  score=0.5          loss=1.25  language=sw  score=0.25
        evaluate   language=sw  score=0.25

    Fractions are results, not keys: two stages that both return ``loss`` would hardly ever match. The first
    stage keeps such a name; the value of the other stage becomes ``<stage>.<name>``. A row without a match
    stays a row of its own. So do all rows of two stages that could only join many to many.

    Args:
        rows: as returned by `orchestrator.store.table.collect_rows`.
    """
    cells: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        stages = cells.setdefault((row["sweep"], row["revision"], row["cell"]), {})
        # The instances of a stage, such as prepare[en] and prepare[sw], form one table.
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
    """Return the joined rows of two tables, then the rows without a match; None if no join is possible."""
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
