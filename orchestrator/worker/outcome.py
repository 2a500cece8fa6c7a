"""What a child left in its attempt's folder: its outcome, and the end of its log."""

from __future__ import annotations

from pathlib import Path

import msgspec

from orchestrator import formats
from orchestrator.store import layout
from orchestrator.worker.order import Outcome

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
