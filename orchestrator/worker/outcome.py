"""What passes between worker and child: messages, and what a child left in its attempt's folder."""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from orchestrator import formats
from orchestrator.store import layout
from orchestrator.worker.order import Message, Outcome

LOG_TAIL_LINES, LOG_TAIL_BYTES = 20, 8192
LOG_END_BYTES = 65536
"""What is read to find a traceback."""


def read_outcome(folder: Path) -> Outcome | None:
    """Returns a child's last words, None when it left none."""
    try:
        return formats.decode((folder / layout.OUTCOME).read_bytes(), Outcome)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def end_of_log(path: Path, num_bytes: int = LOG_END_BYTES) -> str:
    """Returns the end of a log, from the beginning of a line where it is long."""
    try:
        with path.open("rb") as stream:
            start = max(0, path.stat().st_size - num_bytes)
            stream.seek(start)
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return text.partition("\n")[2] if start else text


def log_tail(path: Path) -> str:
    """Returns the last lines of a log."""
    return "\n".join(end_of_log(path, LOG_TAIL_BYTES).splitlines()[-LOG_TAIL_LINES:])


def complain(line: str) -> None:
    """Write a line into the worker's log, which may lie on a full disk."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def tell(pipe: Connection, message: Message) -> None:
    """Send a child a message, unless it is ending."""
    with contextlib.suppress(OSError):
        pipe.send_bytes(msgspec.json.encode(message))
