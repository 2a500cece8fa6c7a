"""A spare process of a command in tests/forked.py, which becomes the fork server that the command starts.

A fork server is Python anew, with the imports of a worker: half of what a launch of one short cell takes. The
spare is forked before the command begins, so it has the imports, and nothing of what the command does then.
It takes the streams, files, folder, environment, umask and signals that the command would have handed down.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import types
from collections.abc import Mapping, Sequence
from itertools import pairwise
from multiprocessing import util
from pathlib import Path
from typing import Any

PRELOADED = ("multiprocessing.forkserver", "orchestrator.execution.keeper", "orchestrator.execution.main")
STARTERS = frozenset({"launch", "rerun", "work", "tests.execution.faults"})
"""The verbs and modules that start a fork server."""

_TRACKER = "from multiprocessing.resource_tracker import main"
_SERVER = "from multiprocessing.forkserver import main"
_ABOVE = 100  # descriptors that the spare uses nowhere else


def of_python(env: Mapping[str, str]) -> dict[str, str]:
    """Return what Python itself reads of the environment when it starts."""
    return {key: value for key, value in env.items() if key.startswith(("PYTHON", "LC_", "LANG", "LD_"))}


def fork() -> None:
    """Fork a spare; what this process starts with ``spawnv_passfds`` is then a fork of it, where it fits."""
    ours, theirs = socket.socketpair()
    before, parent, spawn = of_python(os.environ), os.getpid(), util.spawnv_passfds
    spare = os.fork()
    if spare == 0:
        ours.close()
        _wait(theirs)
    theirs.close()
    unused = [spare]

    def start(path: bytes, args: Sequence[str], passed: Sequence[int]) -> int:
        if of_python(os.environ) != before or os.getpid() != parent:
            return spawn(path, args, passed)
        if args[-1].startswith(_TRACKER):
            return _track(args[-1], passed)
        if not unused or not args[-1].startswith(_SERVER):
            return spawn(path, args, passed)
        with ours:
            _order(ours, args[-1], passed)
        return unused.pop()

    util.spawnv_passfds = start


def _track(code: str, passed: Sequence[int]) -> int:
    """Fork what the command starts as the tracker of its resources, which needs nothing but a pipe."""
    tracker = os.fork()
    if tracker:
        return tracker
    try:
        sys.stdin = sys.stdout = (
            None  # it closes both, and what the command has not yet written is not its own
        )
        kept = sorted({0, 1, 2, *passed})
        for low, high in pairwise([*kept, os.sysconf("SC_OPEN_MAX")]):
            os.closerange(low + 1, min(high, 1 << 16))
        exec(code, {})  # noqa: S102 - what Python is given with -c
    finally:
        os._exit(0)


def _order(line: socket.socket, code: str, passed: Sequence[int]) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    numbers = [0, 1, 2, *sorted({*passed} - {0, 1, 2})]
    order = {
        "code": code,
        "numbers": numbers,
        "folder": str(Path.cwd()),
        "env": dict(os.environ),
        "umask": umask,
        "blocked": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "ignored": [int(each) for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN],
    }
    data = json.dumps(order).encode()
    socket.send_fds(line, [len(data).to_bytes(8, "big")], numbers)
    line.sendall(data)


def _wait(line: socket.socket) -> None:
    """Become the fork server that the command starts; end with the command where it starts none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which may yet need it
    try:
        data, files, _, _ = socket.recv_fds(line, 8, 16)
        if data:
            order = json.loads(line.recv(int.from_bytes(data, "big"), socket.MSG_WAITALL))
            _become(order, files)
            with contextlib.suppress(SystemExit):
                exec(order["code"], vars(sys.modules["__main__"]))  # noqa: S102 - what Python is given with -c
            atexit._run_exitfuncs()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def _become(order: dict[str, Any], files: Sequence[int]) -> None:
    """Make this process what Python begins as that the command starts with ``-c``."""
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, _ABOVE) for file in files]
    os.closerange(3, _ABOVE)
    for file, number in zip(high, order["numbers"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.umask(order["umask"])
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = ["-c"]
    sys.path[0] = ""
    sys.modules["__main__"] = types.ModuleType("__main__")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, order["blocked"])
