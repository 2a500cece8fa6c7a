"""Run work in forked processes that see some files changed, several at a time; for docs/mutant_tests.py."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing.process
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BROKEN = 77  # exit code where this module itself failed
MEMORY = 3 << 30  # bytes that a change may make a process take
NEW_MOUNTS, NEW_USER, BIND, PRIVATE, ALL_BELOW = 0x20000, 0x10000000, 0x1000, 0x40000, 0x4000


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """Make a folder, and remove it in this process alone: forked ones run functions of an exit too."""
    made = Path(tempfile.mkdtemp(prefix="m-", dir="/tmp"))  # short: paths of sockets have a limit
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def prepare() -> None:
    """Import what commands need, so that processes forked from this one have it."""
    from orchestrator.cli.main import VERBS, verb_of
    from orchestrator.compose.root import Root
    from tests import forked

    for name in forked._PRELOADED:
        importlib.import_module(name)
    for verb in VERBS:
        verb_of(verb)
    Root("engine", [Path("conf").absolute()]).compose([])


def start_server(items: Sequence[Any]) -> None:
    """Start the process that forks commands, see tests/forked.py, from this one, whose change it has then."""
    from tests import forked

    if not any("sweep" in item.fixturenames for item in items):
        return
    ours, theirs = socket.socketpair()
    if os.fork():
        theirs.close()
        forked._server = lambda _: ours
        return
    ours.close()
    sys.path.insert(0, "")
    forked.serve(theirs)


_JOBS: list[tuple[Callable[..., Any], tuple[Any, ...], float]] = []


def spread(
    work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], *, at_once: int, until: float
) -> Iterator[Any]:
    """Yield the results of jobs, so many of which run at a time; none begins after a time of the clock."""
    _JOBS[:] = [(work, job, until) for job in jobs]
    with multiprocessing.get_context("fork").Pool(at_once) as pool:
        for begun, result in pool.imap_unordered(_job, range(len(jobs))):
            if begun:
                yield result


def _job(number: int) -> tuple[bool, Any]:
    work, job, until = _JOBS[number]
    return (True, work(*job)) if time.time() < until else (False, None)


def apart(
    work: Callable[[], int], mounts: Mapping[Path, Path], folder: Path, wall_s: float, cpu_s: int
) -> int:
    """Return the exit code of work in a fork with mounts of its own; negative if a limit ended it."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = BROKEN
        try:
            _enter(mounts, folder, cpu_s)
            os.write(ready[1], b".")
            os.read(go[0], 1)
            code = work()
        finally:
            os._exit(code)
    os.close(ready[1])
    assert os.read(ready[0], 1), "mounts are not possible here"
    handle, end = os.pidfd_open(child), time.monotonic() + wall_s
    mounts_of = os.open(f"/proc/{child}/ns/mnt", os.O_RDONLY)  # while it is open, its number stays its own
    os.write(go[1], b".")
    select.select([handle], [], [], max(0.0, end - time.monotonic()))
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _end_all_in(mounts_of)
    for each in (*ready[:1], *go, handle, mounts_of):
        os.close(each)
    return code


def _enter(mounts: Mapping[Path, Path], folder: Path, cpu_s: int) -> None:
    """Give this process mounts, streams, limits and a folder for temporary files of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    assert libc.unshare(NEW_MOUNTS | (NEW_USER if user else 0)) == 0, os.strerror(ctypes.get_errno())
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    assert libc.mount(b"none", b"/", None, ALL_BELOW | PRIVATE, None) == 0, os.strerror(ctypes.get_errno())
    for target, source in mounts.items():
        assert libc.mount(bytes(source), bytes(target.absolute()), None, BIND, None) == 0, target
    os.setpgid(0, 0)
    multiprocessing.process.current_process()._config.pop("daemon", None)  # it may have children
    multiprocessing.process._parent_process = None
    streams = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(streams, number)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 2))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _end_all_in(mounts: int) -> None:
    """End all processes that have the mounts."""
    number, found = os.fstat(mounts).st_ino, True
    while found:
        found = False
        for path in Path("/proc").glob("[0-9]*/ns/mnt"):
            with contextlib.suppress(OSError):
                if path.stat().st_ino == number:
                    os.kill(int(path.parts[2]), signal.SIGKILL)
                    found = True
        time.sleep(0.01)
