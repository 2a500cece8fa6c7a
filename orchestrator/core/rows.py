"""What counts as a result row: a mapping with text keys to what JSON can say. Pure.

It knows the libraries that stages compute with only by the ``.item()`` of their scalars.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
