"""Run a stage's function in several processes of one machine or of a Slurm job, through ``torchrun``.

The function has the form of a stage, ``function(config, inputs, context)``. The same function runs either
alone in the stage's process, or here once per rank. A rank gets a `RankContext` in place of the stage's
`Context`. Processes start and communicate like this::

    stage's process --(Popen, or srun to each node)--> launcher (torchrun) --> rank 0, rank 1, ...
    stage's process --(fork, see `Spare`)------------> launcher -------------> rank 0, rank 1, ...
          ^------- one socket per launcher and per rank: log, done, raised, exits, ... -------'

No process outlives the stage. Each one has the kernel kill it when its parent dies. A launcher on another
node ends when the connection to the stage's process closes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from orchestrator.errors import StageFailure
from orchestrator.sft.distributed import nodes
from orchestrator.sft.distributed.context import ContextCalls, Order, as_exception
from orchestrator.sft.distributed.nodes import PATIENCE_S, RankEnds
from orchestrator.sft.distributed.worker import LAUNCHER, SENT_TO_ALL, close_all_but, launch_forked
from orchestrator.stage import Config, Context, Inputs


def run(
    target: str,
    config: Config,
    inputs: Inputs,
    context: Context,
    *,
    num_processes: int,
    device: str,
    spare: Spare | None = None,
) -> Any:
    """Call ``target(config, inputs, context)`` in `num_processes` processes.

    In a Slurm job of several nodes the processes are spread evenly over all nodes.

    Args:
        target: ``module:function``; all ranks must make the same calls on their context.
        config, inputs, context: of the stage.
        num_processes: number of processes in total; on GPUs, one per GPU.
        device: ``cpu`` or ``cuda``. Each rank's process group and current device are set before the call.
        spare: becomes the launcher, on one machine; None to start one by ``torchrun``, which takes seconds.

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
    group = _Group(order, context, num_processes, num_nodes, spare)
    with context.phase("start"), contextlib.closing(group):
        return group.serve()


class _Group:
    """The launchers and ranks of one call, their messages, and the server that answers their requests."""

    def __init__(
        self, order: Order, context: Context, num_processes: int, num_nodes: int, spare: Spare | None
    ) -> None:
        self._order = order
        self._context = context
        self._num_processes = num_processes
        self._num_nodes = num_nodes
        self._pipes: dict[Connection, int | None] = {}
        self._ends = RankEnds(num_processes, num_nodes)
        self._calls = ContextCalls(context, num_processes)
        self._endpoint = ""
        self._is_complete = False
        self._meeting = nodes.Meeting(num_nodes, num_processes + num_nodes)
        self._process = self._start(spare)

    def _start(self, spare: Spare | None) -> subprocess.Popen[bytes] | Spare:
        """Start torchrun here, or one torchrun on each node through ``srun``; or have a spare start ranks."""
        per_node = self._num_processes // self._num_nodes
        module = (sys.executable, "-m", "orchestrator.sft.distributed.worker")
        command = [*module, "launch", str(per_node), str(self._num_nodes)]
        inherited = nodes.environment(os.environ)
        if self._num_nodes > 1:
            command = [
                sys.executable,
                "-m",
                "orchestrator.sft.distributed.nodes",
                *nodes.srun(self._num_nodes, command),
            ]
            # `srun` needs the job's variables. The launchers remove them before they start ranks.
            inherited = {**os.environ, **nodes.imports()}
        mine = {"OMP_NUM_THREADS": str(self._order.num_threads), nodes.PARENT: str(os.getpid())}
        if self._num_nodes == 1 and spare is not None and spare.poll() is None:
            spare.launch(self._num_processes, {**inherited, **self._meeting.environment, **mine})
            return spare
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
        end_s = time.monotonic() + PATIENCE_S
        # The kernel closes a rank's pipe when the rank ends, so a closed pipe proves the end.
        while self._pipes and time.monotonic() < end_s:
            self._take(timeout_s=0.2, answer=False)
        self._meeting.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)
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


class Spare:
    """A process that is forked early, and starts ranks on this machine once they are needed.

    It and its ranks have the modules of the process that it was forked from, so they import nothing again.
    A process that was forked after tensor operations or after a GPU was opened may hang. So it must be
    forked before, and there is none in a process with threads that Python did not start.
    """

    def __init__(self) -> None:
        self._code: int | None = None
        parent, tasks = os.getpid(), Path("/proc/self/task")
        self._writer = self._pid = -1
        if not tasks.is_dir() or len(list(tasks.iterdir())) > threading.active_count():
            self._code = 1
            return
        reader, self._writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with _stops_blocked():
            self._pid = os.fork()
        if self._pid == 0:
            _serve_as_spare(reader, parent)
        os.close(reader)

    def launch(self, num_processes: int, environment: dict[str, str]) -> None:
        """Have it start ranks.

        Args:
            num_processes: number of ranks.
            environment: of the ranks, without what is a rank's own.
        """
        with os.fdopen(self._writer, "wb") as stream:
            stream.write(json.dumps([num_processes, environment]).encode() + b"\n")
        self._writer = -1

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until it has ended, and return its exit code.

        Raises:
            TimeoutExpired: it runs longer than the time.
        """
        end_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > end_s:
                raise subprocess.TimeoutExpired("ranks", timeout_s or 0.0)
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        """Kill it, and its ranks with it."""
        if self.poll() is None:
            os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, whether it has started ranks or not."""
        self.kill()
        self.wait()
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


def _serve_as_spare(reader: int, parent: int) -> None:
    """Wait for the order of a `Spare`, and start ranks as ``torchrun`` does. It never returns."""
    code = 1
    try:
        nodes.die_with(parent)
        close_all_but(reader)  # held open, connections of the stage's process would hide its end
        with os.fdopen(reader, "rb") as stream:
            order = stream.readline()  # not to its end: processes that were forked since hold it open too
        if order:
            num_processes, environment = json.loads(order)
            os.environ.clear()
            os.environ.update(environment)
            code = launch_forked(num_processes)
        else:
            code = 0
    except BaseException:  # noqa: BLE001 - the last frame of the process
        traceback.print_exc()
    finally:
        os._exit(code)
