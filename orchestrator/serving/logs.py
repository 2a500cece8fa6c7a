"""Parts of a log, made safe for a page: whole characters, no terminal sequences, no control characters."""

from __future__ import annotations

import re
from typing import NamedTuple

from orchestrator.api.logs import SEQUENCE, size_of
from orchestrator.errors import escaped
from orchestrator.store.objects import ObjectStore

TAIL = 2**16
"""Bytes of a log's end that a page shows at first."""

CHUNK = 2**18
"""Most bytes that are read for one answer."""

_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*)?$")
"""A sequence that a later part of the log finishes."""

_MAX_SEQUENCE = 4096


class LogPart(NamedTuple):
    """A part of a log.

    Attributes:
        text: for a page.
        start: number of its first byte.
        end: number of the byte after its last one. The next part begins here.
    """

    text: str
    start: int
    end: int


def last_part(objects: ObjectStore, key: str, length: int = TAIL) -> LogPart:
    """Return the end of a log, from the beginning of a line on."""
    start = max(0, size_of(objects, key) - length)
    part = part_from(objects, key, start)
    if not start:
        return part
    # The bytes at the cut may be the middle of a character or of a line.
    rest = part.text.partition("\n")[2]
    return part._replace(text=rest or part.text)


def part_from(objects: ObjectStore, key: str, start: int) -> LogPart:
    """Return the part of a log that begins with a byte; an empty one at its end."""
    data = objects.read_from(key, start, CHUNK)
    used = len(data) - _incomplete(data)
    text = data[:used].decode(errors="replace")
    held = _UNFINISHED.search(text[-_MAX_SEQUENCE:])
    if held is not None and len(held[0]) < len(text):
        used -= len(held[0].encode())
        text = text[: len(text) - len(held[0])]
    return LogPart(plain(text), start, start + used)


def _incomplete(data: bytes) -> int:
    """Return how many bytes at the end are the beginning of a character of UTF-8 whose rest is missing."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if needed > back and back < len(data) else 0
    return 0


def plain(text: str) -> str:
    """Return a text of a terminal as plain lines: of a line that was overwritten, the last state."""
    text = SEQUENCE.sub("", text).replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return escaped(text)
