"""Rule 5: who may write, when a superseded attempt notices, and that an end comes after every process's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.core.failure import Cause
from orchestrator.core.records import End, Heartbeat
from orchestrator.core.sweep import StageInstance
from orchestrator.processes import end_attempt
from orchestrator.provenance import is_gone, process_of
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger
from tests.execution.faults import Running, Start, finish, order_for
from tests.execution.stages import spec
from tests.execution.waiting import lives, pid_in, until
from tests.store.builders import claim, instance_of, ledger_at, make_product, seal, sweep_of


class Scene:
    """A worker whose stage runs and waits for a file."""

    def __init__(
        self, store: Path, start: Start, function: str, *, waits: bool = True, **policy: object
    ) -> None:
        sweep = sweep_of(1, {"count": spec(function)}, num_steps=3)
        seal(store, sweep)
        self.store, self.go = store, store.parent / "go"
        self.ledger: Ledger = ledger_at(store)
        self.instance: StageInstance = instance_of(sweep)
        self.order = order_for(store, sweep.name, env={"TEST_GO": str(self.go)}, policy=policy)
        self.worker: Running = start(self.order)
        self.child = pid_in(self.folder(1) / "runs") if waits else 0

    def folder(self, attempt: int) -> Path:
        return self.store / layout.payload(self.instance, attempt)

    def end(self, attempt: int = 1) -> End:
        """The end of an attempt after its worker ended by itself."""
        assert self.worker.wait() == 0, self.worker.output
        found = self.ledger.attempt(self.instance, attempt)
        assert found is not None and found.end is not None, self.worker.output
        return found.end


def test_a_worker_that_sees_a_later_attempt_stops_its_child_and_is_released(
    store: Path, start: Start
) -> None:
    scene = Scene(store, start, "waiting")
    scene.ledger.claim(scene.instance, 2, claim(supersedes=1))
    until(lambda: not lives(scene.child))
    scene.ledger.end(scene.instance, 2, End(nonce="x", outcome="released", why="stopped"))
    scene.go.touch()
    assert (scene.end().outcome, scene.end().why) == ("released", "superseded")


def test_a_worker_that_sees_a_product_stops_its_child_and_is_released(store: Path, start: Start) -> None:
    scene = Scene(store, start, "waiting")
    product = make_product(scene.ledger, scene.instance, attempt=9)
    assert (scene.end().outcome, scene.end().why) == ("released", "superseded")
    assert scene.ledger.product(scene.instance, 1) == (product, "")


def test_a_child_sees_a_later_attempt_at_its_next_checkpoint_though_its_worker_is_frozen(
    store: Path, start: Start
) -> None:
    scene = Scene(store, start, "waiting", lease_s=60.0)
    os.kill(scene.worker.process.pid, signal.SIGSTOP)
    scene.ledger.claim(scene.instance, 2, claim(supersedes=1))
    scene.go.touch()
    until(lambda: not lives(scene.child))
    saved = sorted(path.name for path in (scene.folder(1) / layout.CHECKPOINTS).iterdir())
    assert saved == ["00000001"] and not list((scene.folder(1) / layout.OUTPUT).iterdir())
    scene.ledger.end(scene.instance, 2, End(nonce="x", outcome="released", why="stopped"))
    scene.worker.go_on()
    assert (scene.end().outcome, scene.end().why) == ("released", "superseded")


def test_an_error_of_a_superseded_attempt_is_no_failure(store: Path, start: Start) -> None:
    """So does any error of a fenced attempt: its budget is not touched."""
    scene = Scene(store, start, "crashing", lease_s=60.0)
    scene.ledger.claim(scene.instance, 2, claim(supersedes=1))
    scene.go.touch()
    scene.ledger.end(scene.instance, 2, End(nonce="x", outcome="failed", cause=Cause.CODE))
    assert (scene.end().outcome, scene.end().why) == ("released", "superseded")


def test_a_child_and_its_own_children_exit_when_their_worker_is_killed(store: Path, start: Start) -> None:
    scene = Scene(store, start, "waiting_with_a_grandchild")
    grandchild = pid_in(scene.folder(1) / "scratch/pid")
    scene.worker.process.kill()
    until(lambda: not lives(scene.child))
    until(lambda: not lives(grandchild))
    # Only the worker writes the end of an attempt.
    assert not (store / layout.attempt(scene.instance, 1, layout.END)).exists()


def test_an_end_is_written_only_when_no_process_of_the_attempt_is_left(store: Path, start: Start) -> None:
    """A grandchild ignores SIGTERM and goes on writing when its parent has finished."""
    sweep = sweep_of(1, {"count": spec("forking")})
    seal(store, sweep)
    instance = instance_of(sweep)
    worker = start(order_for(store, sweep.name))
    grandchild = pid_in(store / layout.payload(instance, 1) / "pid")
    end = store / layout.attempt(instance, 1, layout.END)
    while not end.exists():
        assert worker.process.poll() is None, worker.output
        time.sleep(0.001)
    assert not lives(grandchild)
    assert worker.wait() == 0, worker.output


def test_ending_an_attempt_ends_those_that_ignore_being_asked() -> None:
    code = "import os,signal,time; signal.signal(15, 1); print('on', flush=True); os.fork(); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    assert end_attempt("", leader=process.pid) is True
    assert process.wait(60) == -9
    process.stdout.close()


def test_a_stop_is_passed_on_and_the_stage_ends_as_released(store: Path, start: Start) -> None:
    scene = Scene(store, start, "waiting")
    scene.worker.process.terminate()
    assert (scene.end().outcome, scene.end().why) == ("released", "stopped")
    scene.go.touch()
    finish(start, scene.order)
    last = scene.ledger.attempt(scene.instance, 2)
    assert last is not None and last.start is not None and last.start.parent is not None
    assert (last.start.parent.attempt, last.start.parent.step) == (1, 1)


def test_a_stage_that_does_not_stop_in_its_grace_is_killed_and_released(store: Path, start: Start) -> None:
    scene = Scene(store, start, "crashing", grace_s=1.0)  # it never asks whether to stop
    scene.worker.process.terminate()
    assert (scene.end().outcome, scene.end().why) == ("released", "stopped")
    assert not lives(scene.child)


def test_a_stage_that_hangs_over_its_limit_is_killed_and_fails_by_timeout(store: Path, start: Start) -> None:
    # On a slow machine the limit may be over before the stage is called.
    scene = Scene(store, start, "crashing", waits=False, limits_s={"count": 4.0}, retries={})
    assert (scene.end().outcome, scene.end().cause) == ("failed", Cause.TIMEOUT)
    runs = scene.folder(1) / "runs"
    assert not (runs.exists() and runs.read_text() and lives(int(runs.read_text())))


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("raise", Cause.CODE),
        ("data", Cause.DATA),
        ("nan", Cause.NAN),
        ("memory", Cause.OOM_HOST),
        ("exit", Cause.UNKNOWN),
        ("kill", Cause.UNKNOWN),
    ],
)
def test_a_child_that_dies_in_any_way_becomes_an_end_with_a_cause(
    store: Path, start: Start, how: str, cause: Cause
) -> None:
    sweep = sweep_of(1, fail={"how": how, "step": 2, "attempts": 1})
    seal(store, sweep)
    finish(start, order_for(store, sweep.name, policy={"retries": {}}))
    first = ledger_at(store).attempt(instance_of(sweep), 1)
    assert first is not None and first.end is not None
    assert (first.end.outcome, first.end.cause) == ("failed", cause)
    assert first.end.message and "Traceback" not in first.end.message


def test_heartbeats_count_up_and_name_the_child(store: Path, start: Start) -> None:
    scene = Scene(store, start, "waiting")

    def beat() -> Heartbeat:
        found = scene.ledger.heartbeat(scene.instance, 1)
        assert found is not None
        return found

    until(lambda: beat().child is not None and beat().step == 1)
    first = beat()
    assert first.child == process_of(scene.child) and is_gone(first.child) is False
    until(lambda: beat().counter >= first.counter + 3)
    scene.go.touch()
    assert scene.end().outcome == "succeeded"
    assert is_gone(first.child) is True


ENDING = """
import multiprocessing, os, time
from orchestrator.processes import adopt_orphans, end_attempt

def lead(pipe):
    os.setsid()
    pipe.send("leads")
    time.sleep(60)

adopt_orphans()
for _ in range(3):
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=lead, args=(its,))
    process.start()
    mine.recv()
    assert end_attempt("", leader=process.pid)
    process.join()
    mine.close(), its.close()
    print(process.exitcode, len(multiprocessing.active_children()))
    del process
    print(len(os.listdir("/proc/self/fd")))
"""


def test_the_exit_code_of_an_attempts_child_is_left_for_its_worker_and_nothing_of_it_stays_open() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60)
    codes, handles = done.stdout.splitlines()[::2], done.stdout.splitlines()[1::2]
    assert codes == ["-9 0"] * 3, done.stdout + done.stderr
    assert len(handles) == 3 and len(set(handles)) == 1
