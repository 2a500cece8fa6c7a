"""Commands of a test in processes that are forked with the imports done.

A verb that only reads spends most of its time on imports. Each still runs in a process of its own, with the
environment, the folder and the streams that it is given; what Python itself reads of the environment when it
starts must be as it was for the process that is forked.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

VERBS = frozenset(
    {
        "best",
        "cancel",
        "clean",
        "collect",
        "diff",
        "discard",
        "list",
        "logs",
        "plan",
        "report",
        "show",
        "status",
        "why",
    }
)
"""Those that start no other process of ours."""

_ROOT = Path(__file__).parents[1]
_ENV = dict(os.environ)
_lock = threading.Lock()


def fits(words: Sequence[str], env: Mapping[str, str], code: int | None) -> bool:
    """Whether a command can be run so; one that is to be refused starts no other process either."""

    refused = code == 2 and words[:1] in (("launch",), ("rerun",), ("data",))
    is_alone = bool(words) and (words[0] in VERBS or refused or words[:2] == ("data", "check"))
    return is_alone and _of_python(env) == _of_python(_ENV)


def _of_python(env: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in env.items() if key.startswith(("PYTHON", "LC_", "LANG", "LD_"))}


def run(words: Sequence[str], folder: Path, env: Mapping[str, str], timeout_s: float) -> tuple[int, str, str]:
    """Run ``sweep WORDS`` and return its exit code and what it wrote to both streams."""
    with _lock, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        line, _ = _server()
        order = json.dumps({"words": [*words], "folder": str(folder), "env": dict(env)}).encode()
        socket.send_fds(line, [len(order).to_bytes(8, "big")], [out.fileno(), err.fileno()])
        line.sendall(order)
        line.settimeout(timeout_s)
        try:
            answer = line.recv(4, socket.MSG_WAITALL)
        except TimeoutError:
            line.close()
            _server.cache_clear()
            raise subprocess.TimeoutExpired([*words], timeout_s) from None
        assert len(answer) == 4, "the process that forks has ended"
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
        return int.from_bytes(answer, "big", signed=True), texts[0], texts[1]


@cache
def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
            cwd=_ROOT,
            env=_ENV,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return ours, process


def _serve(line: socket.socket) -> None:
    """Fork a process for each order; returns in the forked ones, whose streams and folder are set."""
    while True:
        data, streams, _, _ = socket.recv_fds(line, 8, 2)
        if not data:
            os._exit(0)
        order = json.loads(line.recv(int.from_bytes(data, "big"), socket.MSG_WAITALL))
        child = os.fork()
        if child == 0:
            line.close()
            for number, stream in enumerate(streams, start=1):
                os.dup2(stream, number)
                os.close(stream)
            os.chdir(order["folder"])
            os.environ.clear()
            os.environ.update(order["env"])
            sys.argv = ["orchestrator", *order["words"]]
            sys.path[0] = order["folder"]
            return
        for stream in streams:
            os.close(stream)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        line.sendall(code.to_bytes(4, "big", signed=True))


if __name__ == "__main__":
    import orchestrator.compose
    import orchestrator.reports.general  # noqa: F401
    from orchestrator.cli.main import verb_of

    for verb in (*VERBS, "launch", "rerun"):
        verb_of(verb)
    gc.freeze()  # memory that is not touched is not copied
    _serve(socket.socket(fileno=int(sys.argv[1])))
    from orchestrator.cli.main import main

    code = main()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
