"""Fixtures that every part of the tests may use: a store, and the command `sweep` as a user types it."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shutil
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests import forked, outputs

pytest.register_assert_rewrite("orchestrator.testing")

from orchestrator.testing import SweepCommand  # noqa: E402 - after its registration

# On a busy machine, time tells nothing about a test.
settings.register_profile("any_load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_load")


class Sweep(SweepCommand):
    """Runs ``sweep VERB ...`` in a folder, with a store of the test's own."""

    def run(self, words: tuple[str, ...], env: Mapping[str, str], timeout_s: float) -> tuple[int, str, str]:
        """Forks a process that has the imports done, if the environment allows that; checks its JSON."""
        if forked.fits(env):
            found = forked.run(words, self.folder, env, timeout_s)
        else:
            found = super().run(words, env, timeout_s)
        if "--json" in words and ("PYTHONPATH" not in env or forked.fits(env)):
            outputs.check(words, found[1])
        return found


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the bytecode of the tests, which each worker would compile again; no test runs meanwhile.

    Nearly all that is made here stays until the end, so no search for garbage needs to visit it.
    """
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries of C++ count what is left at the end
        gc.enable()
        sys.dont_write_bytecode = before


def _temporary() -> str:
    """Return the folder for the folders of tests: in memory where there is plenty, unless one was chosen.

    A record of a store, and one of MariaDB, is made durable before the next step: 5 ms each on the disk of a
    usual cloud machine. Tests of a store that all users may enter use the disk's /tmp.
    """
    place = Path("/dev/shm")
    if "PYTEST_DEBUG_TEMPROOT" not in os.environ and os.access(place, os.W_OK | os.X_OK):
        found = os.statvfs(place)
        num_free = min(found.f_bavail * found.f_frsize, psutil.virtual_memory().available)
        if num_free > _MEMORY_BYTES and not found.f_flag & os.ST_NOEXEC:
            os.environ["PYTEST_DEBUG_TEMPROOT"] = str(place)
    return os.environ.get("PYTEST_DEBUG_TEMPROOT", "/tmp")


_MEMORY_BYTES = 8 * 2**30
TEMPORARY = _temporary()
"""A folder with a short path, since paths of sockets have a limit."""


def give_back(folder: Path, *, new_s: float = 120) -> None:
    """Delete the folders of runs and test beds that were killed: pytest would keep its own for three days."""
    for lock in folder.glob("pytest-of-*/pytest-*/.lock"):
        with contextlib.suppress(OSError, ValueError):  # another run may do the same, or has just begun
            if not psutil.pid_exists(int(lock.read_text())):
                shutil.rmtree(lock.parent)
    beds = [bed for kind in ("slurm", "ray") for bed in folder.glob(f"sweep-{kind}.*")]
    used = " ".join(_in_use()) if beds else ""
    for bed in beds:
        with contextlib.suppress(OSError):
            # One without a process may have just been made. All daemons of a bed name its folder.
            if bed.name not in used and time.time() - bed.stat().st_ctime > new_s:
                shutil.rmtree(bed, ignore_errors=True)


def _in_use() -> Iterator[str]:
    """Yield the arguments and working folders of all processes."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        yield from (*(process.info["cmdline"] or ()), process.info["cwd"] or "")


def pytest_sessionstart() -> None:
    """Make room where a killed run left its folders in memory."""
    if TEMPORARY == "/dev/shm" and "PYTEST_XDIST_WORKER" not in os.environ:
        give_back(Path(TEMPORARY))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Give back the memory when all have passed; until then no path of a test is that of another one."""
    made = getattr(session.config, "_tmp_path_factory")._basetemp  # noqa: B009 - it has no public name
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if exitstatus == 0 and not is_worker and made is not None and made.is_relative_to("/dev/shm"):
        shutil.rmtree(made, ignore_errors=True)


_USUAL_UMASK = os.umask(0o022)
os.umask(_USUAL_UMASK)


@pytest.fixture(autouse=True)
def usual_umask() -> None:
    """Set the umask that the tests began with: a store opened in this process makes it follow its folder."""
    os.umask(_USUAL_UMASK)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where the test's store will be; nothing is there yet."""
    return tmp_path / "store"


@pytest.fixture
def sweep(tmp_path: Path, store: Path) -> Sweep:
    """The command in an empty folder of the user's."""
    folder = tmp_path / "project"
    folder.mkdir()
    return Sweep(folder, store)
