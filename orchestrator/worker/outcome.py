"""What a child left in its attempt's folder: its outcome, and the end of its log."""

from __future__ import annotations

from pathlib import Path

import msgspec

from orchestrator import formats
from orchestrator.store import layout
from orchestrator.worker.order import Outcome

LOG_TAIL_LINES, LOG_TAIL_BYTES = 20, 8192


def read_outcome(folder: Path) -> Outcome | None:
    """Returns a child's last words, None when it left none."""
    try:
        return formats.decode((folder / layout.OUTCOME).read_bytes(), Outcome)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def log_tail(path: Path) -> str:
    """Returns the last lines of a log."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_TAIL_LINES:])
