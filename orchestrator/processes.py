"""Processes of this machine: one is named so that another can prove it gone, and an attempt's are ended.

What an attempt started is found by ancestry and by a mark in its environment. A process that leaves its
session (``setsid``, ``nohup``, a double fork) is handed to the nearest ancestor that adopts orphans: the
worker for its attempt, and whoever started the worker for the worker. Where none of them is left, the mark
still says whose it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, MutableMapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.records import Process
from orchestrator.entry import MARK

PATIENCE_S, POLL_S = 10.0, 0.02
_PROC = Path("/proc")
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_adopting_pid = 0  # of the process that called `adopt_orphans`: a forked one does not adopt


class Entry(NamedTuple):
    """A process, as ``/proc/PID/stat`` describes it (proc_pid_stat(5)).

    Attributes:
        state: one letter.
        start: in the kernel's own units.
    """

    state: str
    parent: int
    group: int
    session: int
    start: str

    @property
    def runs(self) -> bool:
        """Whether it does; one that only waits to be reaped does not."""
        return self.state not in "ZX"


@cache
def boot_id() -> str:
    """Return what changes when this machine starts anew."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # no Linux: the machine's address stands in, and a reboot is noticed by the lease
        return f"{uuid.getnode():x}"


@cache
def pid_namespace() -> str:
    """Return which processes this one can see; the same in two processes means that they see each other."""
    try:
        return Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return ""


def _entry(pid: int) -> Entry | None:
    """Read what the kernel shows of a process; None when it shows nothing: it is gone, or hidden from us."""
    try:
        # the name, field 2, may hold spaces and parentheses: split after its end
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return Entry(fields[0], int(fields[1]), int(fields[2]), int(fields[3]), fields[19])
    except (OSError, IndexError, ValueError):
        return None


def start_of(pid: int) -> str | None:
    """Return a process's start time in the kernel's own units, None when it is gone, a zombie or hidden."""
    if _PROC.joinpath("self/stat").exists():
        entry = _entry(pid)
        return entry.start if entry is not None and entry.runs else None
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    return (
        subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout.strip()
        or None
    )


def describe(pid: int) -> Process | None:
    """Name a running process, None when it is gone."""
    start = start_of(pid)
    return (
        None if start is None else Process(boot_id=boot_id(), namespace=pid_namespace(), pid=pid, start=start)
    )


def is_gone(process: Process) -> bool | None:
    """Tell whether a process is provably gone; None when it lives, or lived, where we cannot see.

    A system may hide the processes of other users (``hidepid``): what cannot be read may live all the same.
    Sending signal 0 tells: only "no such process" is proof.
    """
    if (process.boot_id, process.namespace) != (boot_id(), pid_namespace()):
        return None
    if sys.platform == "linux" and not process.namespace:
        return None  # no /proc, here as there: nothing says that both see the same processes
    if start_of(process.pid) == process.start:
        return False
    if _entry(process.pid) is not None:
        return True  # it waits to be reaped, or its number is another process's
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return None
    return None if sys.platform == "linux" else True


# What an attempt started


def adopt_orphans() -> None:
    """Make this process the parent of all descendants whose own parents end (prctl(2): a child subreaper).

    It keeps their exit codes, also where it was started with SIGCHLD ignored: the kernel would drop them, and
    Python then takes 0 for them.
    """
    global _adopting_pid
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0:
        _adopting_pid = os.getpid()


def mark_of(nonce: str) -> str:
    """Return the mark of an attempt that this process, its worker, is about to start.

    It names the worker, so that anyone on this machine can see whether the attempt has been outlived, and the
    scheduler's job, since what is submitted from a stage takes its environment into a job of its own.
    """
    start, job = start_of(os.getpid()), os.environ.get("SLURM_JOB_ID", "")
    return "/".join((pid_namespace(), str(os.getpid()), start or "", job, nonce))


def end_attempt(mark: str, *, leader: int) -> bool:
    """Kill all that an attempt started and wait until none of it runs.

    Args:
        mark: of the attempt, see `mark_of`; "" for none.
        leader: process id and session of the attempt's child. Where it is the caller's own, its exit code
            is left for the caller to wait for.

    Returns:
        False when some still run after `PATIENCE_S`, or may not be ended by this user.
    """

    def find(table: dict[int, Entry]) -> set[int]:
        marked = {pid for pid in table if _mark(pid) == mark} if mark else set()
        led = {pid for pid, entry in table.items() if leader in (pid, entry.group, entry.session)}
        return marked | led | _adopted(table, ())

    return _end_all(find, waited=[leader])


