"""How verbs print: tables for people, JSON for scripts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from orchestrator.text import escaped, one_line

COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "lost": "magenta",
    "blocked": "yellow",
    "released": "blue",
    "cancelled": "yellow",
}
PIPE_WIDTH = 4000


def print_json(value: Any) -> None:
    """Prints one JSON value and nothing else."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(text.decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints aligned columns; states are coloured on a terminal, and nothing is cut in a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(escaped(str(item)), style=COLOURS.get(str(item), "")) for item in row))
    console.print(table)


def shorten(text: str, length: int) -> str:
    """Cuts a long text for a column."""
    return one_line(text, length)


def counted(number: int, noun: str) -> str:
    """Returns ``1 cell`` or ``2 cells``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
