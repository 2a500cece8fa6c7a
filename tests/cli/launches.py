"""Launches that run while the test acts, and what tests read from the store meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOW = """
description: slow counting
config: {seed: 0, count: {num_steps: 30, checkpoint_every: 5, step_s: 0.05, fail: null}}
axes: {seed: "range(0,6)"}
stages: [count]
"""


class Running:
    """A launch in the background, in a process group of its own as a terminal would make it."""

    def __init__(self, folder: Path, store: Path, words: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *words],
            cwd=folder,
            env={**os.environ, "SWEEP_STORE": str(store)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            process_group=0,
        )

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, timeout_s: float = 60) -> tuple[int, str]:
        """Waits for the end; returns exit code and output."""
        output, _ = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, output


def records(store: Path, name: str) -> list[dict[str, Any]]:
    """Reads all records of one kind, such as ``claim.json``, with the folder they lie in."""
    return [
        {**json.loads(path.read_text()), "folder": path.parent}
        for path in store.glob(f"records/*/*/*/{name}")
    ]


def wait_for(condition: Callable[[], Any], timeout_s: float = 30) -> Any:
    """Waits until a condition holds and returns its value."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)
    return value


def running_heartbeats(store: Path) -> list[dict[str, Any]]:
    """Returns the heartbeats, with the child's process, of attempts that have not ended."""
    beats = []
    for beat in records(store, "heartbeat.json"):
        if beat["child"] and not (beat["folder"] / "end.json").exists():
            beats.append(beat)
    return beats


def checkpoints(store: Path) -> list[Path]:
    """Returns the manifests of all checkpoints."""
    return list(store.glob("payload/*/*/*/checkpoints/*/manifest.json"))
