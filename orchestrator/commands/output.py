"""How verbs print: tables for people, JSON for scripts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO, cast

import msgspec

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
        table.add_row(*(Text(str(item), style=COLOURS.get(str(item), "")) for item in row))
    console.print(table)


class ComposeProgress:
    """Prints on standard error, now and then, how far a large grid is composed; nothing for a small one."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._due_s = time.monotonic() + (1.0 if self._is_terminal else 10.0)

    def __call__(self, number: int, of: int) -> None:
        """Take the number of points composed so far, and of all."""
        if number % 64 == 0 and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + (0.5 if self._is_terminal else 10.0)
            end = "\r" if self._is_terminal else "\n"
            print(f"composing: {number:,} of {of:,} points", end=end, file=sys.stderr, flush=True)


def shorten(text: str, length: int) -> str:
    """Cuts a long text for a column."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."


def outlive_the_reader() -> None:
    """Lets a verb that runs things go on when the reader of its output leaves, as `head` does."""
    sys.stdout = cast(TextIO, _Unbreakable(sys.stdout))


class _Unbreakable:
    """A stream that turns silent, instead of raising, when nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._silence()

    def _silence(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def counted(number: int, noun: str) -> str:
    """Returns ``1 cell`` or ``2 cells``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
