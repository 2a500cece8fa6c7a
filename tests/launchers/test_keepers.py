"""What is above a worker in a Slurm job and beside a Ray actor ends what a killed worker leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from orchestrator.launchers.ray import actor
from tests.execution.waiting import lives, pid_in, until

WORKER = """
import os, signal, subprocess, sys, time
folder, code = sys.argv[1], int(sys.argv[2])
leave = "setsid env -i sleep 60 & echo $! > $0/part; mv $0/part $0/left"
subprocess.Popen(["bash", "-c", f"({leave})", folder])
while not os.path.exists(folder + "/left"):
    time.sleep(0.01)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
open(folder + "/part", "w").write(str(os.getpid()))
os.rename(folder + "/part", folder + "/worker")
if code == 0:
    sys.exit(0)
time.sleep(60)
"""
ON_SLURM = "from orchestrator.execution.keeper import keep_worker\nkeep_worker()\n" + WORKER


class Kept:
    """A worker under a keeper."""

    def __init__(self, folder: Path, kind: str, code: int) -> None:
        self.folder, self.kind = folder, kind
        self.told: IO[bytes] | None = None
        words = [str(folder), str(code)]
        if kind == "slurm":
            self.process = subprocess.Popen([sys.executable, "-c", ON_SLURM, *words])
            return
        read, write = os.pipe()
        command = [sys.executable, "-c", actor.KEEPER, str(write), sys.executable, "-c", WORKER, *words]
        self.process = subprocess.Popen(command, pass_fds=[write])
        os.close(write)
        self.told = os.fdopen(read, "rb")

    def code(self) -> int:
        """Waits for the end as the keeper tells it."""
        if self.told is None:
            return self.process.wait(60)
        self.told.readline()
        return int(self.told.readline())


@pytest.fixture(params=["slurm", "ray"])
def kind(request: pytest.FixtureRequest) -> str:
    """Whose keeper."""
    return str(request.param)


@pytest.fixture
def kept(tmp_path: Path, kind: str) -> Iterator[list[Kept]]:
    """What was started, and is ended after the test."""
    started: list[Kept] = []
    yield started
    for one in started:
        one.process.kill()
        one.process.wait()
        if one.told is not None:
            one.told.close()
        for name in ("worker", "left"):
            if (one.folder / name).exists() and lives(int((one.folder / name).read_text())):
                os.kill(int((one.folder / name).read_text()), signal.SIGKILL)


@pytest.mark.parametrize(("end", "code"), [("kill", -9), ("stop", 7), ("itself", 0)])
def test_what_a_worker_leaves_behind_ends_before_its_exit_code_is_told(
    tmp_path: Path, kind: str, kept: list[Kept], end: str, code: int
) -> None:
    kept.append(Kept(tmp_path, kind, code if end != "kill" else 7))
    worker, left = pid_in(tmp_path / "worker"), pid_in(tmp_path / "left")
    if end == "kill":
        os.kill(worker, signal.SIGKILL)
    elif end == "stop":
        os.kill(worker if kind == "ray" else kept[0].process.pid, signal.SIGTERM)
    assert kept[0].code() == code
    assert not lives(left) and not lives(worker)


def test_a_worker_is_asked_to_stop_when_its_keeper_is_killed(tmp_path: Path) -> None:
    one = Kept(tmp_path, "slurm", 7)
    worker, left = pid_in(tmp_path / "worker"), pid_in(tmp_path / "left")
    one.process.kill()
    one.process.wait()
    until(lambda: not lives(worker))
    assert lives(left), "only the worker receives the signal"
    os.kill(left, signal.SIGKILL)  # this worker has no attempt that would have ended it
