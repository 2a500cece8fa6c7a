"""However an attempt ends, what it started is gone before its end is recorded, or before the next."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.entry import MARK
from orchestrator.processes import end_outlived
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from tests import forked
from tests.execution.faults import order_for
from tests.execution.stages import READS, USES
from tests.execution.waiting import lives, pid_in, until
from tests.store.builders import instance_of, ledger_at, seal, sweep_of

DAEMON = """
import os, sys, time
folder = sys.argv[1]
open(folder + "/pid.part", "w").write(str(os.getpid()))
os.rename(folder + "/pid.part", folder + "/pid")
while True:
    open(folder + "/lines", "a").write("still here\\n")
    time.sleep(0.01)
"""
STARTS = {
    "setsid": "bash -c 'setsid {python} daemon.py {output} & ",
    "nohup": "bash -c 'nohup setsid {python} daemon.py {output} >/dev/null 2>&1 & disown; ",
    "double fork": "bash -c '(setsid {python} daemon.py {output} >/dev/null 2>&1 </dev/null &) ; ",
    "no environment": "bash -c '(setsid env -i {python} daemon.py {output} &) ; ",
}
"""Ways in which a process leaves its session, its parent, and its environment."""


class Scene:
    """A worker, started as a scheduler starts one, whose stage is a command that leaves a daemon behind."""

    def __init__(self, store: Path, spec: StageSpec, **policy: object) -> None:
        (store.parent / "daemon.py").write_text(DAEMON)
        self.store, self.sweep = store, sweep_of(1, {"count": spec})
        seal(store, self.sweep)
        self.instance = instance_of(self.sweep)
        self.file = store.parent / "order.json"
        order = order_for(store, self.sweep.name, policy=policy, import_paths=(str(store.parent),))
        self.file.write_bytes(msgspec.json.encode(order))
        self.process = self.worker()

    def worker(self) -> forked.Started:
        """Starts another."""
        return forked.Started("orchestrator.execution.main", [str(self.file)])

    def output(self, attempt: int) -> Path:
        """An attempt's output folder."""
        return self.store / layout.output(self.instance, attempt)

    def daemon(self, attempt: int) -> int:
        """Waits for the process that an attempt's command left to itself."""
        return pid_in(self.output(attempt) / "pid")

    def wait_for_end(self, attempt: int) -> str:
        """Waits for the record of an attempt's end without a pause; returns its outcome."""
        end = self.store / layout.attempt(self.instance, attempt, layout.END)
        deadline_s = time.monotonic() + 60
        while not end.exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        found = ledger_at(self.store).attempt(self.instance, attempt)
        assert found is not None and found.end is not None
        return str(found.end.cause or found.end.why or found.end.outcome)


@pytest.fixture
def scenes() -> Iterator[list[Scene]]:
    """Scenes that are ended after the test."""
    made: list[Scene] = []
    yield made
    for scene in made:
        if scene.process.poll() is None:
            scene.process.kill()
        scene.process.wait()
        for file in scene.store.rglob("pid"):
            if lives(int(file.read_text())):
                os.kill(int(file.read_text()), signal.SIGKILL)


def scene_of(scenes: list[Scene], store: Path, command: str, **policy: object) -> Scene:
    scenes.append(Scene(store, StageSpec(command=command, reads=READS, uses=USES), **policy))
    return scenes[-1]


@pytest.mark.parametrize("how", STARTS)
def test_what_left_its_session_is_gone_when_a_time_limit_has_ended_the_attempt(
    store: Path, scenes: list[Scene], how: str
) -> None:
    command = f"{STARTS[how]} sleep 60'"
    scene = scene_of(scenes, store, command, limits_s={"count": 1.5}, retries={})
    assert scene.wait_for_end(1) == "timeout"  # on a slow machine maybe before the daemon is there
    pid = scene.output(1) / "pid"
    assert not (pid.exists() and pid.read_text() and lives(int(pid.read_text())))


@pytest.mark.parametrize("how", ["double fork", "no environment"])
def test_a_product_holds_nothing_that_is_still_being_written(
    store: Path, scenes: list[Scene], how: str
) -> None:
    command = f"{STARTS[how]} while [ ! -e {{output}}/lines ]; do sleep 0.01; done'"
    scene = scene_of(scenes, store, command, retries={})
    assert scene.wait_for_end(1) == "succeeded"
    assert not lives(scene.daemon(1))


@pytest.mark.parametrize("how", ["setsid", "double fork"])
def test_a_child_whose_worker_was_killed_ends_all_that_it_had_started(
    store: Path, scenes: list[Scene], how: str
) -> None:
    scene = scene_of(scenes, store, f"{STARTS[how]} sleep 60'")
    daemon = scene.daemon(1)
    scene.process.kill()
    until(lambda: not lives(daemon))
    assert not (store / layout.attempt(scene.instance, 1, layout.END)).exists()  # only its worker writes it


def test_where_nobody_survives_the_next_worker_ends_what_was_left(store: Path, scenes: list[Scene]) -> None:
    scene = scene_of(scenes, store, f"{STARTS['double fork']} sleep 60'")
    daemon = scene.daemon(1)
    beat = ledger_at(store).heartbeat(scene.instance, 1)
    until(lambda: (b := ledger_at(store).heartbeat(scene.instance, 1)) is not None and b.child is not None)
    beat = ledger_at(store).heartbeat(scene.instance, 1)
    assert beat is not None and beat.child is not None
    os.kill(scene.process.pid, signal.SIGSTOP)
    os.kill(beat.child.pid, signal.SIGKILL)
    scene.process.kill()
    scene.process.wait()
    assert lives(daemon)
    scene.process = scene.worker()
    until(lambda: (scene.output(2) / "pid").exists())
    assert not lives(daemon)


def test_a_marked_process_of_a_living_worker_and_a_foreign_mark_are_left_alone() -> None:
    me = Path("/proc/self/ns/pid").readlink().name
    start = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    gone = f"{me}/{2**22 - 1}/1"
    marks = {
        "of a living worker": (f"{me}/{os.getpid()}/{start}//n", "", True),
        "of a worker that is gone": (f"{gone}//n", "", False),
        "of another container": (f"pid:[1]/{2**22 - 1}/1//n", "", True),
        "submitted to a scheduler": (f"{gone}//n", "77", True),
        "of the scheduler's job": (f"{gone}/77/n", "77", False),
        "not ours": ("something else", "", True),
    }
    sleepers = {}
    for name, (mark, job, _) in marks.items():
        environment = {**os.environ, MARK: mark, "SLURM_JOB_ID": job}
        sleepers[name] = subprocess.Popen(["sleep", "60"], env=environment)
    try:
        end_outlived()
        alive = {name: lives(sleeper.pid) for name, sleeper in sleepers.items()}
    finally:
        for sleeper in sleepers.values():
            sleeper.kill()
            sleeper.wait()
    assert alive == {name: survives for name, (_, _, survives) in marks.items()}


def test_the_exit_codes_of_processes_that_a_stage_waits_for_are_its_own(
    store: Path, scenes: list[Scene]
) -> None:
    """Orphans come and go by the hundred beside a command that fails: nothing takes its exit code."""
    orphans = "for i in $(seq 100); do (setsid true &) ; done; sleep 0.5; exit 7"
    scene = scene_of(scenes, store, f"bash -c '{orphans}'", retries={})
    assert scene.wait_for_end(1) == "unknown"
    found = ledger_at(store).attempt(scene.instance, 1)
    assert found is not None and found.end is not None and "code 7" in found.end.message
