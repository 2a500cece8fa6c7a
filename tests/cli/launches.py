"""Launches that run while the test acts, and what tests read from the store meanwhile."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
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


def on_terminal(
    command: Sequence[str], *, folder: Path, env: Mapping[str, str] = {}, columns: int = 80
) -> tuple[int, str]:
    """Run a command with a terminal as its streams; return its exit code and what it shows.

    Args:
        command: the words.
        folder: where it runs, with its store.
        env: further variables.
        columns: of the terminal.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    known = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**known, "TERM": "xterm-256color", "SWEEP_STORE": str(folder / "store"), **env},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    return process.wait(timeout=60), shown.decode().replace("\r\n", "\n")


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
