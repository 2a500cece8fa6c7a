"""Ending what an attempt started, on this machine. `orchestrator.provenance` names processes.

Why two ways to find what an attempt started: ancestry alone is not enough. A process that leaves its session
(``setsid``, ``nohup``, a double fork) loses its parent. The kernel hands it to the nearest ancestor that
adopts orphans: the worker for its attempt, and the process that started the worker for the worker. If none of
them is left, a mark in the environment still shows the attempt::

    worker (adopts) -> child -> sh -> nohup server &      sh ends: the worker is server's parent now
    worker and child are killed                           the mark in server's environment remains
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Collection, MutableMapping
from pathlib import Path

from orchestrator.core.records import Process
from orchestrator.entry import MARK
from orchestrator.provenance import (
    PROC,
    ProcessEntry,
    boot_id,
    entry_of,
    is_gone,
    pid_namespace,
    read_of,
    start_of,
)

PATIENCE_S, POLL_S = 10.0, 0.02
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_adopting_pid = 0  # of the process that called `adopt_orphans`: a forked one does not adopt


def adopt_orphans() -> None:
    """Make this process the new parent of descendants whose parents end (prctl(2): a child subreaper).

    It also restores the default for SIGCHLD. While that is ignored, the kernel drops exit codes, and Python
    then reports 0 for them.
    """
    global _adopting_pid
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0:
        _adopting_pid = os.getpid()


def mark_of(nonce: str) -> str:
    """Return the mark of an attempt that this process, its worker, is about to start.

    It names the worker, so that any process on this machine can see whether the worker is gone. It also names
    the scheduler's job: a stage may submit a job of its own, which inherits the environment but does not
    belong to the attempt.

    Args:
        nonce: nonce of the attempt's claim.
    """
    start, job = start_of(os.getpid()), os.environ.get("SLURM_JOB_ID", "")
    return "/".join((pid_namespace(), str(os.getpid()), start or "", job, nonce))


def end_attempt(mark: str, *, leader: int) -> bool:
    """Kill everything that an attempt started, and wait until none of it runs.

    Args:
        mark: the attempt's mark, see `mark_of`; "" for none.
        leader: process id and session of the attempt's child. If it is the caller's own child, its exit code
            is left for the caller to wait for.

    Returns:
        False if some processes still run after `PATIENCE_S`, or this user may not kill them.
    """

    return _end_all(lambda table: _of_attempt(mark, leader, table), waited=[leader])


def started(mark: str, *, leader: int) -> dict[int, ProcessEntry]:
    """Return the running processes that an attempt started, by process id; see `end_attempt`."""
    table = process_table()
    pids = _with_descendants(_of_attempt(mark, leader, table), table) - {leader}
    return {pid: table[pid] for pid in pids if table[pid].runs}


def _of_attempt(mark: str, leader: int, table: dict[int, ProcessEntry]) -> set[int]:
    marked = {pid for pid in table if _mark(pid) == mark} if mark else set()
    led = {pid for pid, entry in table.items() if leader in (pid, entry.group, entry.session)}
    return marked | led | _adopted(table, ())


def end_outlived() -> None:
    """Kill the processes on this machine that attempts left behind and whose workers are gone."""

    def find(table: dict[int, ProcessEntry]) -> set[int]:
        return {pid for pid in table if (mark := _mark(pid)) and _is_outlived(mark)}

    _end_all(find)


def end_adopted(parent: int, keep: Collection[int]) -> None:
    """Kill the children of a process that adopts orphans, and their descendants.

    Args:
        parent: the adopting process.
        keep: its own children, which are spared.
    """
    if children(parent) - set(keep):
        _end_all(lambda table: {pid for pid, entry in table.items() if entry.parent == parent}, keep)


def reap_adopted(keep: Collection[int]) -> None:
    """Reap the adopted orphans that have ended, each by its own id.

    A wait for any child would also take exit codes that others wait for.

    Args:
        keep: children that others wait for.
    """
    if _adopting_pid == os.getpid():
        mine = {pid: entry for pid in children(os.getpid()) if (entry := entry_of(pid)) is not None}
        for pid in _adopted(mine, keep):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def children(parent: int) -> set[int]:
    """Return the process ids of a process's children, including those that wait to be reaped."""
    try:
        texts = [
            path.read_text(encoding="ascii") for path in (PROC / str(parent) / "task").glob("*/children")
        ]
    except OSError:
        texts = []
    if texts:
        return {int(word) for text in texts for word in text.split()}
    # This kernel has no lists of children: search all processes.
    return {pid for pid, entry in process_table().items() if entry.parent == parent}


