"""Commands and workers of a test in processes that are forked with the imports done.

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
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from tests import spare

_ROOT = Path(__file__).parents[1]
_ENV = dict(os.environ)
_PYTHONPATHS = {_ENV.get("PYTHONPATH"), str(_ROOT)}
_PRELOADED = (
    "email.parser",
    "importlib.metadata",
    "multiprocessing.popen_forkserver",
    "orchestrator.execution.child",
    "orchestrator.compose",
    "orchestrator.reports.general",
    "orchestrator.store.bucket",
    "rich.progress",
    "tests.execution.faults",
    "tests.execution.stages",
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
    pipes = [os.pipe(), os.pipe()]
    process = Started("orchestrator", words, folder=folder, env=env, streams=[end for _, end in pipes])
    for _, end in pipes:
        os.close(end)
    try:
        out, err = _read([end for end, _ in pipes], time.monotonic() + timeout_s)
    except TimeoutError:
        process.kill()
        raise subprocess.TimeoutExpired([*words], timeout_s) from None
    finally:
        for end, _ in pipes:
            os.close(end)
    return process.wait(), out, err


class Started:
    """A process of ``python -m MODULE WORDS``, forked with the imports done; used as `subprocess.Popen`.

    Args:
        module: what it runs; such as ``orchestrator``.
        words: its arguments.
        folder: its working folder.
        env: its environment, which `fits`.
        streams: its standard output and standard error; by default nowhere.
        leads: whether it leads a process group of its own.
    """

    def __init__(
        self,
        module: str,
        words: Sequence[str],
        *,
        folder: Path = _ROOT,
        env: Mapping[str, str] | None = None,
        streams: Sequence[int] | None = None,
        leads: bool = False,
    ) -> None:
        self._line, theirs = socket.socketpair()
        self.args, self.returncode = [module, *words], None
        env = os.environ if env is None else env
        umask = os.umask(0o022)
        os.umask(umask)
        order = {"module": module, "words": [*words], "folder": str(folder), "env": dict(env), "umask": umask}
        ignored = [int(each) for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN]
        data = json.dumps({**order, "leads": leads, "ignored": ignored}).encode()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with theirs, _lock:
            server = _server(env.get("PYTHONPATH"))
            given = [theirs.fileno(), *(streams or [nowhere, nowhere])]
            socket.send_fds(server, [len(data).to_bytes(8, "big")], given)
            server.sendall(data)
        os.close(nowhere)
        self.pid = _number(self._line)

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self.returncode = _number(self._line)
            self._line.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit code."""
        if self.returncode is None and not select.select([self._line], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)


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


def serve(line: socket.socket) -> NoReturn:
    """Fork a process for each order."""
    code = 1
    try:
        _serve(line)
        main = sys.modules["__main__"]
        exec(main.__spec__.loader.get_code(main.__spec__.name), vars(main))  # noqa: S102 - as Python does
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _serve(line: socket.socket) -> None:
    """Fork a process for each order; return in the forked ones, which are then what they are to run."""
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
                if spare.STARTERS.intersection([order["module"], *order["words"][:3]]):
                    spare.fork()
                return
            for file in files[1:]:
                os.close(file)
            if order["leads"]:
                os.setpgid(child, child)
            answer.sendall(_as_bytes(child))
            selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, answer))


def _become(order: dict[str, Any], streams: list[int]) -> None:
    """Make this process what ``python -m MODULE WORDS`` begins as."""
    if order["leads"]:
        os.setpgid(0, 0)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout = sys.__stdout__ = _stream(sys.stdout, 1, line_buffering=False)
    sys.stderr = sys.__stderr__ = _stream(sys.stderr, 2, line_buffering=True)
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.umask(order["umask"])
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[0] = order["folder"]
    module = order["module"]
    spec = importlib.util.find_spec("orchestrator.__main__" if module == "orchestrator" else module)
    sys.argv = [spec.origin, *order["words"]]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__spec__, main.__file__ = spec, spec.origin


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
    from orchestrator.compose.main import compose
    from orchestrator.core.exits import cause_of_exit
    from orchestrator.formats import inspect_records
    from orchestrator.store.checkout import Checkout

    for name in _PRELOADED:
        importlib.import_module(name)
    for verb in VERBS:
        verb_of(verb)
    # Hydra imports its plugins when it is first used, and its parser learns the grammar as it goes.
    words = ["seed=range(0,3)", "size=small,large", "count.step_s=choice(0.1,0.2)", "launcher.workers=2"]
    compose("count", [*words, "policy.limits_s={count: 9}", "policy.retries.code=1"])
    Checkout({}, ()).digest()  # the files of the package, which each launch reads
    inspect_records()
    cause_of_exit(1, "error: that compiles the tables of causes", oom_killed=False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the test that comes first may ignore it
    gc.freeze()  # memory that is not touched is not copied
    serve(socket.socket(fileno=int(sys.argv[1])))
