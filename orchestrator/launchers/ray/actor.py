"""The Ray actor that starts a worker's process on a node, and ends it.

Ray sends this module to the node by value. It may import only the standard library, because the node need not
have this package.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

TAIL_BYTES = 4096
"""How much of the end of a worker's output is returned."""


def program(function: Callable[..., None], *first: str) -> str:
    """Return the text of a Python program that calls a function with the words of its command line.

    Args:
        function: imports all that it uses itself, because the program consists of nothing else.
        first: its first arguments, which are a part of the program.
    """
    return (
        f"import sys\n\n\n{inspect.getsource(function)}\n\n{function.__name__}(*{first!r}, *sys.argv[1:])\n"
    )


def keep(pipe: str, *command: str) -> None:
    """Run a worker detached from the actor, and write its process id and then its exit code into a pipe.

    Ray kills an actor together with its children, but a worker must be able to save a checkpoint first. So
    the worker is no child of the actor. This keeper, which has detached itself with a fork and a new session,
    starts it. It also adopts what a killed worker leaves behind, and ends that before it writes the exit
    code (as `orchestrator.processes` does, which the node need not have).

    Args:
        pipe: the descriptor to write to.
        command: the worker's.
    """
    import contextlib
    import ctypes
    import os
    import subprocess
    import sys
    import time
    from pathlib import Path

    if os.fork():
        os._exit(0)
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    worker = subprocess.Popen(command)
    os.write(int(pipe), b"%d\n" % worker.pid)
    code = worker.wait()
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s:
        texts = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
        left = [int(pid) for text in texts for pid in text.split()]
        if not left:
            break
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, 9)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
    os.write(int(pipe), b"%d\n" % code)


KEEPER = program(keep)
"""The keeper's program. It is text, because the node need not have this file."""


class Slot:
    """One worker's place on a node.

    The worker's standard input is a pipe whose other end only this actor holds. When the actor is gone,
    however that happened, the input ends, and the worker saves a checkpoint and exits::

        actor (Slot)  --lifeline-->  standard input of the worker
        keeper        --pid, code->  actor
        keeper        -- parent of the worker, detached from the actor
    """

    def __init__(self) -> None:
        self._pid: int | None = None
        self._asked = False

    def where(self) -> tuple[str, str]:
        """Return the id and the address of this node."""
        import ray

        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def run(self, argv: list[str], environment: dict[str, str], folder: str) -> dict[str, Any]:
        """Run a worker to its end.

        Args:
            argv: what to run, after the interpreter.
            environment: variables added to those of the node.
            folder: the working folder, if the node has it.

        Returns:
            The exit code, None if it is not known, and the end of the worker's output.
        """
        # this actor keeps the writing end, which no child inherits
        lifeline, mine = os.pipe()
        with tempfile.TemporaryFile() as log:
            stream = _start(argv, {**os.environ, **environment}, folder, lifeline, log)
            os.close(lifeline)
            try:
                self._pid = int(stream.readline())
                # a stop can arrive before the worker has a process id
                if self._asked:
                    self.stop()
                code = stream.readline()
            finally:
                self._pid = None
                os.close(mine)
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            output = log.read().decode(errors="replace")
        return {"code": int(code) if code else None, "output": output}

    def stop(self) -> None:
        """Stop the worker: it saves a checkpoint and ends."""
        self._asked = True
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)


def _start(
    argv: list[str], environment: dict[str, str], folder: str, lifeline: int, log: IO[bytes]
) -> IO[bytes]:
    """Start a worker through a keeper, and return the stream of its process id and its exit code."""
    read, write = os.pipe()
    command = [sys.executable, "-c", KEEPER, str(write), sys.executable, *argv]
    # a node need not have the folder of the launch
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
