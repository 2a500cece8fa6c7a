"""A launch survives the death of any of its processes: nothing is lost, every product exists once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store import layout
from orchestrator.store.ledger import open_ledger
from orchestrator.testing import checkpoints, counted, records, running_heartbeats, wait_for
from orchestrator.trackers.base import history
from tests.execution.waiting import lives


def expected(seed: int, num_steps: int = 30) -> str:
    return counted(seed, num_steps)


def assert_all_done_once(sweep, name: str = "slow") -> None:
    status = sweep.json("status", name)
    assert status["counts"] == {"done": 6}
    done = list((sweep.store / "done").rglob("*.json"))
    assert len(done) == 6
    assert not list((sweep.store / "void").rglob("*.json"))
    rows = {int(row["seed"]): row["digest"] for row in sweep.json("collect", name)}
    assert rows == {seed: expected(seed) for seed in range(6)}


def worker_of(beat: dict[str, Any]) -> int:
    pid: int = json.loads((beat["folder"] / "claim.json").read_text())["owner"]["process"]["pid"]
    return pid


def stopped(store: Path, whom: Callable[[dict[str, Any]], int]) -> dict[str, Any] | None:
    """Freezes the worker or the child of an attempt whose stage still runs then; returns its heartbeat."""
    beats = running_heartbeats(store)
    for beat in random.sample(beats, len(beats)):
        with contextlib.suppress(ProcessLookupError):  # an attempt of a worker that was killed before
            os.kill(whom(beat), signal.SIGSTOP)
            payload = store / "payload" / beat["folder"].relative_to(store / "records")
            if lives(child_of(beat)) and not (payload / layout.OUTCOME).exists():
                return beat
            os.kill(whom(beat), signal.SIGCONT)
    return None


def child_of(beat: dict[str, Any]) -> int:
    pid: int = beat["child"]["pid"]
    return pid


def kill_worker(store: Path) -> None:
    """Kills the worker of an attempt whose stage runs."""
    os.kill(worker_of(wait_for(lambda: stopped(store, worker_of))), signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_its_attempt_is_resumed_in_the_same_launch(slow, background):
    launch = background("launch", "slow.yaml")
    wait_for(lambda: checkpoints(slow.store))
    kill_worker(slow.store)
    code, output = launch.end()
    assert code == 0, output
    assert_all_done_once(slow)
    superseding = [claim for claim in records(slow.store, "claim.json") if claim["supersedes"]]
    assert [claim["supersedes"]["cause"] for claim in superseding] == ["node_lost"]
    assert "is gone" in superseding[0]["supersedes"]["evidence"]


@pytest.mark.long
def test_the_child_of_a_killed_worker_ends_too(slow, background):
    launch = background("launch", "slow.yaml", "launcher.workers=1")
    beat = wait_for(lambda: running_heartbeats(slow.store))[0]
    kill_worker(slow.store)
    wait_for(lambda: not lives(beat["child"]["pid"]))
    assert launch.end()[0] == 0


DIES_ONCE = """
import os, pathlib, signal, sys
if "orchestrator.execution.fork_server" in sys.modules and not os.path.exists("died"):
    pathlib.Path("died").touch()
    os.kill(os.getpid(), signal.SIGKILL)

def main(config, inputs, context):
    return [{"value": config.seed}]
