"""The processes that `orchestrator.sft.distributed.launcher` starts: launchers and ranks.

The module does not depend on what ranks compute. It is also a command. ``launch N M`` runs an unmodified
``torchrun`` that cannot outlive the stage. It is one of M launchers, each of which starts ``rank`` N times on
its node.

A rank may start processes that leave its process group, such as the engine process of vLLM, which holds GPU
memory. They survive a launcher and ranks that are killed. A watcher of the launcher ends them (`watch`), by
a variable of the environment that all programs inherit, or by the session of a forked rank. A process that
a forked rank forks, and that starts a session without a program of its own, is not found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Collection
from datetime import timedelta
from multiprocessing import util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from orchestrator.entry import short_paths
from orchestrator.errors import StopRequested
from orchestrator.processes import oom_kills, process_table
from orchestrator.registry import load
from orchestrator.sft.distributed.context import Order, RankContext, as_bytes
from orchestrator.sft.distributed.nodes import (
    ENDED,
    PARENT,
    die_with,
    free_endpoint,
    interface,
    join,
    without_job,
)

LAUNCHER = -1
"""What a launcher sends where ranks send their rank."""

SENT_TO_ALL = (
    {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    if hasattr(signal, "sigwaitinfo")
    else set[signal.Signals]()
)
"""Signals that a scheduler sends to every process of a job. They are blocked in launchers and ranks.

A scheduler sends them to announce a preemption or a time limit. If they ended ranks at once, no checkpoint
could be saved. So only the stage's process handles them, as a request to stop. Its ranks learn of it at the
next step, save together and end.

A process inherits the mask of blocked signals. They are blocked before the launcher starts, so none of them
can end a launcher or rank in its first moments. Processes that ranks start have them blocked too.
"""

# The launcher with this argument holds torchrun's rendezvous store.
_FIRST = "--node-rank=0"
_TIMEOUT = timedelta(minutes=30)
"""Longest wait in a collective, for a rank on a slow file system. A rank that died is noticed at once."""


def exit_on_sigterm_of(launcher: int) -> None:
    """End this process on SIGTERM from its launcher, and ignore all other signals in `SENT_TO_ALL`.

    Torchrun ends the remaining ranks by SIGTERM when one fails. A scheduler sends the same signal to all
    processes, and ranks must survive that one. `sigwaitinfo` returns the pid of the sender, which
    distinguishes the two. A thread waits, because Python's signal handlers do not run while the main
    thread hangs in a collective.

    Args:
        launcher: pid of the launcher.
    """

    def wait() -> None:
        while True:
            received = signal.sigwaitinfo(SENT_TO_ALL)
            if received.si_pid == launcher and received.si_signo == signal.SIGTERM:
                os._exit(ENDED)

    if SENT_TO_ALL:
        signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
        threading.Thread(target=wait, name="signals", daemon=True).start()


def launch(num_processes: int, num_nodes: int) -> None:
    """Run ``torchrun``, and report to the stage's process how the ranks of this node that failed first ended.

    Args:
        num_processes: ranks on this node.
        num_nodes: number of launchers; with more than one, this process is a task of a Slurm step.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
    watch()
    if num_nodes == 1:
        die_with(int(os.environ[PARENT]))
    pipe = join()
    pipe.send(LAUNCHER)
    # By default torchrun resolves the node's own name, which may fail.
    where = ["--standalone", "--local-addr=127.0.0.1"]
    is_over = threading.Event()
    if num_nodes > 1:
        where = _join_nodes(pipe, num_nodes, is_over)
    os.environ[PARENT] = str(os.getpid())
    # Compared after a failure: a SIGKILL and a higher count mean that memory ran out.
    kills = oom_kills()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main(
            [
                *where,
                f"--nproc-per-node={num_processes}",
                "--max-restarts=0",  # a worker starts the next attempt
                "--module",
                "orchestrator.sft.distributed.worker",
                "rank",
            ]
        )
        is_over.set()
        if _FIRST in where:  # other launchers leave through its rendezvous store
            threading.Event().wait()
    except ChildFailedError as error:
        exits = [(rank, failure.exitcode) for rank, failure in error.failures.items()]
        pipe.send(("exits", exits, oom_kills() > kills))
        # What ranks started has SIGTERM blocked too. Each rank leads a process group, which SIGKILL ends
        # whole.
        for failure in error.failures.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(failure.pid, signal.SIGKILL)
        # The first launcher to exit with an error has `srun` kill the others. So it waits until the stage's
        # process closes the connection, which it does when it has their reports.
        if num_nodes > 1:
            threading.Event().wait()
        os._exit(1)


def _kill_ranks() -> None:
    """Kill the process groups of this process's children.

    These are the ranks, and what ranks started: the kernel's parent-death signal covers the ranks alone.
    """
    for pid, entry in process_table().items():
        if entry.parent == os.getpid():
            with contextlib.suppress(OSError):  # it has just ended, or leads no group
                os.killpg(pid, signal.SIGKILL)


