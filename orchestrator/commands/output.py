"""How verbs print: tables for people, JSON for scripts."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from orchestrator.commands.columns import layout
from orchestrator.text import escaped, one_line

COLOURS = {
    "done": 32,
    "running": 36,
    "failed": 31,
    "lost": 35,
    "blocked": 33,
    "released": 34,
    "cancelled": 33,
}
"""State to the number of a colour in the terminal's escape sequences (ECMA-48, SGR)."""

BOLD = 1


def print_json(value: Any) -> None:
    """Prints one JSON value and nothing else."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(text.decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print columns that fit the terminal; in a pipe nothing is wrapped, and each row is one line."""
    texts = [[printable(str(item)) for item in row] for row in rows]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    is_styled = styled()

    def style(text: str, held: str) -> str:
        return _coloured(text, COLOURS[held]) if is_styled and held in COLOURS else text

    def title(text: str, held: str) -> str:
        return _coloured(text, BOLD) if is_styled and held else text

    print("\n".join(layout(columns, texts, width, style=style, title=title)))


def styled() -> bool:
    """Tell whether escape sequences may be printed: on a terminal that knows them, without NO_COLOR."""
    is_dumb = os.environ.get("TERM", "") in ("", "dumb", "unknown")
    return sys.stdout.isatty() and not is_dumb and not os.environ.get("NO_COLOR")


def _coloured(text: str, number: int) -> str:
    return f"\x1b[{number}m{text}\x1b[0m"


def printable(text: str) -> str:
    """Return a text without what would move the cursor, change colours or break a line."""
    return text if text.isprintable() else escaped(text).replace("\n", "\\n").replace("\t", "\\t")


class ComposeProgress:
    """Prints on standard error, now and then, how far a large grid is composed; nothing for a small one."""

    def __init__(self) -> None:
        self._is_terminal, self._has_printed = sys.stderr.isatty(), False
        self._due_s = time.monotonic() + (1.0 if self._is_terminal else 10.0)

    def __call__(self, number: int, of: int) -> None:
        """Take the number of points composed so far, and of all."""
        if number == of and self._is_terminal and self._has_printed:
            print(" " * 60, end="\r", file=sys.stderr, flush=True)
        elif number % 64 == 0 and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + (0.5 if self._is_terminal else 10.0)
            self._has_printed = True
            end = "\r" if self._is_terminal else "\n"
            print(f"composing: {number:,} of {of:,} points", end=end, file=sys.stderr, flush=True)


def shorten(text: str, length: int) -> str:
    """Cuts a long text for a column."""
    return one_line(text, length)


def counted(number: int, noun: str) -> str:
    """Returns ``1 cell`` or ``2 cells``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
