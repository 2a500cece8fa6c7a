"""What runs on a node as a Ray actor: it starts a worker's process and ends it.

Sent by value, so it may import nothing but the standard library: the node need not have this package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

TAIL_BYTES = 4096

# Ray kills an actor's children with it, but a worker is to save a checkpoint first: so it is a grandchild,
# kept by a process that tells its pid and its exit code. It adopts what a killed worker leaves behind, and
# ends that before (as `orchestrator.processes` does, which the node need not have).
_KEEPER = """
import ctypes, glob, os, subprocess, sys, time
told = int(sys.argv[1])
if os.fork():
    os._exit(0)
os.setsid()
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
worker = subprocess.Popen(sys.argv[2:])
os.write(told, b"%d\\n" % worker.pid)
code, end_s = worker.wait(), time.monotonic() + 10
while time.monotonic() < end_s:
    texts = [open(path).read() for path in glob.glob("/proc/self/task/*/children")]
    left = [int(pid) for text in texts for pid in text.split()]
    if not left:
        break
    for pid in left:
        try:
            os.kill(pid, 9)
            os.waitpid(pid, os.WNOHANG)
        except OSError:
            pass
    time.sleep(0.02)
os.write(told, b"%d\\n" % code)
"""


class Slot:
    """One worker's place on a node.

    The worker sees that this actor is gone by its standard input, which then ends.
    """

    def __init__(self) -> None:
        self._pid: int | None = None
        self._asked = False

    def where(self) -> tuple[str, str]:
        """Returns the node's id and its address."""
        import ray

        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def run(self, argv: list[str], environment: dict[str, str], folder: str) -> dict[str, Any]:
        """Runs the worker to its end: its exit code, None when that is not known, and its last words."""
        lifeline, mine = os.pipe()
        with tempfile.TemporaryFile() as log:
            told = _start(argv, {**os.environ, **environment}, folder, lifeline, log)
            os.close(lifeline)
            try:
                self._pid = int(told.readline())
                if self._asked:
                    self.stop()
                code = told.readline()
            finally:
                self._pid = None
                os.close(mine)
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            said = log.read().decode(errors="replace")
        return {"code": int(code) if code else None, "said": said}

    def stop(self) -> None:
        """Asks the worker to save a checkpoint and to end."""
        self._asked = True
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)


def _start(
    argv: list[str], environment: dict[str, str], folder: str, lifeline: int, log: IO[bytes]
) -> IO[bytes]:
    """Starts a worker; returns the stream that tells its pid and then its exit code."""
    read, write = os.pipe()
    command = [sys.executable, "-c", _KEEPER, str(write), sys.executable, *argv]
    where = folder if Path(folder).is_dir() else tempfile.gettempdir()
    subprocess.run(
        command,
        stdin=lifeline,
        stdout=log,
        stderr=log,
        env=environment,
        cwd=where,
        pass_fds=[write],
        check=True,
    )
    os.close(write)
    return os.fdopen(read, "rb")
