"""One process of several that run a stage together, as `orchestrator.sft.distributed.launcher` starts them.

`RankContext` is the stage's `Context` seen from such a process: the real one lives in the stage's own
process, asked by rank 0 through a socket; what rank 0 is told, all ranks are told. It knows nothing of
what they compute. The module is its own command line: ``launch N M`` is a stock ``torchrun`` that cannot
outlive the stage, one of M that each start ``rank`` N times on their node.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.entry import short_paths
from orchestrator.errors import StageFailure, StopRequested
from orchestrator.registry import load
from orchestrator.sft.distributed.nodes import PARENT, die_with, free_endpoint, interface, join, without_job
from orchestrator.stage import Checkpoint, Config, Context, Inputs

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

_FIRST = "--node-rank=0"
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
    former: Path | None
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
            former=order.former,
            attempt=order.attempt,
            num_threads=order.num_threads,
        )
        self._pipe, self._rank = pipe, rank

    def log(self, step: int, *, num_steps: int | None = None, **metrics: float) -> None:
        """Send the metrics of rank 0; does not wait."""
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
        """Yield one folder to all ranks; it counts once all have left it."""
        import torch.distributed as dist

        folder = self._ask("open_checkpoint", int(step))
        yield Path(folder)
        dist.barrier()
        self._ask("commit_checkpoint")

    def stop_if_asked(self) -> None:
        """End all ranks when a stop was asked.

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
    """Make an exception fit to be raised in another process, where it may name its cause."""
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


def heed_only(launcher: int) -> None:
    """End this process when the launcher says so by SIGTERM; what others send to all is not for it.

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


def oom_kills() -> int:
    """Return how many processes the kernel's OOM killer ended on this machine since it started."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="utf-8").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def launch(num_processes: int, num_nodes: int) -> None:
    """Run ``torchrun`` and tells the stage's process how each rank of this node ended that failed first.

    Args:
        num_processes: ranks on this node.
        num_nodes: how many launchers there are; with more than one this is a task of a Slurm step.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
    if num_nodes == 1:
        die_with(int(os.environ[PARENT]))
    pipe = join()
    pipe.send(LAUNCHER)
    where = ["--standalone", "--local-addr=127.0.0.1"]  # a node's own name need not resolve
    is_over = threading.Event()
    if num_nodes > 1:
        where = _join_nodes(pipe, num_nodes, is_over)
    os.environ[PARENT] = str(os.getpid())
    kills = oom_kills()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main(
            [
                *where,
                f"--nproc-per-node={num_processes}",
                "--max-restarts=0",  # the engine starts the next attempt
                "--module",
                "orchestrator.sft.distributed.worker",
                "rank",
            ]
        )
        is_over.set()
        if _FIRST in where:  # it holds the store that the other launchers leave by
            threading.Event().wait()
    except ChildFailedError as error:
        exits = [(rank, failure.exitcode) for rank, failure in error.failures.items()]
        pipe.send(("exits", exits, oom_kills() > kills))
        for failure in error.failures.values():  # what ranks started is as deaf as they are to being ended
            with contextlib.suppress(ProcessLookupError):
                os.killpg(failure.pid, signal.SIGKILL)
        if num_nodes > 1:  # or `srun` would kill the other launchers before they have reported
            threading.Event().wait()  # until the stage's process hangs up
        os._exit(1)


def _kill_ranks() -> None:
    """Kills the groups of our children: ranks, and what they started and the kernel would spare."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now, or leads no group
            if int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1]) == os.getpid():
                os.killpg(int(path.parent.name), signal.SIGKILL)


def _join_nodes(pipe: Connection, num_nodes: int, is_over: threading.Event) -> list[str]:
    """Meets the other nodes' launchers by way of the stage's process; returns what torchrun needs to know.

    From then on this process ends when the stage's does, or hangs up.
    """
    node = int(os.environ["SLURM_NODEID"])
    inherited = {**without_job(os.environ), "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
    os.environ.clear()
    os.environ.update(inherited)
    if not os.environ.get("GLOO_SOCKET_IFNAME") and (name := interface()):
        os.environ["GLOO_SOCKET_IFNAME"] = name
    if node == 0:
        pipe.send(("endpoint", free_endpoint()))
    endpoint = pipe.recv()

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            pipe.recv()
        _kill_ranks()
        os._exit(0 if is_over.is_set() else 1)

    def forward() -> None:
        signal.sigwaitinfo(SENT_TO_ALL)
        with contextlib.suppress(OSError):
            pipe.send(("stop",))

    for task in (listen, forward):
        threading.Thread(target=task, name=task.__name__, daemon=True).start()
    return [
        f"--nnodes={num_nodes}",
        f"--node-rank={node}",
        "--rdzv-backend=static",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={endpoint}",
    ]


def run_rank() -> None:
    """Join the process group, calls the stage's function and reports how it ended."""
    die_with(int(os.environ[PARENT]))
    heed_only(int(os.environ[PARENT]))
    with short_paths():
        util.get_temp_dir()  # where the sockets of data loaders will be
    pipe = join()
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
    if sys.argv[1] == "launch":
        launch(int(sys.argv[2]), int(sys.argv[3]))
    else:
        run_rank()
