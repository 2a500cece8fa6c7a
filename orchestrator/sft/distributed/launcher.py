"""Run a stage's function in several processes of one machine or of a Slurm job, through ``torchrun``.

The function has the form of a stage, ``function(config, inputs, context)``. The same function runs either
alone in the stage's process, or here once per rank. A rank gets a `RankContext` in place of the stage's
`Context`. Processes start and communicate like this::

    stage's process --(Popen, or srun to each node)--> launcher (torchrun) --> rank 0, rank 1, ...
          ^------- one socket per launcher and per rank: log, done, raised, exits, ... -------'

No process outlives the stage. Each one has the kernel kill it when its parent dies. A launcher on another
node ends when the connection to the stage's process closes.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.sft.distributed import nodes
from orchestrator.sft.distributed.context import ContextCalls, Order, as_exception
from orchestrator.sft.distributed.worker import ENDED, LAUNCHER, SENT_TO_ALL
from orchestrator.stage import Config, Context, Inputs

_PATIENCE_S, _NEIGHBOURS_S, _SILENT_S = 10.0, 0.5, 60.0
"""Waiting times after the first failure, in seconds.

`_PATIENCE_S` is the time for all processes to end. `_NEIGHBOURS_S` replaces it in a job of several nodes as
soon as a node has reported its ranks' exits. `_SILENT_S` replaces both while a rank has ended without a
message and its node has not yet reported how.
"""
_SECONDARY = (ENDED, -signal.SIGTERM)
"""Exit codes of ranks that ended because another rank failed."""

_EITHER = (-signal.SIGABRT,)
"""Exit codes of ranks that failed by themselves, or because another rank did: NCCL aborts in both cases."""

_LOST = re.compile(r"/gloo/transport/|\bNCCL\b|Connection (reset|closed) by peer")
"""Words of an error that follows from the loss of another rank; torch raises it as a `RuntimeError`."""


def run(
    target: str, config: Config, inputs: Inputs, context: Context, *, num_processes: int, device: str
) -> Any:
    """Call ``target(config, inputs, context)`` in `num_processes` processes.

    In a Slurm job of several nodes the processes are spread evenly over all nodes.

    Args:
        target: ``module:function``; all ranks must make the same calls on their context.
        config, inputs, context: of the stage.
        num_processes: number of processes in total; on GPUs, one per GPU.
        device: ``cpu`` or ``cuda``. Each rank's process group and current device are set before the call.

    Returns:
        What rank 0 returned; it must be picklable.

    Raises:
        StopRequested: a stop was requested, and the function ended because of it.
        StageFailure: a rank raised one, or died; or the processes cannot be spread evenly over the nodes.
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
    with context.phase("start"), contextlib.closing(group):
        return group.serve()


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of ranks on this machine, without the variables of a surrounding job.

    Otherwise torchrun would take over settings that were made for another launcher, such as ``MASTER_ADDR``.
    """
    # On one machine gloo would otherwise resolve the host name, which need not have an address.
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {**loopback, **nodes.without_job(inherited), **_imports()}


def _imports() -> dict[str, str]:
    """Return the variables that give a new interpreter the import paths of this one."""
    here = str(Path.cwd())
    paths = [path or here for path in sys.path]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


class _Group:
    """The launchers and ranks of one call, their messages, and the server that answers their requests."""

    def __init__(self, order: Order, context: Context, num_processes: int, num_nodes: int) -> None:
        self._order = order
        self._context = context
        self._num_processes = num_processes
        self._num_nodes = num_nodes
        self._pipes: dict[Connection, int | None] = {}
        self._ends = _Ends(num_processes, num_nodes)
        self._calls = ContextCalls(context, num_processes)
        self._endpoint = ""
        self._is_complete = False
        self._meeting = nodes.Meeting(num_nodes, num_processes + num_nodes)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start torchrun here, or one torchrun on each node through ``srun``."""
        per_node = self._num_processes // self._num_nodes
        module = (sys.executable, "-m", "orchestrator.sft.distributed.worker")
        command = [*module, "launch", str(per_node), str(self._num_nodes)]
        inherited = environment(os.environ)
        if self._num_nodes > 1:
            command = [
                sys.executable,
                "-m",
                "orchestrator.sft.distributed.nodes",
                *nodes.srun(self._num_nodes, command),
            ]
            # `srun` needs the job's variables. The launchers remove them before they start ranks.
            inherited = {**os.environ, **_imports()}
        mine = {"OMP_NUM_THREADS": str(self._order.num_threads), nodes.PARENT: str(os.getpid())}
        with _stops_blocked():
            return subprocess.Popen(
                command, env={**inherited, **self._meeting.environment, **mine}, stdin=subprocess.DEVNULL
            )

    def serve(self) -> Any:
        """Answer messages until all processes have ended. Return rank 0's result."""
        while self._process.poll() is None or self._pipes:
            self._take(timeout_s=0.01 if self._calls.is_finishing else 0.2)
            self._calls.answer_finished()
            if self._is_complete and list(self._pipes.values()) == [LAUNCHER]:
                # Only node 0's launcher is left. It holds torchrun's rendezvous store, and may end after all
                # others.
                nodes.hang_up(next(iter(self._pipes)))
            if self._ends.is_overdue(has_launcher=self._has_launcher):
                break  # a rank hangs in a collective operation: `close` ends it
            if self._num_nodes > 1 and self._ends.are_all_done and not self._pipes:
                break  # only `srun` is left, which may wait for its controller
        if self._ends.are_all_done and not self._ends.raised:
            return self._ends.done[0]
        raise self._ends.error(self._calls, has_launcher=self._has_launcher)

    @property
    def _has_launcher(self) -> bool:
        return LAUNCHER in self._pipes.values()

    def close(self) -> None:
        """End what still runs, wait until it is gone, and discard a half-saved checkpoint.

        On one machine, killing torchrun is enough: the kernel then kills the ranks. On several nodes the
        launchers get an end of file, on which they kill their ranks. `srun` is killed last, if it does not
        end by itself.
        """
        if self._process.poll() is None and self._num_nodes == 1:
            self._process.kill()
        for pipe, rank in self._pipes.items():
            if rank == LAUNCHER:
                nodes.hang_up(pipe)
        end_s = time.monotonic() + _PATIENCE_S
        # The kernel closes a rank's pipe when the rank ends, so a closed pipe proves the end.
        while self._pipes and time.monotonic() < end_s:
            self._take(timeout_s=0.2, answer=False)
        self._meeting.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)
        self._process.kill()  # `srun` has a helper, which then ends the job step
        self._process.wait()
        self._calls.abandon()

    def _take(self, *, timeout_s: float, answer: bool = True) -> None:
        """Accept connections and process messages that arrive within a time.

        Args:
            timeout_s: how long to wait for the first of them.
            answer: process the messages; otherwise only note which pipes closed.
        """
        server = self._meeting.server
        listening = [server] if server.fileno() >= 0 else []
        for ready in wait([*self._pipes, *listening], timeout=timeout_s):
            if ready is server:
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
                self._receive(ready, message)

    def _lose(self, pipe: Connection) -> None:
        """Close a pipe whose other end is gone, and note whether a rank ended without a result."""
        pipe.close()
        rank = self._pipes.pop(pipe)
        if rank != LAUNCHER:
            self._ends.lose(rank)

    def _receive(self, pipe: Connection, message: Any) -> None:
        """Process one message of a rank or launcher."""
        rank = self._pipes[pipe]
        if rank is None:
            self._admit(pipe, message)
            return
        verb, *arguments = message
        if verb == "log":
            step, num_steps, metrics = arguments
            self._context.log(step, num_steps=num_steps, **metrics)
        elif verb == "done":
            self._ends.done[rank] = arguments[0]
        elif verb == "raised":
            self._ends.raised[rank] = as_exception(arguments[0])
        elif verb == "written":
            self._calls.later.take(*arguments)
        elif verb == "phase":
            self._context.clock.enter(*arguments)
        elif verb == "expect_save":
            self._context.expect_save(*arguments)
        elif verb == "finish_checkpoint":
            self._calls.answer_when_saved(pipe)
        elif verb == "exits":
            exits, is_out_of_memory = arguments
            self._ends.exits += [(failed, code, is_out_of_memory) for failed, code in exits]
        elif verb == "endpoint":
            self._endpoint = arguments[0]
            for launcher in [guest for guest, name in self._pipes.items() if name == LAUNCHER]:
                with contextlib.suppress(OSError):  # it died while it waited
                    launcher.send(self._endpoint)
        elif verb == "stop":
            # After a failure `srun` sent it, to end the other nodes.
            if not self._ends.is_failed and callable(signal.getsignal(signal.SIGTERM)):
                # The scheduler sent it to the launchers' job step alone. Here it requests a stop.
                signal.raise_signal(signal.SIGTERM)
        else:
            self._calls.answer(pipe, verb, *arguments)

    def _admit(self, pipe: Connection, rank: int) -> None:
        """Send the order to a new rank, or the known endpoint to a new launcher."""
        self._pipes[pipe] = rank
        if rank != LAUNCHER:
            pipe.send(self._order)
        elif self._endpoint:
            pipe.send(self._endpoint)
        complete = self._num_processes + self._num_nodes
        if len(self._pipes) == complete and None not in self._pipes.values():
            self._is_complete = True
            self._meeting.close()


