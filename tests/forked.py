"""Commands of a test in processes that are forked with the imports done.

A short verb spends most of its time on imports. Each still runs in a process of its own, with the folder, the
environment, the umask and the streams that it is given. What Python itself reads of the environment when it
starts must be as it was for the process that forks.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests import spare

_ROOT = Path(__file__).parents[1]
_ENV = dict(os.environ)
_PYTHONPATHS = {_ENV.get("PYTHONPATH"), str(_ROOT)}
_PRELOADED = (
    "email.parser",
    "importlib.metadata",
    "multiprocessing.popen_forkserver",
    "orchestrator.compose",
    "orchestrator.reports.general",
    "rich.progress",
    *spare.PRELOADED,
)
_lock = threading.Lock()


def fits(env: Mapping[str, str]) -> bool:
    """Whether a command with this environment can be run so."""
    ours, given = spare.of_python(_ENV), spare.of_python(env)
    ours.pop("PYTHONPATH", None)
    return given.pop("PYTHONPATH", None) in _PYTHONPATHS and given == ours


def run(words: Sequence[str], folder: Path, env: Mapping[str, str], timeout_s: float) -> tuple[int, str, str]:
    """Run ``sweep WORDS``; return its exit code and what it and its children wrote to both streams.

    As with pipes to any command, the output ends when no process holds the streams any more.
    """
    line, theirs = socket.socketpair()
    pipes = [os.pipe(), os.pipe()]
    umask = os.umask(0o022)
    os.umask(umask)
    order = json.dumps({"words": [*words], "folder": str(folder), "env": dict(env), "umask": umask}).encode()
    with line:
        with theirs, _lock:
            server = _server(env.get("PYTHONPATH"))
            given = [theirs.fileno(), *(end for _, end in pipes)]
            socket.send_fds(server, [len(order).to_bytes(8, "big")], given)
            server.sendall(order)
        for _, end in pipes:
            os.close(end)
        try:
            out, err = _read([end for end, _ in pipes], time.monotonic() + timeout_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(_number(line), signal.SIGKILL)
            raise subprocess.TimeoutExpired([*words], timeout_s) from None
        finally:
            for end, _ in pipes:
                os.close(end)
        _number(line)  # its process id
        return _number(line), out, err


def _read(ends: list[int], deadline_s: float) -> list[str]:
    """Read pipes to their ends."""
    found = {end: bytearray() for end in ends}
    with selectors.DefaultSelector() as selector:
        for end in ends:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(deadline_s - time.monotonic())
            if not ready and time.monotonic() > deadline_s:
                raise TimeoutError
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                found[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
    return [text.decode().replace("\r\n", "\n").replace("\r", "\n") for text in found.values()]


def _number(line: socket.socket) -> int:
    data = line.recv(4, socket.MSG_WAITALL)
    assert len(data) == 4, "the process that forks has ended"
    return int.from_bytes(data, "big", signed=True)


def _as_bytes(number: int) -> bytes:
    return number.to_bytes(4, "big", signed=True)


@cache
def _server(python_path: str | None) -> socket.socket:
    """The connection to the process that forks, with this import path; it ends with this process."""
    ours, theirs = socket.socketpair()
    env = {key: value for key, value in _ENV.items() if key != "PYTHONPATH"}
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
            cwd=_ROOT,
            env=env if python_path is None else env | {"PYTHONPATH": python_path},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return ours


def _serve(line: socket.socket) -> None:
    """Fork a process for each order; return in the forked ones, whose streams and folder are set."""
    selector = selectors.DefaultSelector()
    selector.register(line, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data is not None:  # a child has ended
                child, answer = key.data
                selector.unregister(key.fd)
                os.close(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                with contextlib.suppress(BrokenPipeError):  # its test has given up
                    answer.sendall(_as_bytes(code))
                answer.close()
                continue
            data, files, _, _ = socket.recv_fds(line, 8, 3)
            if not data:
                os._exit(0)
            order = json.loads(line.recv(int.from_bytes(data, "big"), socket.MSG_WAITALL))
            answer = socket.socket(fileno=files[0])
            child = os.fork()
            if child == 0:
                _become(order, files[1:])
                selector.close()
                line.close()
                answer.detach()
                os.close(files[0])
                if spare.STARTERS.intersection(order["words"][:3]):
                    spare.fork()
                return
            for file in files[1:]:
                os.close(file)
            answer.sendall(_as_bytes(child))
            selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, answer))


def _become(order: dict[str, Any], streams: list[int]) -> None:
    """Make this process what ``python -m orchestrator WORDS`` begins as."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout = sys.__stdout__ = _stream(sys.stdout, 1, line_buffering=False)
    sys.stderr = sys.__stderr__ = _stream(sys.stderr, 2, line_buffering=True)
    os.umask(order["umask"])
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = ["orchestrator", *order["words"]]
    sys.path[0] = order["folder"]
    # what a fork server that the command starts imports as its main module
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("orchestrator.__main__")


def _stream(old: Any, number: int, *, line_buffering: bool) -> Any:
    """A stream as Python opens it; the one of the process that forks does not know that this is a pipe."""
    return open(
        number,
        "w",
        encoding=old.encoding,
        errors=old.errors,
        closefd=False,
        buffering=1 if line_buffering else -1,
    )


if __name__ == "__main__":
    from orchestrator.cli.main import VERBS, verb_of
    from orchestrator.compose.root import Root
    from orchestrator.formats import inspect_records
    from orchestrator.store.checkout import Checkout

    for name in _PRELOADED:
        importlib.import_module(name)
    for verb in VERBS:
        verb_of(verb)
    Root("engine", [_ROOT / "conf"]).compose([])  # Hydra imports its plugins when it is first used
    Checkout({}, ()).digest()  # the files of the package, which each launch reads
    inspect_records()
    gc.freeze()  # memory that is not touched is not copied
    _serve(socket.socket(fileno=int(sys.argv[1])))
    from orchestrator.cli.main import main

    code = main()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
