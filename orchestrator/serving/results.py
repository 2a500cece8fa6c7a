"""The table of results as a page shows it: filtered, sorted and cut into pages on the server. Pure."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

PAGE_ROWS = 100
"""Rows of one page."""

_COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
"""What a filter may begin with, the longer ones first."""


class ResultPage(NamedTuple):
    """One page of the results.

    Attributes:
        columns: their names, in the order of `sweep collect`.
        numeric: those of them that hold numbers alone.
        rows: of this page.
        number: of the page, from 1.
        num_pages: at least 1.
        num_rows: rows that the filters keep.
        total: rows without filters.
    """

    columns: Sequence[str]
    numeric: frozenset[str]
    rows: Sequence[Mapping[str, Any]]
    number: int
    num_pages: int
    num_rows: int
    total: int


def kept(rows: Sequence[Mapping[str, Any]], filters: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Return the rows that all filters keep.

    Args:
        rows: result rows.
        filters: column to a condition: ``>0.5`` and the like, a glob such as ``en*``, a number, or a part of
            the text. An unknown column keeps nothing.
    """
    tests = {name: _test(text.strip()) for name, text in filters.items() if text.strip()}
    return [row for row in rows if all(test(row.get(name)) for name, test in tests.items())]


def _test(text: str) -> Callable[[Any], bool]:
    for sign, compare in _COMPARED.items():
        if text.startswith(sign):
            bound = text[len(sign) :].strip()
            return lambda value: _compares(compare, value, bound)
    number = _number(text)
    if number is not None:
        # A number is no part of another number: 1 does not mean 10.
        return lambda value: _number(value) == number if _number(value) is not None else text in str(value)
    lower = text.lower()
    if "*" in lower or "?" in lower:
        return lambda value: value is not None and fnmatch.fnmatchcase(str(value).lower(), lower)
    return lambda value: value is not None and lower in str(value).lower()


def _compares(compare: Callable[[Any, Any], bool], value: Any, bound: str) -> bool:
    left, right = _number(value), _number(bound)
    if left is not None and right is not None:
        return compare(left, right)
    if compare in (operator.eq, operator.ne):
        return compare("" if value is None else str(value), bound)
    return False


def _number(value: Any) -> float | None:
    """Return a value as a number; None if it is none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def ordered(rows: Sequence[Mapping[str, Any]], column: str, *, descending: bool) -> list[Mapping[str, Any]]:
    """Return rows by one column: numbers, then texts; rows without a value are last either way."""
    having = [row for row in rows if row.get(column) is not None]
    rest = [row for row in rows if row.get(column) is None]

    def key(row: Mapping[str, Any]) -> tuple[bool, float, str]:
        value = row[column]
        number = (
            float(value) if isinstance(value, bool) else None if isinstance(value, str) else _number(value)
        )
        return (number is None, number or 0.0, str(value).lower() if number is None else "")

    return [*sorted(having, key=key, reverse=descending), *rest]


def page_of(
    rows: Sequence[Mapping[str, Any]],
    *,
    filters: Mapping[str, str],
    sort: str = "",
    descending: bool = False,
    number: int = 1,
) -> ResultPage:
    """Return one page of results.

    Args:
        rows: all result rows.
        filters: see `kept`.
        sort: column to sort by; "" for the order of the sweep.
        descending: whether the greatest value comes first.
        number: of the page; the last one if there are fewer.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    chosen = kept(rows, filters)
    if sort:
        chosen = ordered(chosen, sort, descending=descending)
    num_pages = max(1, -(-len(chosen) // PAGE_ROWS))
    number = min(max(1, number), num_pages)
    return ResultPage(
        columns=columns,
        numeric=frozenset(name for name in columns if _is_numeric(rows, name)),
        rows=chosen[(number - 1) * PAGE_ROWS : number * PAGE_ROWS],
        number=number,
        num_pages=num_pages,
        num_rows=len(chosen),
        total=len(rows),
    )


def _is_numeric(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return all(
        isinstance(value, int | float) and not isinstance(value, bool)
        for row in rows
        if (value := row.get(name)) is not None
    )


def shown(value: Any) -> str:
    """Return a value as the table shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
