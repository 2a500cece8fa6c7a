"""The process that ends what ranks started, in whatever session, when their launcher is gone.

A rank may start processes that leave its process group, such as the engine process of vLLM, which holds GPU
memory. They survive a launcher and ranks that are killed. All of them inherit one variable of the
environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from pathlib import Path

GROUP = "SWEEP_RANKS_GROUP"
"""Environment variable that all processes of one launcher's ranks have."""
_PATIENCE_S, _POLL_S = 10.0, 0.05


def watch() -> None:
    """Fork the watcher, and mark what this process starts from now on. Call it before any thread exists.

    The watcher holds one end of a pipe. The kernel closes the other one when this process ends, however that
    happens. The watcher has a session of its own, so that no signal to this process's group reaches it.
    """
    os.environ[GROUP] = uuid.uuid4().hex
    reader, writer = os.pipe()  # not inherited by programs that this process starts
    if os.fork():
        os.close(reader)
        return
    # The watcher never returns: the code that called this function belongs to the launcher.
    with contextlib.suppress(BaseException):
        os.setsid()
        os.close(writer)
        # Held open, the launcher's sockets would hide its end from the stage's process.
        os.closerange(3, reader)
        os.closerange(reader + 1, 1024)
        os.read(reader, 1)
        end_group(os.environ[GROUP])
    os._exit(0)


def end_group(group: str) -> None:
    """Kill all processes of this machine that have a mark, except this one, until none is left.

    Args:
        group: value of the variable `GROUP`.
    """
    mark, end_s = f"{GROUP}={group}".encode(), time.monotonic() + _PATIENCE_S
    while time.monotonic() < end_s:
        marked = [pid for pid in _processes() if pid != os.getpid() and mark in _environment(pid)]
        for pid in marked:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not marked:
            return
        time.sleep(_POLL_S)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _environment(pid: int) -> list[bytes]:
    """Return a process's variables as it was started with; none of a zombie, or of another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
