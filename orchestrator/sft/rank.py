"""One process of several that run a stage together, as `orchestrator.sft.ranks` starts them.

`RankContext` is the stage's `Context` seen from such a process: the real one lives in the stage's own
process, asked by rank 0 through a socket; what rank 0 is told, all ranks are told. It knows nothing of
what they compute. The module is its own command line: ``launch N`` is a stock ``torchrun`` that cannot
outlive the stage, ``rank`` is what that starts N times.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.registry import load
from orchestrator.stage import Checkpoint, Config, Context, Inputs

SOCKET, PARENT = "SWEEP_RANKS_SOCKET", "SWEEP_RANKS_PARENT"
"""Environment variables: the socket of the stage's process, and the process that must outlive this one."""

LAUNCHER = -1
"""What the launcher calls itself where the others give their rank."""

SENT_TO_ALL = (
    {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    if hasattr(signal, "sigwaitinfo")
    else set[signal.Signals]()
)
"""What a scheduler sends to every process of a job; the stage's process heeds it for all, at its next step.

These are blocked from before the launcher starts, so that no moment of a start is open to them, and so in
what ranks start.
"""

ENDED = 128 + signal.SIGTERM
"""Exit code of a rank that the launcher ended because another failed."""

_TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for one that writes to a slow file system; one that died is noticed at once."""


class Order(NamedTuple):
    """What every rank is told: the function, its arguments, and the facts of the context."""

    target: str
    config: Config
    inputs: Inputs
    device: str
    folder: Path
    uses: Config
    resume: Checkpoint | None
    attempt: int
    num_threads: int


class RankContext(Context):
    """The stage's context in one of its processes; all of them make the same calls in the same order.

    Only `log` is for rank 0 alone: what the others log is dropped.
    """

    def __init__(self, order: Order, pipe: Connection, *, rank: int) -> None:
        super().__init__(
            order.folder,
            uses=order.uses,
            resume=order.resume,
            attempt=order.attempt,
            num_threads=order.num_threads,
        )
        self._pipe, self._rank = pipe, rank

    def log(self, step: int, *, num_steps: int | None = None, **metrics: float) -> None:
        """Sends the metrics of rank 0; does not wait."""
        if self._rank == 0:
            self._pipe.send(("log", int(step), num_steps, {k: float(v) for k, v in metrics.items()}))

    @property
    def stop_asked(self) -> bool:
        """Whether all ranks should save a checkpoint and end."""
        return bool(self._ask("why_stop"))

    def checkpoint_due(self, step: int) -> bool:
        """Tells all ranks the same."""
        return bool(self._ask("checkpoint_due", int(step)))

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """Yields one folder to all ranks; it counts once all have left it."""
        import torch.distributed as dist

        folder = self._ask("open_checkpoint", int(step))
        yield Path(folder)
        dist.barrier()
        self._ask("commit_checkpoint")

    def stop_if_asked(self) -> None:
        """Ends all ranks when a stop was asked.

        Raises:
            StopRequested: on all ranks alike.
        """
        if why := self._ask("why_stop"):
            raise StopRequested(str(why))

    def _ask(self, *question: object) -> Any:
        """Rank 0 asks the stage's process; all ranks get the answer, or raise the error that it was."""
        import torch.distributed as dist

        answer: list[Any] = [None]
        if self._rank == 0:
            self._pipe.send(question)
            answer = [self._pipe.recv()]
        dist.broadcast_object_list(answer, src=0)
        value, error = answer[0]
        if error is not None:
            raise as_exception(error)
        return value


def as_bytes(error: BaseException) -> bytes:
    """Makes an exception fit to be raised in another process, where it may name its cause."""
    if isinstance(error, StageFailure):
        return pickle.dumps((error.cause, str(error)))
    if isinstance(error, StopRequested):
        return pickle.dumps((None, error.why))
    with contextlib.suppress(Exception):  # any class may fail to be pickled in its own way
        data = pickle.dumps(error)
        if type(pickle.loads(data)) is type(error):
            return data
    return pickle.dumps(("unknown", f"{type(error).__name__}: {error}"))


def as_exception(data: bytes) -> BaseException:
    """Undoes `as_bytes`."""
    error = pickle.loads(data)
    if isinstance(error, tuple):
        cause, message = error
        return StopRequested(message) if cause is None else StageFailure(cause, message)
    assert isinstance(error, BaseException)
    return error


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def heed_only(launcher: int) -> None:
    """Ends this process when the launcher says so by SIGTERM; what others send to all is not for it.

    A thread waits for the signals, for Python's own handlers would not run while a collective hangs.
    """

    def wait() -> None:
        while True:
            told = signal.sigwaitinfo(SENT_TO_ALL)
            if told.si_pid == launcher and told.si_signo == signal.SIGTERM:
                os._exit(ENDED)

    if SENT_TO_ALL:
        signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
        threading.Thread(target=wait, name="signals", daemon=True).start()


def launch(num_processes: int) -> None:
    """Runs ``torchrun`` and tells the stage's process how each rank ended that failed first."""
    die_with(int(os.environ[PARENT]))
    signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
    pipe = Client(os.environ[SOCKET], "AF_UNIX")
    pipe.send(LAUNCHER)
    os.environ[PARENT] = str(os.getpid())
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main(
            [
                "--standalone",
                "--local-addr=127.0.0.1",  # a node's own name need not resolve
                f"--nproc-per-node={num_processes}",
                "--max-restarts=0",  # the engine starts the next attempt
                "--module",
                "orchestrator.sft.rank",
                "rank",
            ]
        )
    except ChildFailedError as error:
        pipe.send(("exits", [(rank, failure.exitcode) for rank, failure in error.failures.items()]))
        for failure in error.failures.values():  # what ranks started is as deaf as they are to being ended
            with contextlib.suppress(ProcessLookupError):
                os.killpg(failure.pid, signal.SIGKILL)
        sys.exit(1)


def run_rank() -> None:
    """Joins the process group, calls the stage's function and reports how it ended."""
    die_with(int(os.environ[PARENT]))
    heed_only(int(os.environ[PARENT]))
    pipe = Client(os.environ[SOCKET], "AF_UNIX")
    rank = int(os.environ["RANK"])
    pipe.send(rank)
    order: Order = pipe.recv()
    code = 0
    try:
        result = _call(order, pipe, rank)
        pipe.send(("done", result))
    except StopRequested as stopped:  # no failure: torchrun must not end the others for it
        pipe.send(("raised", as_bytes(stopped)))
    except BaseException as error:  # noqa: BLE001 - the process's edge: every exception becomes data
        traceback.print_exc()
        with contextlib.suppress(OSError):
            pipe.send(("raised", as_bytes(error)))
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no teardown that could hang on a peer that is gone


def _call(order: Order, pipe: Connection, rank: int) -> Any:
    import torch
    import torch.distributed as dist

    if order.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backends = "cpu:gloo,cuda:nccl" if order.device == "cuda" else "gloo"
    dist.init_process_group(backends, timeout=_TIMEOUT)
    try:
        result = load(order.target)(order.config, order.inputs, RankContext(order, pipe, rank=rank))
        dist.barrier()
    except StopRequested:
        dist.barrier()  # or the first to leave would look like a lost peer
        raise
    dist.destroy_process_group()
    return result if rank == 0 else None


if __name__ == "__main__":
    from orchestrator.sft import rank as module  # not `__main__`, whose classes no other process knows

    if sys.argv[1] == "launch":
        module.launch(int(sys.argv[2]))
    else:
        module.run_rank()