def end_outlived() -> None:
    """Kill what attempts on this machine have left behind whose workers are gone."""

    def find(table: dict[int, Entry]) -> set[int]:
        return {pid for pid in table if (mark := _mark(pid)) and _is_outlived(mark)}

    _end_all(find)


def end_adopted(parent: int, keep: Collection[int]) -> None:
    """Kill the children of a process that adopts orphans, and their descendants.

    Args:
        parent: the process.
        keep: children of its own, which are spared.
    """
    if children(parent) - set(keep):
        _end_all(lambda table: {pid for pid, entry in table.items() if entry.parent == parent}, keep)


def reap_adopted(keep: Collection[int]) -> None:
    """Collect the adopted orphans that have ended, each by its own id.

    A wait for any child would also take the exit codes that others wait for.

    Args:
        keep: children that others wait for.
    """
    if _adopting_pid == os.getpid():
        mine = {pid: entry for pid in children(os.getpid()) if (entry := _entry(pid)) is not None}
        for pid in _adopted(mine, keep):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def children(parent: int) -> set[int]:
    """Return the process ids of a process's children, those included that wait to be reaped."""
    try:
        texts = [
            path.read_text(encoding="ascii") for path in (_PROC / str(parent) / "task").glob("*/children")
        ]
    except OSError:
        texts = []
    if texts:
        return {int(word) for text in texts for word in text.split()}
    return {pid for pid, entry in _table().items() if entry.parent == parent}  # a kernel without such lists


def _adopted(table: dict[int, Entry], keep: Collection[int]) -> set[int]:
    """Find the adopted orphans of this process, or of the worker that forked it.

    An attempt has a session of its own, and what a worker starts itself has the worker's.
    """
    adopter = _adopting_pid
    if adopter not in (os.getpid(), os.getppid()):
        return set()
    session = os.getsid(adopter)
    return {p for p, e in table.items() if e.parent == adopter and e.session != session and p not in keep}


def _table() -> dict[int, Entry]:
    pids = (int(path.name) for path in _PROC.iterdir() if path.name.isdigit()) if _PROC.exists() else ()
    return {pid: entry for pid in pids if (entry := _entry(pid)) is not None}


def _mark(pid: int) -> str:
    """Return a process's mark, "" when it has none or is not ours to look at."""
    try:
        data = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return ""
    if f"{MARK}=".encode() not in data:
        return ""
    pairs = (entry.partition(b"=") for entry in data.split(b"\0"))
    environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    mark = environment.get(MARK, "")
    job = environment.get("SLURM_JOB_ID", "")
    return mark if not job or mark.split("/")[3:4] == [job] else ""


def _is_outlived(mark: str) -> bool:
    words = mark.split("/")
    if len(words) != 5 or not words[1].isdigit() or words[0] != pid_namespace():
        return False
    return is_gone(Process(boot_id=boot_id(), namespace=words[0], pid=int(words[1]), start=words[2])) is True


def _end_all(
    find: Callable[[dict[int, Entry]], set[int]], keep: Collection[int] = (), *, waited: Collection[int] = ()
) -> bool:
    """Kill what `find` names in the table of processes, and its descendants, until none of them runs.

    Args:
        find: returns process ids.
        keep: spared.
        waited: killed as the others are, but not reaped: the caller waits for their exit codes.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        table = _table()
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


def _with_descendants(roots: Collection[int], table: dict[int, Entry]) -> set[int]:
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
    """Return how many processes the kernel's OOM killer ended on this machine since it started."""
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


def leave_step(environment: MutableMapping[str, str]) -> None:
    """Remove what srun says of a step and its tasks: stages are no tasks of it, whoever starts workers.

    Frameworks that find a task's variables take themselves for one rank of an MPI job. The job's id, nodes,
    tasks a node, CPUs, memory and GPUs stay: `srun` and `mpirun` in a stage need them.
    """
    for name in [name for name in environment if _STEP.fullmatch(name)]:
        del environment[name]
