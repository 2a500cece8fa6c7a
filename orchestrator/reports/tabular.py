"""A table as both the Markdown and the page show it: text in cells, and which columns are numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """A table for people.

    Attributes:
        key: of its file, such as ``table2``.
        title: its caption.
        columns: the headers; those that begin with ``#`` are of numbers, and are shown without it.
        rows: texts; the first of each is the row's header.
        note: what the reader must know: n, intervals, tests.
    """

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def headers(self) -> list[tuple[str, bool]]:
        """Each header, and whether its column is of numbers."""
        return [(name.removeprefix("#"), name.startswith("#")) for name in self.columns]
