"""What a process and its broker say to each other: frames of MessagePack, each after its length."""

from __future__ import annotations

from typing import Any

import msgspec

LENGTH_BYTES = 4


class Move(msgspec.Struct, frozen=True, array_like=True):
    """A file to upload or download.

    Attributes:
        key: in the store.
        path: on this machine.
        size: bytes.
        sha256: of its content, hexadecimal; only for downloads.
    """

    key: str
    path: str
    size: int
    sha256: str = ""


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One request.

    Attributes:
        number: of the call; the answer carries it, and answers may come in any order.
        verb: a method of `orchestrator.store.broker.Broker`.
        keys: keys or prefixes.
        data: the content to write.
        start: the byte to read from.
        moves: files to transfer.
        limit: how many bytes to read, None for all.
    """

    number: int
    verb: str
    keys: tuple[str, ...] = ()
    data: bytes = b""
    start: int = 0
    moves: tuple[Move, ...] = ()
    limit: int | None = None


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """One answer; an error has a text.

    Attributes:
        number: of the call.
        value: what the verb returns.
        error: what went wrong in a line, "" when nothing did.
        errno: the error's kind: EACCES not allowed, ENXIO no such bucket, EINVAL no such address, else EIO.
    """

    number: int
    value: Any = None
    error: str = ""
    errno: int = 0


def frame(message: Call | Answer) -> bytes:
    """Returns a message as it goes through the pipe."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body