class _Ends:
    """How the ranks of a group ended, and which of the failures was the first cause.

    Args:
        num_processes, num_nodes: of the group.

    Attributes:
        done: what each rank returned.
        raised: the exception of each rank that raised one. In order of arrival: the first is closest to the
            cause.
        exits: rank, exit code and whether the kernel was out of memory, as launchers report them.
    """

    def __init__(self, num_processes: int, num_nodes: int) -> None:
        self._num_processes = num_processes
        self._num_nodes = num_nodes
        self.done: dict[int, Any] = {}
        self.raised: dict[int, BaseException] = {}
        self.exits: list[tuple[int, int, bool]] = []
        self._silent: list[int] = []  # ended without a message, in that order
        self._failed_s: float | None = None

    @property
    def are_all_done(self) -> bool:
        """Whether every rank returned."""
        return len(self.done) == self._num_processes

    @property
    def is_failed(self) -> bool:
        """Whether a rank ended without a result."""
        return self._failed_s is not None

    def lose(self, rank: int | None) -> None:
        """Note that a rank's connection closed. None is a process that had not yet named its rank."""
        if rank in self.done:
            return
        self._failed_s = self._failed_s or time.monotonic()
        if rank is not None and rank not in self.raised:
            self._silent.append(rank)

    def is_overdue(self, *, has_launcher: bool) -> bool:
        """Return whether the processes that are left have had their time to end after the first failure.

        Args:
            has_launcher: whether a launcher is still connected.
        """
        # A cause is reported, so the other nodes need not be waited for: Slurm ends them slowly.
        is_known = self._num_nodes > 1 and self.exits
        patience_s = _NEIGHBOURS_S if is_known else _PATIENCE_S
        patience_s = _SILENT_S if self._unexplained(has_launcher) else patience_s
        return self._failed_s is not None and time.monotonic() - self._failed_s > patience_s

    def _unexplained(self, has_launcher: bool) -> list[int]:
        """Return the ranks that ended without a message, on nodes whose launcher has not reported how.

        Errors of other ranks, such as a reset connection, only follow from such an end. So they are not the
        cause.
        """
        per_node = self._num_processes // self._num_nodes
        reported = {rank // per_node for rank, _, _ in self.exits}
        return [rank for rank in self._silent if rank // per_node not in reported] if has_launcher else []

    def error(self, calls: ContextCalls, *, has_launcher: bool) -> BaseException:
        """Return the most likely first cause of a failure.

        One rank's end makes its peers fail too, often earlier in the order of messages. So a peer's
        "connection reset" must not hide the rank that the kernel killed. In order of preference:

        1. a `StageFailure` that a rank raised, since it names a cause;
        2. on several nodes, a requested stop, on which `srun` kills all ranks;
        3. the exit of a rank that raised nothing, other than those that a launcher ended;
        4. a rank that ended without a message or a report;
        5. a rank that aborted, if all that its peers raised is a lost connection;
        6. the first exception that a rank raised.

        Args:
            calls: of the context, which knows whether a stop was requested.
            has_launcher: whether a launcher is still connected.
        """
        for error in self.raised.values():
            if isinstance(error, StageFailure):
                return error
        if self._num_nodes > 1 and not self.raised and calls.stop_asked:
            return StopRequested(calls.why_stop())  # on SIGTERM `srun` kills all ranks
        if (exited := self._exit(lambda code: code not in (*_SECONDARY, *_EITHER))) is not None:
            return exited
        if unexplained := self._unexplained(has_launcher):
            return StageFailure("unknown", f"rank {unexplained[0]} ended without a word")
        aborted = self._exit(lambda code: code in _EITHER)
        if aborted is not None and all(map(_is_lost_connection, self.raised.values())):
            return aborted
        if self.raised:
            return next(iter(self.raised.values()))
        return StageFailure(
            "communication", f"torchrun did not bring {self._num_processes} processes to an end"
        )

    def _exit(self, is_wanted: Callable[[int], bool]) -> StageFailure | None:
        """Return the first exit of a rank that raised nothing, with such an exit code; None without one."""
        for rank, code, is_out_of_memory in self.exits:  # in the order of failure
            if rank not in self.raised and is_wanted(code):
                cause = "oom_host" if is_out_of_memory and code == -signal.SIGKILL else "unknown"
                how = (
                    f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
                )
                return StageFailure(cause, f"rank {rank} {how}")
        return None


def _is_lost_connection(error: BaseException) -> bool:
    """Return whether a rank raised only that it lost another one."""
    is_of_torch = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return is_of_torch or isinstance(error, ConnectionError) or bool(_LOST.search(str(error)))


@contextmanager
def _stops_blocked() -> Iterator[None]:
    """Start processes with the signals in `SENT_TO_ALL` blocked.

    A new process inherits the signal mask. So there is no moment in its start at which such a signal ends it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