"""


def test_a_fork_server_that_dies_while_it_is_asked_for_a_worker_is_replaced(sweep):
    (sweep.folder / "mine.py").write_text(DIES_ONCE)
    stage = '{run: "mine:main", reads: [seed], preload: [mine]}'
    (sweep.folder / "one.yaml").write_text(f"config: {{seed: 1}}\nstages: {{mine: {stage}}}\n")
    sweep("launch", "one.yaml", "launcher.workers=1")
    assert (sweep.folder / "died").exists()
    assert sweep.json("status", "one")["counts"] == {"done": 1}


def test_a_killed_child_is_one_failed_attempt_and_is_retried_from_its_checkpoint(slow, background):
    launch = background("launch", "slow.yaml")
    wait_for(lambda: checkpoints(slow.store))
    os.kill(child_of(wait_for(lambda: stopped(slow.store, child_of))), signal.SIGKILL)
    code, output = launch.end()
    assert code == 0, output
    assert_all_done_once(slow)
    failed = [end for end in records(slow.store, "end.json") if end["outcome"] == "failed"]
    assert len(failed) == 1
    assert "SIGKILL" in failed[0]["message"]


def test_after_the_launcher_is_killed_its_workers_release_and_another_launch_finishes(slow, background):
    launch = background("launch", "slow.yaml", "count.step_s=0.2")
    wait_for(lambda: list(slow.store.glob("payload/*/*/*/metrics.jsonl")))
    claims = records(slow.store, "claim.json")
    launch.process.kill()
    for claim in claims:
        wait_for(lambda pid=claim["owner"]["process"]["pid"]: not lives(pid))
    ends = [end for end in records(slow.store, "end.json") if end["outcome"] == "released"]
    assert {end["why"] for end in ends} == {"stopped"}
    slow("launch", "slow.yaml", "count.step_s=0.01")
    assert_all_done_once(slow)


def test_one_ctrl_c_checkpoints_and_releases_and_the_next_launch_goes_on_from_there(slow, background):
    launch = background("launch", "slow.yaml", "count.step_s=0.2")
    wait_for(lambda: list(slow.store.glob("payload/*/*/*/metrics.jsonl")))
    launch.interrupt()
    code, output = launch.end()
    assert code == 1
    assert "stopping" in output
    ends = [end for end in records(slow.store, "end.json") if end["outcome"] == "released"]
    assert ends
    assert {end["why"] for end in ends} == {"stopped"}
    assert not [end for end in records(slow.store, "end.json") if end["outcome"] == "failed"]
    states = {cell["state"] for cell in slow.json("status", "slow")["cells"]}
    assert "released" in states
    slow("launch", "slow.yaml", "count.step_s=0.01")
    assert_all_done_once(slow)
    resumed = [start for start in records(slow.store, "start.json") if start["parent"]]
    assert resumed
    ledger = open_ledger(str(slow.store))
    for instance in ledger.revision("slow", 1).sweep.stages.values():
        steps = [row["step"] for row in history(ledger, instance, ledger.numbers(instance)[-1])]
        assert steps == list(range(1, 31))  # metrics follow the chain of parents, each step once


def test_two_ctrl_c_end_everything_at_once_and_lose_nothing_that_was_recorded(slow, background):
    launch = background("launch", "slow.yaml", "policy.grace_s=600", "count.step_s=1.5")
    beats = wait_for(lambda: running_heartbeats(slow.store))
    launch.interrupt_twice()
    code, _ = launch.end()
    assert code == 1
    for beat in beats:
        wait_for(lambda pid=beat["child"]["pid"]: not lives(pid))
    slow("launch", "slow.yaml", "count.step_s=0.01")
    assert_all_done_once(slow)


@pytest.mark.long
def test_a_ctrl_c_while_the_libraries_are_still_loading_starts_nothing_and_leaves_nobody(sweep, background):
    (sweep.folder / "heavy.py").write_text("import time\ntime.sleep(4)\ndef main(*_):\n    return []\n")
    (sweep.folder / "heavy.yaml").write_text(
        "config: {seed: 0}\naxes: {seed: 'range(0,4)'}\n"
        "stages: {act: {run: 'heavy:main', reads: [seed], preload: [heavy]}}\n"
    )
    launch = background("launch", "heavy.yaml")
    wait_for(lambda: list(sweep.store.glob("sweeps/heavy/requests/*.json")))
    time.sleep(0.7)
    launch.interrupt()
    code, output = launch.end()
    assert code == 1
    assert "stopping" in output
    assert not records(sweep.store, "claim.json")
    assert "4 done" in sweep("launch", "heavy.yaml")


def test_a_detached_launch_returns_at_once_and_goes_on_in_a_session_of_its_own(slow):
    output = slow("launch", "slow.yaml", "--detach", "count.step_s=600")  # nobody can wait for its end
    assert "background" in output
    pid = int(output.split("process ")[1].split(",")[0])
    assert os.getsid(pid) == pid
    os.kill(pid, signal.SIGKILL)
    slow("launch", "slow.yaml", "--detach", "count.step_s=0.01")
    wait_for(lambda: slow.json("status", "slow")["counts"] == {"done": 6})
    assert_all_done_once(slow)


def test_two_launches_at_once_share_the_work_and_end_by_the_common_result(slow, background):
    launches = [background("launch", "slow.yaml") for _ in range(2)]
    for launch in launches:
        code, output = launch.end()
        assert code == 0, output
    assert_all_done_once(slow)
    assert len(records(slow.store, "claim.json")) == 6


def test_a_cancel_stops_the_running_cells_and_keeps_the_others_from_starting(slow, background):
    launch = background("launch", "slow.yaml", "count.step_s=0.2")
    wait_for(lambda: running_heartbeats(slow.store))
    assert "cancelled 6 cells" in slow("cancel", "slow")
    code, output = launch.end()
    assert code == 1
    assert "6 cancelled" in output
    ends = records(slow.store, "end.json")
    assert {(end["outcome"], end["why"]) for end in ends} == {("released", "cancelled")}
    slow("launch", "slow.yaml", "count.step_s=0.01")
    assert_all_done_once(slow)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(12))
def test_random_kills_of_worker_child_and_launcher_never_lose_or_double_a_product(slow, background, seed):
    chance = random.Random(seed)
    for _ in range(4):
        launch = background("launch", "slow.yaml", "policy.retries.unknown=50", "policy.retries.node_lost=50")
        time.sleep(chance.uniform(0.6, 2.5))
        match chance.choice(["worker", "child", "launcher"]):
            case "launcher":
                launch.process.kill()
            case "worker" if running_heartbeats(slow.store):
                kill_worker(slow.store)
            case "child" if beats := running_heartbeats(slow.store):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(beats[-1]["child"]["pid"], signal.SIGKILL)
            case _:
                pass
        if launch.process.poll() is None:
            launch.process.kill()
        launch.end()
    slow("launch", "slow.yaml", "policy.retries.unknown=50", "policy.retries.node_lost=50")
    assert_all_done_once(slow)


LEAVES = """
import os, sys, time
folder = sys.argv[1]
if os.fork():
    time.sleep(60)
