"""What any record says of itself, read without knowing its kind; what is unreadable says nothing."""

from __future__ import annotations

import msgspec


class Peek(msgspec.Struct):
    """Fields that some records have.

    Attributes:
        nonce: of the write that made it.
        content: digest of a revision's content.
        format: of the store.
    """

    nonce: str = ""
    content: str = ""
    format: int | None = None


def peek(data: bytes) -> Peek:
    """Reads them from a record's bytes."""
    try:
        return msgspec.json.decode(data, type=Peek)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Peek()