def _join_nodes(pipe: Connection, num_nodes: int, is_over: threading.Event) -> list[str]:
    """Exchange the rendezvous address with the other nodes' launchers through the stage's process.

    From then on this process ends when the stage's process ends or closes the connection. A stop signal is
    forwarded there, because a scheduler may send it to this job step alone.

    Args:
        pipe: to the stage's process.
        num_nodes: number of launchers.
        is_over: set once all ranks of this node have ended well.

    Returns:
        Arguments for torchrun.
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
        # Slurm may kill the watcher with this step, before it has ended what left the ranks' process groups.
        end_group(os.environ[GROUP])
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


def close_all_but(kept: int) -> None:
    """Close all open files of this process except one and the standard streams."""
    for path in list(Path("/proc/self/fd").iterdir()):
        if int(path.name) > 2 and int(path.name) != kept:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(int(path.name))


def launch_forked(num_processes: int) -> int:
    """Fork ranks, wait for them, and report those that failed, as `launch` does. Return the exit code."""
    watcher = watch()
    pipe = join()
    pipe.send(LAUNCHER)
    os.environ[PARENT] = str(os.getpid())
    kills = oom_kills()
    ports, writer = os.pipe()
    ranks: dict[int, int] = {}
    for rank in range(num_processes):
        if (pid := os.fork()) == 0:
            close_all_but(ports)  # the launcher's pipes must end with the launcher
            os.setsid()
            os.environ.update(_rank_environment(rank, num_processes))
            # After the fork: the store has threads, which do not survive one.
            os.environ["MASTER_PORT"] = str(int(os.read(ports, _PORT_BYTES)))
            os.close(ports)
            run_rank()
        os.write(watcher, f"{pid}\n".encode())  # a rank leads a session
        ranks[pid] = rank
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(writer, num_processes * f"{store.port:{_PORT_BYTES}}".encode())
    failed: dict[int, int] = {}
    running = set(ranks)
    while running:
        pid, status = os.wait()
        if pid not in running:
            continue
        running.discard(pid)
        if (exit_code := os.waitstatus_to_exitcode(status)) != 0:
            for other in running if not failed else ():
                os.kill(other, signal.SIGTERM)  # blocked, and taken by a thread: see `exit_on_sigterm_of`
            failed[pid] = exit_code
    if not failed:
        return 0
    pipe.send(("exits", [(ranks[pid], exit_code) for pid, exit_code in failed.items()], oom_kills() > kills))
    for pid in failed:  # what ranks started, as in `launch`
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return 1


_PORT_BYTES = 5


def _rank_environment(rank: int, num_processes: int) -> dict[str, str]:
    """Return the variables of a rank, as ``torchrun --standalone`` sets them."""
    number, world = str(rank), str(num_processes)
    return {
        **dict.fromkeys(("RANK", "LOCAL_RANK", "ROLE_RANK"), number),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"), world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher serves it, not rank 0
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }


def run_rank() -> None:
    """Join the process group, call the stage's function and report how it ended."""
    die_with(int(os.environ[PARENT]))
    exit_on_sigterm_of(int(os.environ[PARENT]))
    with short_paths():
        # Sockets of data loaders will be in this folder, and their paths are limited to about 100 bytes.
        util.get_temp_dir()
    pipe = join()
    rank = int(os.environ["RANK"])
    pipe.send(rank)
    order: Order = pipe.recv()
    code = 0
    try:
        result = _call(order, pipe, rank)
        pipe.send(("done", result))
    except StopRequested as stopped:  # exit code 0: otherwise torchrun would end the other ranks
        pipe.send(("raised", as_bytes(stopped)))
    except BaseException as error:  # noqa: BLE001 - last frame of the process: exceptions become messages
        traceback.print_exc()
        with contextlib.suppress(OSError):
            pipe.send(("raised", as_bytes(error)))
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skip teardown, which could hang on a lost peer


def _call(order: Order, pipe: Connection, rank: int) -> Any:
    """Join the process group, call the stage's function, wait for other ranks. Rank 0 returns a result."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(order.num_threads)  # a fork's torch has read the variable long ago
    if order.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backends = "cpu:gloo,cuda:nccl" if order.device == "cuda" else "gloo"
    dist.init_process_group(backends, timeout=_TIMEOUT)
    try:
        result = load(order.target)(order.config, order.inputs, RankContext(order, pipe, rank=rank))
        dist.barrier()
    except StopRequested:
        dist.barrier()  # otherwise the first to leave would look like a lost peer
        raise
    dist.destroy_process_group()
    return result if rank == 0 else None


GROUP = "SWEEP_RANKS_GROUP"
"""Environment variable that all processes of one launcher's ranks have."""
_PATIENCE_S, _POLL_S = 10.0, 0.05


def watch() -> int:
    """Fork the watcher, and mark what this process starts from now on. Call it before any thread exists.

    Returns:
        A file that takes ids of sessions, a line each, which the watcher ends too.

    The watcher holds one end of a pipe. The kernel closes the other one when this process ends, however that
    happens. The watcher has a session of its own, so that no signal to this process's group reaches it.
    """
    os.environ[GROUP] = uuid.uuid4().hex
    reader, writer = os.pipe()  # not inherited by programs that this process starts
    if os.fork():
        os.close(reader)
        return writer
    # The watcher never returns: the code that called this function belongs to the launcher.
    with contextlib.suppress(BaseException):
        os.setsid()
        # Held open, the launcher's sockets would hide its end from the stage's process.
        close_all_but(reader)
        with os.fdopen(reader, "rb") as stream:
            sessions = {int(line) for line in stream.read().split()}
        end_group(os.environ[GROUP], sessions)
    os._exit(0)


def end_group(group: str, sessions: Collection[int] = ()) -> None:
    """Kill all processes of this machine with a value of `GROUP`, or of some sessions, until none is left."""
    mark, end_s = f"{GROUP}={group}".encode(), time.monotonic() + _PATIENCE_S
    while time.monotonic() < end_s:
        entries = {pid: entry for pid, entry in process_table().items() if pid != os.getpid()}
        marked = [
            p for p, e in entries.items() if mark in _environment(p) or (e.runs and e.session in sessions)
        ]
        for pid in marked:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not marked:
            return
        time.sleep(_POLL_S)


def _environment(pid: int) -> list[bytes]:
    """Return a process's variables as it was started with; none of a zombie, or of another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        launch(int(sys.argv[2]), int(sys.argv[3]))
    else:
        run_rank()
