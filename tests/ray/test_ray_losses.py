"""What hits drivers, workers, nodes and the head with little warning or none: no work is lost or repeated."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.cli.launches import records, wait_for
from tests.cli.test_training_survives import CELL, weights
from tests.execution.waiting import lives, parent_of
from tests.ray.sweeps import OnRay, inside

APART = "launcher.resources=[{custom: {apart: 1}}]"


def resumed(jobs: OnRay) -> float:
    """Waits until a second attempt has computed something; returns when that was."""
    wait_for(lambda: list(jobs.store.glob("payload/*/*/2/metrics.jsonl")), timeout_s=80)
    return time.monotonic()


def assert_none_was_computed_twice(jobs: OnRay, steps: int) -> None:
    """Every step of every cell was counted once, over all its attempts."""
    for cell in jobs.store.glob("payload/count/*"):
        paths = sorted(cell.glob("*/metrics.jsonl"), key=lambda path: int(path.parent.name))
        seen = [json.loads(line)["step"] for path in paths for line in path.read_text().splitlines()]
        assert seen == list(range(1, steps + 1)), cell


def log_of(jobs: OnRay, number: int = 1) -> str:
    """What a driver said."""
    return (jobs.store / f"sweeps/jobs/logs/jobs-{number:06d}/0.log").read_text()


@pytest.mark.long
def test_each_killed_process_is_replaced_at_once_and_an_orphaned_worker_saves_a_checkpoint(jobs):
    jobs.launch(jobs.write(cells=4, steps=60, step_s=0.2))
    jobs.until_checkpoints(4)
    jobs.until_running(4)
    claims = jobs.claims()
    pids = [claim["owner"]["process"]["pid"] for claim in claims]
    (childs,) = [beat["child"]["pid"] for beat in jobs.beats() if beat["folder"] == claims[1]["folder"]]
    for pid in (pids[0], childs, parent_of(pids[2]), jobs.actor_of(pids[3])):
        os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    wait_for(lambda: not lives(pids[2]) and not lives(pids[3]))
    print(f"orphans ended after {time.monotonic() - killed_s:.1f} s")
    wait_for(lambda: len(list(jobs.store.glob("payload/*/*/2/metrics.jsonl"))) == 4)
    print(f"all four went on after {time.monotonic() - killed_s:.1f} s")
    jobs.until_done(4)
    jobs.assert_each_done_once(4)
    jobs.assert_counted(60)
    ends = {(end["folder"].parent.name, end["folder"].name): end for end in jobs.ends()}
    first = [ends.get((claim["folder"].parent.name, "1"), {}) for claim in claims]
    assert [(end.get("outcome"), end.get("cause"), end.get("why")) for end in first] == [
        (None, None, None),
        ("failed", "unknown", ""),
        ("released", None, "stopped"),
        ("released", None, "stopped"),
    ]
    assert [(lost["slot"], lost["cause"]) for lost in jobs.driver()["lost"]] == [
        (claims[0]["owner"]["slot"], "node_lost")
    ]
    assert "killed by signal 9" in log_of(jobs) and len(jobs.submissions()) == 1


@pytest.mark.long
def test_cells_of_a_node_that_died_go_on_within_seconds_on_another_that_cannot_see_its_processes(jobs):
    jobs.cluster.add_nodes({"far": {"apart": 1}, "farther": {"apart": 1}}, apart=True)
    jobs.launch(jobs.write(cells=1, steps=60, step_s=0.2), APART)
    jobs.until_checkpoints(2)
    (beat,) = jobs.until_running()
    (far,) = [n for n in ("far", "farther") if inside(beat["child"]["pid"], jobs.cluster.processes[n])]
    os.kill(jobs.cluster.raylet(far), signal.SIGKILL)
    lost_s = time.monotonic()
    print(f"resumed after {resumed(jobs) - lost_s:.1f} s")
    jobs.until_done(1)
    print(f"done after {time.monotonic() - lost_s:.1f} s")
    jobs.assert_each_done_once(1)
    jobs.assert_counted(60)
    first, second = jobs.claims()
    assert second["supersedes"]["cause"] == "node_lost" and first["lease_s"] == 90
    assert "the node of worker 1 is gone" in second["supersedes"]["evidence"]
    assert "was lost" in jobs.why() and jobs.starts()[1]["parent"]["attempt"] == 1
    assert len(jobs.submissions()) == 1


@pytest.mark.long
def test_a_training_whose_node_dies_ends_with_the_weights_of_one_that_nothing_happened_to(jobs, tmp_path):
    calm = OnRay(jobs.cluster, jobs.folder, tmp_path / "calm")
    assert "1 done" in calm("launch", *CELL, *jobs.words, "--wait", timeout_s=240)
    jobs("launch", *CELL, *jobs.words)
    wait_for(lambda: list(jobs.store.glob("payload/train/*/1/checkpoints/*/manifest.json")), 120)
    (first,) = jobs.store.glob("records/train/*/1")
    worker = json.loads((first / "claim.json").read_text())["owner"]["process"]["pid"]
    os.kill(jobs.cluster.raylet(jobs.node_of(worker)), signal.SIGKILL)
    lost_s = time.monotonic()
    second = first.with_name("2") / "start.json"
    wait_for(second.exists)
    print(f"went on after {time.monotonic() - lost_s:.1f} s")
    parent = wait_for(
        lambda: json.loads(second.read_text())["parent"]
    )  # recorded again when it is taken over
    assert parent["attempt"] == 1
    jobs.until(lambda: jobs.counts("smoke") == {"done": 1}, 120)
    assert weights(jobs.store) == weights(calm.store)
    assert len(records(jobs.store, "end.json")) == len(records(calm.store, "end.json")) + 1


@pytest.mark.long
def test_a_node_that_is_drained_gives_its_cells_back_with_a_checkpoint_and_gets_no_others(jobs):
    jobs.cluster.add_nodes({"far": {"apart": 1}})
    jobs.launch(jobs.write(cells=1, steps=103, step_s=0.2), APART)
    jobs.until_checkpoints(1)
    jobs.cluster.add_nodes({"farther": {"apart": 1}})
    jobs.cluster.drain("far", 60)
    drained_s = time.monotonic()
    wait_for(jobs.ends, 20)
    print(f"released after {time.monotonic() - drained_s:.1f} s")
    print(f"resumed after {resumed(jobs) - drained_s:.1f} s")
    worker = jobs.claims()[1]["owner"]["process"]["pid"]
    assert jobs.node_of(worker) == "farther"
    jobs.until_done(1)
    assert_none_was_computed_twice(jobs, 103)
    jobs.assert_each_done_once(1)
    released, _ = jobs.ends()
    assert (released["outcome"], released["why"]) == ("released", "stopped")
    assert "is about to go" in log_of(jobs) and not jobs.driver()["lost"]


@pytest.mark.long
def test_a_killed_driver_is_started_anew_and_its_workers_save_checkpoints_first(jobs):
    jobs.launch(jobs.write(cells=2, steps=83, step_s=0.2), "policy.grace_s=8")
    jobs.until_checkpoints(2)
    (driver,) = jobs.driver_pids()
    os.kill(driver, signal.SIGKILL)
    killed_s = time.monotonic()
    wait_for(lambda: len(jobs.ends()) == 2)
    print(f"released after {time.monotonic() - killed_s:.1f} s")
    print(f"resumed after {resumed(jobs) - killed_s:.1f} s")
    assert jobs.driver_pids() not in ([], [driver])
    jobs.launch("jobs.yaml", "policy.grace_s=8")  # which the new one's job holds
    jobs.until_done(2)
    assert_none_was_computed_twice(jobs, 83)
    jobs.assert_each_done_once(2)
    assert [end["why"] for end in jobs.ends()][:2] == ["stopped", "stopped"]
    assert len(jobs.submissions()) == 1 and jobs.driver()["restart"] == 1
    assert {lost["slot"] for lost in jobs.driver()["lost"]} == {None}


@pytest.mark.long
def test_a_driver_whose_shell_was_killed_ends_its_workers_and_reconcile_goes_on(jobs):
    jobs.launch(jobs.write(cells=2, steps=83, step_s=0.2))
    jobs.until_checkpoints(2)
    (shell,) = jobs.driver_pids(shells=True)
    os.kill(shell, signal.SIGKILL)
    jobs.until_job("FAILED")
    assert "1 task" in jobs("reconcile", "jobs")
    assert len(jobs.submissions()) == 2
    (over,) = jobs.closings()
    assert (over["word"], over["cause"]) == ("FAILED", "unknown")
    assert "its driver ended with exit code 137: Killed" in over["detail"]
    wait_for(lambda: len(jobs.driver_pids()) == 1)
    jobs.until_done(2)
    assert_none_was_computed_twice(jobs, 83)
    jobs.assert_each_done_once(2)
    assert "ended FAILED" in jobs.why()


@pytest.mark.long
def test_a_job_that_somebody_stopped_is_started_again_by_a_launch_alone(jobs):
    name = jobs.write(cells=2, steps=63, step_s=0.2)
    jobs.launch(name)
    jobs.until_checkpoints(2)
    jobs.post(f"/api/jobs/{jobs.submissions()[0]['name']}/stop")
    jobs.until_job("STOPPED")
    wait_for(lambda: len(jobs.ends()) == 2)
    assert {(end["outcome"], end["why"]) for end in jobs.ends()} == {("released", "stopped")}
    said = jobs("reconcile", "jobs", code=1)
    assert "jobs failed by cancelled: 2 cells" in said and len(jobs.submissions()) == 1
    assert "stopped by its user or an administrator" in jobs.why()
    assert "1 task" in jobs.launch(name)
    jobs.until_done(2)
    assert_none_was_computed_twice(jobs, 63)
    jobs.assert_each_done_once(2)


@pytest.mark.long
@pytest.mark.parametrize("soon", [True, False])
def test_after_the_head_was_lost_a_launch_is_enough(jobs, soon):
    # On a busy machine the head takes half a minute to come back; the cells must not be done by then.
    name = jobs.write(cells=3, steps=400, step_s=0.2)
    jobs.launch(name)
    jobs.until_checkpoints(3)
    jobs.cluster.kill("head")
    lost_s = time.monotonic()
    if soon:  # while its nodes still wait for it; it knows them no more, nor they it
        jobs.cluster.start_head()
    else:
        for _ in range(3):
            assert set(jobs.states().values()) <= {"running", "unknown"}
        assert "does not answer" in jobs("launch", name, *jobs.words, code=3)
        jobs.until(lambda: set(jobs.states().values()) == {"unknown"})
        print(f"workers ended after {time.monotonic() - lost_s:.1f} s")
        jobs.cluster.heal()
    back_s = time.monotonic()
    # Its silence proves nothing before settle_s.
    jobs.until(lambda: "1 task" in jobs.launch(name), timeout_s=120)
    jobs.cluster.heal()
    print(f"resumed {resumed(jobs) - back_s:.1f} s after the head was back")
    assert len(jobs.driver_pids()) == 1
    jobs.launch(name)
    jobs.until_done(3, timeout_s=180)
    jobs.assert_each_done_once(3)
    assert_none_was_computed_twice(jobs, 400)
    assert len(jobs.submissions()) == 2
    (over,) = jobs.closings()[:1]
    assert (over["word"], over["cause"]) == ("VANISHED", "node_lost")
    assert "lists all jobs" in jobs.why() and "and not this one, twice" in jobs.why()
