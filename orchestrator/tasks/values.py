"""Comparison of argument values: lists and dicts by structure, others as exact strings (section 3).

The section is that of the study. The parser reads the Python and JSON forms of real calls, including quotes
inside the same quotes. It never evaluates anything.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NamedTuple

from orchestrator.tasks.numbers import UNSEEN

CLOSERS = {
    "'": "'’",
    '"': '"”',
    "‘": "’'",
    "’": "’",
    "‚": "‘’",
    "“": '”"',
    "”": "”“",
    "„": '“”"',
    "＇": "＇'",
    "＂": '＂"',
    "「": "」",
    "『": "』",
    "«": "»",
    "»": "«",
    "‹": "›",
    "›": "‹",
    "‛": "’",
    "〝": "〞〟",
    "`": "`'",
}
"""Map from a quote that opens a value to the quotes that may close it."""

_BLANK = " \t\n\r\f\v\u00a0\u3000" + UNSEEN

MAX_DEPTH = 50
"""Maximum depth of nesting. A deeper value is compared as a string, so that no text overflows the stack."""

Structure = tuple[object, ...]
"""A tagged value: ``("list", ...)``, ``("dict", pairs)``, ``("string", text)``, ``("number", Decimal)`` or
``("constant", value)``."""


def same_value(first: str, second: str) -> bool:
    """Return whether two values are the same.

    Values that parse as lists or dicts are equal if their structures are. So the order of a dict's keys is
    free, and 1 equals 1.0 within a list. All other values must be equal as strings.
    """
    if first == second:
        return True
    structure = _structure(first)
    return structure is not None and structure == _structure(second)


class _NotAStructure(Exception):
    """Raised if a text is not a list or dict."""


class _Read(NamedTuple):
    value: Structure
    end: int


def _structure(text: str) -> Structure | None:
    """Return a text as a structure, or None if it is not a list or dict."""
    text = text.strip()
    if text[:1] not in ("[", "{", "［", "｛", "【"):
        return None
    try:
        read = _value(text, 0, "", MAX_DEPTH)
    except _NotAStructure:
        return None
    return read.value if read.end == len(text) else None


def _value(text: str, at: int, stops: str, depth: int) -> _Read:
    """Return the value at a position. Without quotes, it ends at one of the characters `stops`."""
    at = _space(text, at)
    match text[at : at + 1]:
        case "":
            raise _NotAStructure
        case "[" | "［" | "【" if depth:
            return _list(text, at + 1, depth - 1)
        case "{" | "｛" if depth:
            return _dict(text, at + 1, depth - 1)
        case "[" | "［" | "【" | "{" | "｛":
            raise _NotAStructure
        case opening if opening in CLOSERS:
            return _string(text, at)
        case _:
            return _bare(text, at, stops)


def _list(text: str, at: int, depth: int) -> _Read:
    values: list[Structure] = []
    at = _space(text, at)
    while text[at : at + 1] not in ("]", "］", "】"):
        value, at = _value(text, at, ",，]］】", depth)
        values.append(value)
        at = _separator(text, at, "]］】")
    return _Read(("list", *values), at + 1)


def _dict(text: str, at: int, depth: int) -> _Read:
    pairs: dict[Structure, Structure] = {}
    at = _space(text, at)
    while text[at : at + 1] not in ("}", "｝"):
        key, at = _value(text, at, ":：,，}｝", depth)
        at = _space(text, at)
        if text[at : at + 1] not in (":", "：") or key in pairs:
            raise _NotAStructure
        pairs[key], at = _value(text, at + 1, ",，}｝", depth)
        at = _separator(text, at, "}｝")
    return _Read(("dict", frozenset(pairs.items())), at + 1)


def _separator(text: str, at: int, closing: str) -> int:
    """Return the position of the next value or of the closing bracket."""
    at = _space(text, at)
    if text[at : at + 1] in (",", "，"):
        return _space(text, at + 1)
    if text[at : at + 1] in tuple(closing):
        return at
    raise _NotAStructure


_CLOSES = re.compile(rf"[\s{UNSEEN}]*[,:\]}}，：］｝】]")


def _string(text: str, at: int) -> _Read:
    """Return the quoted string at a position."""
    quotes = CLOSERS[text[at]] if text[at] not in "'\"" else text[at]
    characters: list[str] = []
    at += 1
    while at < len(text):
        character = text[at]
        # A quote closes the string only if a separator or bracket follows, since models write quotes
        # unescaped.
        if character == "\\" and text[at + 1 : at + 2] in ("\\", "'", '"'):
            at += 1
            character = text[at]
        elif character in quotes and _CLOSES.match(text, at + 1):
            return _Read(("string", "".join(characters)), at + 1)
        characters.append(character)
        at += 1
    raise _NotAStructure


_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")  # 007 is an identifier
_CONSTANTS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}


def _bare(text: str, at: int, stops: str) -> _Read:
    """Return the constant, number or unquoted string at a position."""
    end = at
    # A word without quotes ends at the first separator of its container.
    while end < len(text) and text[end] not in stops:
        end += 1
    word = text[at:end].strip(_BLANK)
    if not word:
        raise _NotAStructure
    if word in _CONSTANTS:
        return _Read(("constant", _CONSTANTS[word]), end)
    if _NUMBER.fullmatch(word):
        return _Read(("number", Decimal(word)), end)
    return _Read(("string", word), end)


_SPACE = re.compile(rf"[\s{UNSEEN}]*")


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
