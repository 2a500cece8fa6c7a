"""Runs a stage's function in several processes of this machine or of a Slurm job's, through ``torchrun``.

The function is written like a stage, ``function(config, inputs, context)``: the same one runs alone in the
stage's process, or here once a rank, with a `RankContext` that stands for the stage's `Context`. No process
outlives the stage: each asks the kernel to be killed when its parent is, and on another node a launcher ends
when the stage's process no longer holds the line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.sft.distributed import nodes
from orchestrator.sft.distributed.worker import ENDED, LAUNCHER, SENT_TO_ALL, Order, as_bytes, as_exception
from orchestrator.stage import Config, Context, Inputs

_PATIENCE_S, _NEIGHBOURS_S, _SILENT_S = 10.0, 0.5, 60.0
"""How long we wait for the end of all after one has failed; when a node has reported how its ranks ended; and
while a rank has ended without a word whose node has not."""
_SECONDARY = (ENDED, -signal.SIGTERM, -signal.SIGABRT)
"""How ranks end because another one failed."""


def run(
    target: str, config: Config, inputs: Inputs, context: Context, *, num_processes: int, device: str
) -> Any:
    """Call ``target(config, inputs, context)`` in `num_processes` processes.

    Inside a Slurm job of several nodes they are spread evenly over all of them.

    Args:
        target: ``module:function``; all ranks must make the same calls on their context.
        config, inputs, context: of the stage.
        num_processes: how many in all; on GPUs one each.
        device: ``cpu`` or ``cuda``: each rank's process group and current device are set before the call.

    Returns:
        What rank 0 returned; it must be picklable.

    Raises:
        StopRequested: a stop was asked, and the function heeded it.
        StageFailure: a rank raised one, or died; or the number is no multiple of that of the nodes.
        BaseException: what the first rank to fail raised.
    """
    num_nodes = nodes.count()
    if num_processes % num_nodes:
        raise StageFailure(
            "config", f"{num_processes} processes cannot be spread evenly over {num_nodes} nodes"
        )
    order = Order(
        target=target,
        config=config,
        inputs=inputs,
        device=device,
        folder=context.folder.absolute(),
        uses=context.uses,
        resume=context.resume,
        former=context.former,
        attempt=context.attempt,
        num_threads=max(1, context.num_threads * num_nodes // num_processes),
    )
    group = _Group(order, context, num_processes, num_nodes)
    try:
        return group.serve()
    finally:
        group.close()


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return what ranks on this machine inherit: nothing of the job around us that torchrun would heed."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {**loopback, **nodes.without_job(inherited), **_imports()}


def _imports() -> dict[str, str]:
    here = str(Path.cwd())
    paths = [path or here for path in sys.path]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


class _Group:
    """The launchers, their ranks and what they said; answers their questions to the context."""

    def __init__(self, order: Order, context: Context, num_processes: int, num_nodes: int) -> None:
        self._order, self._context = order, context
        self._num_processes, self._num_nodes = num_processes, num_nodes
        self._pipes: dict[Connection, int | None] = {}
        self._done: dict[int, Any] = {}
        self._raised: dict[int, BaseException] = {}  # in the order in which they came
        self._exits: list[tuple[int, int, bool]] = []
        self._silent: list[int] = []  # ranks that ended without a word, in that order
        self._endpoint, self._is_complete = "", False
        self._saving = ExitStack()
        self._failed_s: float | None = None
        self._meeting = nodes.Meeting(num_nodes, num_processes + num_nodes)
        self._server = self._meeting.server
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        per_node = self._num_processes // self._num_nodes
        module = (sys.executable, "-m", "orchestrator.sft.distributed.worker")
        command = [*module, "launch", str(per_node), str(self._num_nodes)]
        inherited = environment(os.environ)
        if self._num_nodes > 1:  # `srun` needs what the ranks must not see: the launchers drop it
            command = [
                sys.executable,
                "-m",
                "orchestrator.sft.distributed.nodes",
                *nodes.srun(self._num_nodes, command),
            ]
            inherited = {**os.environ, **_imports()}
        mine = {"OMP_NUM_THREADS": str(self._order.num_threads), nodes.PARENT: str(os.getpid())}
        with _deaf():
            return subprocess.Popen(
                command, env={**inherited, **self._meeting.environment, **mine}, stdin=subprocess.DEVNULL
            )

    def serve(self) -> Any:
        """Answer until all processes have ended; returns rank 0's result."""
        while self._process.poll() is None or self._pipes:
            self._take(timeout_s=0.2)
            if self._is_complete and list(self._pipes.values()) == [LAUNCHER]:
                nodes.hang_up(next(iter(self._pipes)))  # the last to leave, for the others to meet at
            is_known = self._num_nodes > 1 and self._exits  # and Slurm would take its time to end the others
            patience_s = _NEIGHBOURS_S if is_known else _PATIENCE_S
            patience_s = _SILENT_S if self._unexplained else patience_s
            if self._failed_s is not None and time.monotonic() - self._failed_s > patience_s:
                break  # a rank that hangs in a collective: `close` ends it
            if self._num_nodes > 1 and len(self._done) == self._num_processes and not self._pipes:
                break  # what is left is `srun`, which may wait for its controller
        if len(self._done) == self._num_processes and not self._raised:
            return self._done[0]
        raise self._error()

    def close(self) -> None:
        """End what still runs and waits until it is gone; a half-saved checkpoint goes too."""
        if self._process.poll() is None and self._num_nodes == 1:
            self._process.kill()
        for pipe, rank in self._pipes.items():
            if rank == LAUNCHER:
                nodes.hang_up(pipe)
        end_s = time.monotonic() + _PATIENCE_S
        while self._pipes and time.monotonic() < end_s:  # a rank's pipe closes with its end
            self._take(timeout_s=0.2, answer=False)
        self._meeting.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)
        self._process.kill()  # an `srun` that is killed has a helper that ends the step
        self._process.wait()
        with contextlib.suppress(_Abandoned):
            self._saving.__exit__(_Abandoned, _Abandoned(), None)

    def _take(self, *, timeout_s: float, answer: bool = True) -> None:
        listening = [self._server] if self._server.fileno() >= 0 else []
        for ready in wait([*self._pipes, *listening], timeout=timeout_s):
            if ready is self._server:
                if (guest := self._meeting.accept()) is not None:
                    self._pipes[guest] = None
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
            if rank is not None and rank not in self._raised:
                self._silent.append(rank)

    @property
    def _unexplained(self) -> list[int]:
        """The ranks that ended without a word, of nodes whose launcher has not yet reported how.

        What their peers raise, such as a reset connection, only follows from it.
        """
        per_node = self._num_processes // self._num_nodes
        reported = {rank // per_node for rank, _, _ in self._exits}
        is_any_left = LAUNCHER in self._pipes.values()
        return [rank for rank in self._silent if rank // per_node not in reported] if is_any_left else []

    def _heed(self, pipe: Connection, message: Any) -> None:
        rank = self._pipes[pipe]
        if rank is None:  # its first word is who it is
            self._pipes[pipe] = message
            if message != LAUNCHER:
                pipe.send(self._order)
            elif self._endpoint:
                pipe.send(self._endpoint)
            complete = self._num_processes + self._num_nodes
            if len(self._pipes) == complete and None not in self._pipes.values():
                self._is_complete = True
                self._meeting.close()
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
            exits, is_out_of_memory = arguments
            self._exits += [(failed, code, is_out_of_memory) for failed, code in exits]
        elif verb == "endpoint":
            self._endpoint = arguments[0]
            for launcher in [guest for guest, name in self._pipes.items() if name == LAUNCHER]:
                with contextlib.suppress(OSError):  # it died while it waited
                    launcher.send(self._endpoint)
        elif verb == "stop":
            is_over = self._failed_s is not None  # then it is how `srun` ends what is left
            if not is_over and callable(signal.getsignal(signal.SIGTERM)):
                signal.raise_signal(signal.SIGTERM)  # it was sent to the launchers' step alone: hear it too
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

    def _error(self) -> BaseException:
        """Find the first cause: peers of a rank that died only say that a connection broke."""
        for error in self._raised.values():
            if isinstance(error, StageFailure):
                return error
        if self._num_nodes > 1 and not self._raised and self._context.stop_asked:
            return StopRequested(self._why_stop())  # `srun` takes SIGTERM for an order to kill all ranks
        for rank, code, is_out_of_memory in self._exits:  # those that failed first come first
            if rank not in self._raised and code not in _SECONDARY:
                cause = "oom_host" if is_out_of_memory and code == -signal.SIGKILL else "unknown"
                how = (
                    f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
                )
                return StageFailure(cause, f"rank {rank} {how}")
        if self._unexplained:
            return StageFailure("unknown", f"rank {self._unexplained[0]} ended without a word")
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