os.setsid()
if os.fork():
    os._exit(0)
os.execve(sys.executable, [sys.executable, "-c", f'''
import os, time
open({folder!r} + "/pid.part", "w").write(str(os.getpid()))
os.rename({folder!r} + "/pid.part", {folder!r} + "/pid")
time.sleep(120)
'''], {})
"""


@pytest.fixture
def leaving(sweep):
    """A sweep of one command that leaves a process behind without parent, session and environment."""
    (sweep.folder / "leaves.py").write_text(LEAVES)
    (sweep.folder / "leave.yaml").write_text(
        "config: {seed: 0}\naxes: {seed: 'range(0,1)'}\n"
        "stages: {act: {command: 'python leaves.py {output}', reads: [seed]}}\n"
    )
    return sweep


def left_behind(store: Path, attempt: int) -> int:
    files = wait_for(lambda: list(store.glob(f"payload/act/*/{attempt}/output/pid")))
    return int(files[0].read_text())


def test_what_a_killed_worker_and_its_child_leave_behind_is_gone_before_the_next_attempt(leaving, background):
    launch = background("launch", "leave.yaml", "policy.retries.node_lost=5")
    daemon = left_behind(leaving.store, 1)
    child = wait_for(lambda: running_heartbeats(leaving.store))[0]["child"]["pid"]
    (claim,) = records(leaving.store, "claim.json")
    worker = claim["owner"]["process"]["pid"]
    os.kill(worker, signal.SIGSTOP)
    os.kill(child, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    left_behind(leaving.store, 2)
    assert not lives(daemon)
    launch.interrupt_twice()
    launch.end()


def test_two_ctrl_c_leave_no_process_that_has_left_its_session(leaving, background):
    waits = LEAVES.replace(
        "    time.sleep(60)", "    import signal; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    )
    (leaving.folder / "leaves.py").write_text(waits)  # else the first Ctrl-C may end all before the second
    launch = background("launch", "leave.yaml", "policy.grace_s=600")
    daemon = left_behind(leaving.store, 1)
    launch.interrupt_twice()
    code, output = launch.end()
    assert code == 1 and "Warning" not in output, output
    assert not lives(daemon)
