"""Processes of this machine: naming one so that another can prove it gone, and ending a whole group."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from functools import cache
from pathlib import Path

from orchestrator.core.records import Process


@cache
def boot_id() -> str:
    """Returns what changes when this machine starts anew."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux: the machine's address stands in, and a reboot is noticed by the lease
        return f"{uuid.getnode():x}"


@cache
def pid_namespace() -> str:
    """Returns which processes this one can see; the same in two processes means that they see each other."""
    try:
        return Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return ""


def start_of(pid: int) -> str | None:
    """Returns a process's start time in the kernel's own units, None when it is gone or a zombie."""
    try:
        # the name, field 2, may hold spaces and parentheses: split after its end
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except (ProcessLookupError, IndexError):
        return None


def describe(pid: int) -> Process | None:
    """Names a running process, None when it is gone."""
    start = start_of(pid)
    return (
        None if start is None else Process(boot_id=boot_id(), namespace=pid_namespace(), pid=pid, start=start)
    )


def is_gone(process: Process) -> bool | None:
    """Tells whether a process is provably gone; None when it lives, or lived, where we cannot see."""
    if (process.boot_id, process.namespace) != (boot_id(), pid_namespace()):
        return None
    return start_of(process.pid) != process.start


def end_group(group: int, *, patience_s: float = 10.0) -> bool:
    """Kills a process group and waits until no process of it runs; False when one is still there."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        if not _group_runs(group):
            return True
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)


def _group_runs(group: int) -> bool:
    """Whether a process of the group runs; one that only waits to be reaped does not."""
    if not Path("/proc/self/stat").exists():
        return True
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            return True
    return False


def oom_kills() -> int:
    """Returns how many processes the kernel's OOM killer ended on this machine since it started."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
