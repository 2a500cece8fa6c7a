"""Waiting for other processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def until(true: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    """Waits for something that another process does."""
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(0.02)


def pid_in(file: Path) -> int:
    """Waits for a file with a process id and returns it."""
    until(lambda: file.exists() and file.read_text())
    return int(file.read_text())


def lives(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
