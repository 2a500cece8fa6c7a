"""Launches that run while the test acts, and what tests read from the store meanwhile."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.testing import checkpoints as checkpoints
from orchestrator.testing import records as records
from orchestrator.testing import running_heartbeats as running_heartbeats
from orchestrator.testing import wait_for as wait_for
from tests import forked

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


def screen(shown: str) -> list[str]:
    """Return what is left on the screen, without its styles: each line as it was written last."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", shown):
        if part == "\n":
            row += 1
            lines += [""] if row == len(lines) else []
        elif part.startswith("\x1b[") and part.endswith("A"):
            row -= int(part[2:-1] or 1)
        elif part.startswith("\x1b[") and part.endswith("K"):
            lines[row] = ""
        elif part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return [line.rstrip() for line in lines if line.strip()]


class Running:
    """A launch in the background, in a process group of its own as a terminal would make it.

    Args:
        folder: its working folder.
        store: where its store is.
        words: after ``sweep``.
        is_forked: whether it is forked with the imports done, where the environment allows that.
    """

    def __init__(self, folder: Path, store: Path, words: tuple[str, ...], *, is_forked: bool = True) -> None:
        env = {**os.environ, "SWEEP_STORE": str(store)}
        ours, its = os.pipe()
        self.process: forked.Started | subprocess.Popen[bytes]
        if is_forked and forked.fits(env):
            self.process = forked.Started(
                "orchestrator", words, folder=folder, env=env, streams=[its, its], leads=True
            )
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *words],
                cwd=folder,
                env=env,
                stdout=its,
                stderr=its,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        os.close(its)
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, args=[ours], daemon=True)
        self._reader.start()

    def _read(self, output: int) -> None:
        with open(output) as stream:
            self._lines.extend(stream)

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_for_line(self, text: str) -> None:
        """Waits until it has printed a line with this text."""
        wait_for(lambda: any(text in line for line in self._lines))

    def interrupt_twice(self) -> None:
        """The second Ctrl-C once the first one has been seen: two at once may count as one."""
        self.interrupt()
        self.wait_for_line("stopping")
        self.interrupt()

    def end(self, timeout_s: float = 120) -> tuple[int, str]:
        """Waits for the end of it and of all that hold its output; returns exit code and output."""
        self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        assert not self._reader.is_alive(), "somebody holds its output"
        return self.process.returncode, "".join(self._lines)
