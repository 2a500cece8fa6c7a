"""Launches that run while the test acts, and what tests read from the store meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from orchestrator.testing import checkpoints as checkpoints
from orchestrator.testing import records as records
from orchestrator.testing import running_heartbeats as running_heartbeats
from orchestrator.testing import wait_for as wait_for

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
