"""Foreign texts, made safe for records, logs and terminals. All are cut and escaped here."""

from __future__ import annotations

import re

MAX_LINE = 500
"""Greatest length of a message, in characters."""

_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed, so ANSI sequences too
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # characters that change the direction of text
    "\u2028\u2029\ufeff\ud800-\udfff]"  # other line separators, byte order marks, lone surrogates
)
"""Characters that act on a terminal, or that UTF-8 cannot encode."""


def escaped(text: str) -> str:
    r"""Return a text that cannot act on a terminal and that UTF-8 can encode; ``\x1b`` replaces an escape.

    Tabs and line feeds stay.
    """
    return _ACTING.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Return the beginning of a text as one line of at most `limit` characters."""
    begun = text[: 4 * limit]  # the text may have millions of characters
    line = escaped(" ".join(re.split(r"[ \t\r\n]+", begun.strip(" \t\r\n"))))
    return line if len(line) <= limit and len(begun) == len(text) else line[: limit - 3] + "..."


def words_of(error: object) -> str:
    """Return the text of an exception or of any other object, even if its ``__str__`` fails."""
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - the code of others
        return f"(its text cannot be had: __str__ raised {type(failure).__name__})"


def counted(number: int, noun: str) -> str:
    """Return ``1 cell`` or ``2 cells``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
