"""Waiting for other processes and threads, and sending all of a tree a signal."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from orchestrator.processes import process_table
from orchestrator.provenance import entry_of


def until(true: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    """Waits for something that another process does."""
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(0.02)


def running(thread: threading.Thread) -> list[str]:
    """Names of the functions that a thread is in."""
    frame = sys._current_frames().get(thread.ident or 0)
    return [frame.name for frame in traceback.extract_stack(frame)] if frame else []


def pid_in(file: Path) -> int:
    """Waits for a file with a process id and returns it."""
    until(lambda: file.exists() and file.read_text())
    return int(file.read_text())


def lives(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    return (entry := entry_of(pid)) is not None and entry.runs


def parent_of(pid: int) -> int:
    """The process that started another one, which runs."""
    entry = entry_of(pid)
    assert entry is not None
    return entry.parent


def tree(pid: int) -> list[int]:
    """Returns a process and all its descendants, children before their parents."""
    children: dict[int, list[int]] = {}
    for process, entry in process_table().items():
        children.setdefault(entry.parent, []).append(process)

    def below(process: int) -> list[int]:
        return [pid for child in children.get(process, []) for pid in (*below(child), child)]

    return [*below(pid), pid]


def signal_all(pid: int, number: int) -> list[int]:
    """Sends a signal to a process and all its descendants, as a scheduler does; returns who they were."""
    pids = tree(pid)
    for process in pids:  # children first: the order in which a stop is heard of last
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
    return pids