def _adopted(table: dict[int, ProcessEntry], keep: Collection[int]) -> set[int]:
    """Return the adopted orphans of this process, or of the worker that forked it.

    They are the children in another session: an attempt has its own session, while a process that the worker
    itself starts shares the worker's.
    """
    adopter = _adopting_pid
    if adopter not in (os.getpid(), os.getppid()):
        return set()
    session = os.getsid(adopter)
    return {p for p, e in table.items() if e.parent == adopter and e.session != session and p not in keep}


def process_table() -> dict[int, ProcessEntry]:
    """Return what the kernel shows of all processes, by process id."""
    names = os.listdir(PROC) if PROC.exists() else ()  # noqa: PTH208 - faster
    pids = (int(name) for name in names if name.isdigit())
    return {pid: entry for pid in pids if (entry := entry_of(pid)) is not None}


def _mark(pid: int) -> str:
    """Return a process's mark; "" if it has none, or belongs to another user."""
    try:
        data = read_of(pid, "environ")
    except OSError:
        return ""
    # Cheap test first: this runs for every process of the machine.
    if f"{MARK}=".encode() not in data:
        return ""
    pairs = (entry.partition(b"=") for entry in data.split(b"\0"))
    environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    mark = environment.get(MARK, "")
    # A job that the stage submitted carries the mark into another job: it is not part of the attempt.
    job = environment.get("SLURM_JOB_ID", "")
    return mark if not job or mark.split("/")[3:4] == [job] else ""


def _is_outlived(mark: str) -> bool:
    """Whether the worker named in a mark is gone; False if it lived in another pid namespace."""
    words = mark.split("/")
    if len(words) != 5 or not words[1].isdigit() or words[0] != pid_namespace():
        return False
    return is_gone(Process(boot_id=boot_id(), namespace=words[0], pid=int(words[1]), start=words[2])) is True


def _end_all(
    find: Callable[[dict[int, ProcessEntry]], set[int]],
    keep: Collection[int] = (),
    *,
    waited: Collection[int] = (),
) -> bool:
    """Kill the processes that `find` returns, with their descendants, until none of them runs.

    Args:
        find: returns process ids from the table of processes.
        keep: processes to spare.
        waited: processes to kill but not to reap, because the caller waits for their exit codes.

    Returns:
        False if some still run after `PATIENCE_S`, or this user may not kill them.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        # Each round reads the table again, because a process may fork while it is being killed.
        table = process_table()
        roots = find(table) - set(keep)
        running = {pid for pid in _with_descendants(roots, table) if table[pid].runs} - {os.getpid(), *keep}
        if not running:
            reap_adopted({*keep, *waited})
            return True
        is_refused = False
        for pid in running:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:
                is_refused = True
        if is_refused or time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)


def _with_descendants(roots: Collection[int], table: dict[int, ProcessEntry]) -> set[int]:
    """Return process ids with those of all descendants."""
    below: dict[int, list[int]] = {}
    for pid, entry in table.items():
        below.setdefault(entry.parent, []).append(pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found and pid in table:
            found.add(pid)
            todo += below.get(pid, ())
    return found


def oom_kills() -> int:
    """Return how many processes the kernel's OOM killer has ended on this machine since it started."""
    try:
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


_STEP = re.compile(
    r"SLURM_(STEP\w*|SRUN_\w+|NTASKS\w*|NPROCS|PROCID|LOCALID|NODEID|GTIDS|TASK_PID|LAUNCH_NODE_IPADDR|DISTRIBUTION"
    r"|CPU_BIND\w*|MEM_BIND\w*|MPI_TYPE|PMI\w*|EXPORT_ENV|UMASK|PRIO_PROCESS|TOPOLOGY\w*|LABELIO|STDIO\w*|OVERLAP)"
    r"|PMI_\w+|PMI2_\w+|PMIX_\w+|PALS_\w+|SRUN_EXPORT_ENV"
)
"""Variables by which srun and MPI describe a step and its tasks."""


def leave_step(environment: MutableMapping[str, str]) -> None:
    """Remove the variables of srun's step and task, because a stage is not a task of that step.

    Frameworks that find them would act as one rank of an MPI job. The job's id, nodes, tasks per node, CPUs,
    memory and GPUs stay, because `srun` and `mpirun` in a stage need them.

    Args:
        environment: changed in place.
    """
    for name in [name for name in environment if _STEP.fullmatch(name)]:
        del environment[name]
