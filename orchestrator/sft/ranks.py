"""Runs a stage's function in several processes of this machine, through ``torchrun``.

The function is written like a stage, ``function(config, inputs, context)``: the same one runs alone in the
stage's process, or here once a rank, with a `RankContext` that stands for the stage's `Context`. No process
outlives the stage: each asks the kernel to be killed when its parent is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.sft.rank import ENDED, LAUNCHER, PARENT, SENT_TO_ALL, SOCKET, Order, as_bytes, as_exception
from orchestrator.stage import Config, Context, Inputs

_PATIENCE_S = 10.0
_SECONDARY = (ENDED, -signal.SIGTERM, -signal.SIGABRT)
"""How ranks end because another one failed."""
_FOREIGN = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "TORCHELASTIC_", "PET_", "MASTER_", "ACCELERATE_")
_FOREIGN_NAMES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "NODE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "OMP_NUM_THREADS"),
}


def run(
    target: str, config: Config, inputs: Inputs, context: Context, *, num_processes: int, device: str
) -> Any:
    """Calls ``target(config, inputs, context)`` in `num_processes` processes.

    Args:
        target: ``module:function``; all ranks must make the same calls on their context.
        config, inputs, context: of the stage.
        num_processes: how many; on GPUs one each.
        device: ``cpu`` or ``cuda``: each rank's process group and current device are set before the call.

    Returns:
        What rank 0 returned; it must be picklable.

    Raises:
        StopRequested: a stop was asked, and the function heeded it.
        StageFailure: a rank raised one, or died.
        BaseException: what the first rank to fail raised.
    """
    order = Order(
        target=target,
        config=config,
        inputs=inputs,
        device=device,
        folder=context.folder.absolute(),
        uses=context.uses,
        resume=context.resume,
        attempt=context.attempt,
        num_threads=max(1, context.num_threads // num_processes),
    )
    group = _Group(order, context, num_processes)
    try:
        return group.serve()
    finally:
        group.close()


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Returns what ranks inherit: nothing of the job around us that torchrun would take for its own."""
    kept = {
        name: value
        for name, value in inherited.items()
        if name not in _FOREIGN_NAMES and not name.startswith(_FOREIGN)
    }
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    here = str(Path.cwd())
    paths = [path or here for path in sys.path]
    return {**loopback, **kept, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


class _Group:
    """The launcher, its ranks and what they said; answers their questions to the context."""

    def __init__(self, order: Order, context: Context, num_processes: int) -> None:
        self._order, self._context, self._num_processes = order, context, num_processes
        self._pipes: dict[Connection, int | None] = {}
        self._done: dict[int, Any] = {}
        self._raised: dict[int, BaseException] = {}  # in the order in which they came
        self._exits: list[tuple[int, int]] = []
        self._saving = ExitStack()
        self._failed_s: float | None = None
        self._oom_kills = _oom_kills()
        self._folder = Path(tempfile.mkdtemp(prefix="sweep-", dir=_short_folder()))  # mode 0700
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self._folder / "s"))
        self._server.listen(num_processes + 1)
        with _deaf():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.sft.rank", "launch", str(num_processes)],
                env={
                    **environment(os.environ),
                    "OMP_NUM_THREADS": str(order.num_threads),
                    SOCKET: str(self._folder / "s"),
                    PARENT: str(os.getpid()),
                },
                stdin=subprocess.DEVNULL,
            )

    def serve(self) -> Any:
        """Answers until all processes have ended; returns rank 0's result."""
        while self._process.poll() is None or self._pipes:
            self._take(timeout_s=0.2)
            if self._failed_s is not None and time.monotonic() - self._failed_s > _PATIENCE_S:
                break  # a rank that hangs in a collective: `close` ends it
        if len(self._done) == self._num_processes and not self._raised:
            return self._done[0]
        raise self._error()

    def close(self) -> None:
        """Ends what still runs and waits until it is gone; a half-saved checkpoint goes too."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        end_s = time.monotonic() + _PATIENCE_S
        while self._pipes and time.monotonic() < end_s:  # a rank's pipe closes with its end
            self._take(timeout_s=0.2, answer=False)
        self._stop_listening()
        with contextlib.suppress(_Abandoned):
            self._saving.__exit__(_Abandoned, _Abandoned(), None)

    def _take(self, *, timeout_s: float, answer: bool = True) -> None:
        listening = [self._server] if self._server.fileno() >= 0 else []
        for ready in wait([*self._pipes, *listening], timeout=timeout_s):
            if ready is self._server:
                self._pipes[Connection(self._server.accept()[0].detach())] = None
                continue
            assert isinstance(ready, Connection)
            try:
                message = ready.recv()
            except (EOFError, OSError):
                self._lose(ready)
                continue
            if answer:
                self._heed(ready, message)

    def _lose(self, pipe: Connection) -> None:
        pipe.close()
        rank = self._pipes.pop(pipe)
        if rank is None or (rank != LAUNCHER and rank not in self._done):
            self._failed_s = self._failed_s or time.monotonic()

    def _heed(self, pipe: Connection, message: Any) -> None:
        rank = self._pipes[pipe]
        if rank is None:  # its first word is who it is
            self._pipes[pipe] = message
            if message != LAUNCHER:
                pipe.send(self._order)
            if len(self._pipes) == self._num_processes + 1 and None not in self._pipes.values():
                self._stop_listening()
            return
        verb, *arguments = message
        if verb == "log":
            step, num_steps, metrics = arguments
            self._context.log(step, num_steps=num_steps, **metrics)
        elif verb == "done":
            self._done[rank] = arguments[0]
        elif verb == "raised":
            self._raised[rank] = as_exception(arguments[0])
        elif verb == "exits":
            self._exits = arguments[0]
        else:
            with contextlib.suppress(OSError):  # it died while it waited
                pipe.send(self._answer(verb, arguments))

    def _answer(self, verb: str, arguments: list[Any]) -> tuple[Any, bytes | None]:
        try:
            return getattr(self, f"_{verb}")(*arguments), None
        except BaseException as error:  # noqa: BLE001 - the ranks raise it, and so it comes back to us
            return None, as_bytes(error)

    def _why_stop(self) -> str:
        try:
            self._context.stop_if_asked()
        except StopRequested as stopped:
            return stopped.why or "stopped"
        return ""

    def _checkpoint_due(self, step: int) -> bool:
        return self._context.checkpoint_due(step)

    def _open_checkpoint(self, step: int) -> str:
        return str(self._saving.enter_context(self._context.checkpoint(step)).absolute())

    def _commit_checkpoint(self) -> None:
        self._saving.close()

    def _stop_listening(self) -> None:
        self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _error(self) -> BaseException:
        """Finds the first cause: peers of a rank that died only say that a connection broke."""
        for error in self._raised.values():
            if isinstance(error, StageFailure):
                return error
        for rank, code in self._exits:  # those that failed first come first
            if rank not in self._raised and code not in _SECONDARY:
                killed = code == -signal.SIGKILL and _oom_kills() > self._oom_kills
                how = (
                    f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
                )
                return StageFailure("oom_host" if killed else "unknown", f"rank {rank} {how}")
        if self._raised:
            return next(iter(self._raised.values()))
        return StageFailure(
            "communication", f"torchrun did not bring {self._num_processes} processes to an end"
        )


class _Abandoned(Exception):
    """Leaves a checkpoint that will not be finished."""


@contextmanager
def _deaf() -> Iterator[None]:
    """Has a process that is started here not heed `SENT_TO_ALL` from its first moment on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _short_folder() -> str:
    """Where a socket may lie: its path has room for some hundred bytes only."""
    usual = tempfile.gettempdir()
    return usual if len(usual) < 60 else "/tmp"


def _oom_kills() -> int:
    """Returns how many processes the kernel's OOM killer ended on this machine since it started."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
