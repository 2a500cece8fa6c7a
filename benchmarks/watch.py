"""What `sweep watch` costs on a terminal of its own: first screen, processor time, and how fast keys answer.

Makes stores in the middle of their work from records, without running them. Usage:

    python benchmarks/watch.py [230 | 10000]...
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import statistics
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

from tests.store import states

SECONDS = 20.0
AXES = {
    230: {"model": range(5), "task": range(2), "mixture": range(23)},
    10_000: {"rate": range(2500), "name": range(2), "seed": range(2)},
}


class Terminal:
    """A command on a terminal of 80 x 24."""

    def __init__(self, *words: str) -> None:
        self._ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.start_s = time.perf_counter()
        self.process = psutil.Popen(
            [sys.executable, "-m", "orchestrator", *words],
            stdin=its,
            stdout=its,
            stderr=its,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(its)

    def read(self, timeout_s: float) -> bytes:
        """Return what is shown next, or nothing within the time."""
        with contextlib.suppress(OSError):
            if select.select([self._ours], [], [], timeout_s)[0]:
                return os.read(self._ours, 1 << 20)
        return b""

    def until(self, text: bytes) -> float:
        """Return the seconds from the start until a text is shown."""
        shown = b""
        while text not in shown:
            shown += self.read(60.0)
        return time.perf_counter() - self.start_s

    def press(self, key: bytes) -> float:
        """Return the seconds from a key to what it changes."""
        while self.read(0.02):  # what was on its way
            pass
        start_s = time.perf_counter()
        os.write(self._ours, key)
        self.read(10.0)
        return time.perf_counter() - start_s

    def cpu_s(self) -> float:
        """Return the processor time so far, in seconds."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def end(self) -> None:
        """Quit."""
        os.write(self._ours, b"q")
        while self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE:
            self.read(0.1)
        self.process.wait(10)
        os.close(self._ours)


def measure(num_cells: int) -> None:
    """Make a store, and watch it."""
    with tempfile.TemporaryDirectory() as folder:
        axes = {axis: [f"{axis}{n}" for n in labels] for axis, labels in AXES[num_cells].items()}
        states.make(Path(folder, "store"), axes)
        terminal = Terminal("watch", "study", "--store", f"{folder}/store")
        first_s = terminal.until(b" old")
        begun_s, first_cpu_s = time.perf_counter(), terminal.cpu_s()
        keys: list[float] = []
        while time.perf_counter() - begun_s < SECONDS:
            keys.append(terminal.press(b"\x1b[B" if len(keys) % 20 < 10 else b"\x1b[A"))
            time.sleep(0.05)
        busy_s, first_part_s = terminal.cpu_s() - first_cpu_s, time.perf_counter() - begun_s
        begun_s, before_s = time.perf_counter(), terminal.cpu_s()
        while time.perf_counter() - begun_s < SECONDS:
            terminal.read(1.0)
        idle_s = terminal.cpu_s() - before_s
        terminal.end()
        ordered = sorted(keys)
        print(f"{num_cells} cells: {first_s:.2f} s to the first screen, {first_cpu_s:.2f} s of processor")
        print(
            f"  keys: median {1e3 * statistics.median(keys):.0f} ms, 95 % within"
            f" {1e3 * ordered[int(0.95 * len(keys))]:.0f} ms, at most {1e3 * ordered[-1]:.0f} ms,"
            f" {busy_s / first_part_s:.0%} of a core"
        )
        print(f"  without keys: {idle_s / SECONDS:.1%} of a core")


if __name__ == "__main__":
    for word in sys.argv[1:] or ("230", "10000"):
        measure(int(word))
