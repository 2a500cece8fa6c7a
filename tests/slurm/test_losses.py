"""What hits jobs without warning: nodes, processes, memory and code that go away."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.launches import records, wait_for
from tests.execution.waiting import lives
from tests.slurm.meanwhile import Meanwhile
from tests.slurm.sweeps import OnSlurm

GREEDY = """
import time


def greedy(config, inputs, context):
    held = []
    for megabytes in range(0, 2400, 50):
        held.append(b"x" * (50 << 20))
        time.sleep(0.1)
    time.sleep(3)
"""
HUNGRY = """
def hungry(config, inputs, context):
    if context.attempt < 2:
        raise MemoryError("not enough")
"""
WORD = """
def word(config, inputs, context):
    return [{"word": "old"}]
"""


def worker_of(jobs: OnSlurm) -> int:
    """The process of the last worker of a sweep of one cell."""
    claim = max(records(jobs.store, "claim.json"), key=lambda claim: int(claim["folder"].name))
    pid: int = claim["owner"]["process"]["pid"]
    return pid


def sruns_of(jobs: OnSlurm) -> list[int]:
    """The processes of `srun` of the test's jobs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"srun" and str(jobs.store).encode() in words:
            found.append(int(process.name))
    return found


@pytest.mark.long
def test_the_job_of_a_lost_node_goes_on_elsewhere_whatever_is_launched_meanwhile(jobs):
    words = (jobs.write(cells=1, steps=120, step_s=0.2),)
    jobs.launch(*words)
    jobs.until_checkpoints(2)
    task = jobs.task()
    with Meanwhile(jobs, words):
        jobs.cluster.lose("node1")
        jobs.until_job("PENDING", task)
        jobs.until(lambda: "waits to be started anew after NODE_FAIL" in jobs.why())
        jobs.wake()
        jobs.until_done(1)
    jobs.assert_each_done_once(1)
    jobs.assert_counted(120)
    _, second = jobs.starts()
    assert second["parent"]["attempt"] == 1  # nothing up to its checkpoint was computed again
    assert "after attempt 1 was lost" in jobs.why()


@pytest.mark.long
def test_a_worker_whose_node_was_given_up_stops_when_its_job_goes_on_elsewhere(jobs):
    words = (jobs.write(cells=1, steps=200, step_s=0.2), "policy.lease_s=6")
    jobs.launch(*words)
    jobs.until_checkpoints(2)
    task, zombie = jobs.task(), worker_of(jobs)
    with Meanwhile(jobs, words):
        jobs.cluster.kill("slurmd.node1")
        jobs.until_job("PENDING", task)
        assert lives(zombie)
        jobs.wake()
        jobs.until(lambda: not lives(zombie))
        assert jobs.cluster.job_states()[task] == "RUNNING"  # it did not take the other one along
        jobs.until_done(1)
    assert [(end["outcome"], end["why"]) for end in jobs.ends()] == [
        ("released", "superseded"),
        ("succeeded", ""),
    ]
    jobs.assert_each_done_once(1)
    jobs.assert_counted(200)
    assert "before it was started anew (node_lost)" in jobs.why()


@pytest.mark.long
def test_a_killed_stage_is_tried_again_in_the_same_job_and_a_killed_worker_by_reconcile(jobs):
    jobs.launch(jobs.write(cells=1, steps=60, step_s=0.1))
    jobs.until_checkpoints(2)
    task = jobs.task()
    os.kill(jobs.beats()[0]["child"]["pid"], signal.SIGKILL)
    wait_for(lambda: len(jobs.starts()) == 2 and jobs.beats())
    os.kill(worker_of(jobs), signal.SIGKILL)
    [end] = jobs.ends()
    assert end["cause"] == "unknown" and "killed by SIGKILL" in jobs.why()
    jobs.until_job("", task)
    jobs.until(lambda: jobs.counts() == {"lost": 1})
    assert f"job {task} ended FAILED on node1" in jobs.why()
    assert "1 cell in 1 task" in jobs("reconcile", "jobs")
    assert "task 0: Killed" in jobs.closings()[0]["detail"]
    jobs.until_done(1)
    jobs.assert_each_done_once(1)
    jobs.assert_counted(60)
    assert all(start["parent"] for start in jobs.starts()[1:]) and len(jobs.starts()) == 3


@pytest.mark.long
def test_a_killed_srun_ends_its_job_and_reconcile_goes_on_from_the_checkpoint(jobs):
    jobs.launch(jobs.write(cells=1, steps=60, step_s=0.2))
    jobs.until_checkpoints(2)
    task, worker = jobs.task(), worker_of(jobs)
    for pid in sruns_of(jobs):
        os.kill(pid, signal.SIGKILL)
    jobs.until_job("", task)
    jobs.until(lambda: not lives(worker))
    jobs.until(lambda: "ended FAILED on node1: signal 9" in jobs.why())
    assert "1 cell in 1 task" in jobs("reconcile", "jobs")
    jobs.until_done(1)
    assert jobs.steps() == list(range(1, 61))
    jobs.assert_each_done_once(1)


@pytest.mark.long
@pytest.mark.parametrize("retries", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_job_that_used_too_much_memory_asks_for_twice_as_much_and_gives_up_when_retries_are_spent(
    jobs, retries
):
    jobs.write_stages(GREEDY)
    name = jobs.write(cells=1, stage="greedy")
    jobs.launch(name, "cluster.memory_gib=0.3", f"policy.retries.oom_host={retries}")
    for number in range(1, retries + 3):
        task = jobs.task()
        jobs.until(lambda number=number: len(records(jobs.store, "claim.json")) == number)
        jobs.until_job("", task)
        jobs.until(lambda task=task: f"job {task} ended FAILED" in jobs.why())
        said = jobs("reconcile", "jobs", code=None)
    assert [s["resources"]["memory_gib"] for s in jobs.submissions()] == [0.3, 0.6, 1.2][: retries + 2]
    assert "failed by oom_host" in said
    assert {cell["cause"] for cell in jobs.json("status", "jobs")["cells"]} == {"oom_host"}
    assert "used more host memory than it had asked for" in jobs.why()
    assert "exceeded memory limit" in jobs("logs", "jobs", "seed=0", "--job")


@pytest.mark.long
def test_a_stage_without_enough_memory_waits_for_a_job_with_twice_as_much(jobs):
    jobs.write_stages(HUNGRY)
    jobs.launch(jobs.write(cells=1, stage="hungry"), "policy.retries.oom_host=0")
    jobs.until_job("")
    [end] = jobs.ends()
    assert end["cause"] == "oom_host"
    assert "its next job asks for twice as much" in jobs.why()
    jobs("reconcile", "jobs")
    jobs.until_done(1)
    assert [s["resources"]["memory_gib"] for s in jobs.submissions()] == [1.0, 2.0]
    assert [start["remedies"] for start in jobs.starts()] == [{"oom_host": [rung, 1]} for rung in (0, 1)]


def test_jobs_run_the_code_at_launch_whatever_becomes_of_the_checkout(jobs):
    jobs.write_stages(WORD)
    jobs.launch(jobs.write(cells=1, stage="word"), "cluster.sbatch.hold=true")
    jobs.write_stages(WORD.replace("old", "new"))
    jobs.cluster.run("scontrol", "release", jobs.task())
    jobs.until_done(1)
    assert jobs.products()[0]["rows"] == [{"word": "old"}]


@pytest.mark.long
def test_a_job_whose_code_was_damaged_runs_nothing_and_a_launch_mends_it(jobs):
    jobs.write_stages(WORD)
    name = jobs.write(cells=1, stage="word")
    jobs.launch(name, "cluster.sbatch.hold=true")
    [path] = (jobs.store / "code").glob("*/*/mine.py")
    path.chmod(0o644)
    path.write_text(WORD.replace("old", "damaged"))
    task = jobs.task()
    jobs.cluster.run("scontrol", "release", task)
    jobs.until_job("", task)
    assert "mine.py has other content than recorded" in str(jobs.reasons()) + jobs.why()
    assert "jobs failed by code" in jobs("reconcile", "jobs", code=1)
    assert "the snapshot in the store is damaged" in jobs("logs", "jobs", "seed=0", "--job")
    assert not records(jobs.store, "claim.json")
    jobs("reconcile", "jobs", code=1)
    assert [over["cause"] for over in jobs.closings()] == ["code"] and len(jobs.submissions()) == 1
    jobs.until(lambda: jobs.cluster.run("sacct", "-nPX", "-j", task, "--format=ExitCode") == "6:0")
    jobs.launch(name)
    jobs.until_done(1)
    assert jobs.products()[0]["rows"] == [{"word": "old"}]


@pytest.mark.parametrize("hours", [24, pytest.param(0, marks=pytest.mark.long)])
def test_a_node_that_fails_its_check_twice_is_left_out_until_that_expires(jobs, hours):
    name = jobs.write(cells=2)
    check = """cluster.node_check='test "$SLURMD_NODENAME" != node1 || { echo no GPU >&2; exit 1; }'"""
    jobs.launch(name, check, f"launcher.bad_node_hours={hours}", f"policy.quarantine_s={3600 * hours}")
    jobs.until(lambda: not jobs.cluster.job_states())
    assert jobs.counts() == {"pending": 2} and not records(jobs.store, "claim.json")
    assert "ended EXITED on node1: the node's check failed" in jobs.why() and "no GPU" in jobs.why()
    jobs("reconcile", "jobs")
    assert [over["cause"] for over in jobs.closings()] == ["bad_node", "bad_node"]
    assert [s["exclude"] for s in jobs.submissions()] == [[], ["node1"] if hours else []]
    script = (jobs.store / "sweeps/jobs/logs/jobs-000002/job.sh").read_text()
    assert ("--exclude=node1" in script) == bool(hours)
    if hours:
        jobs.until_done(2)
        jobs.assert_each_done_once(2)


@pytest.mark.long
def test_jobs_that_find_nothing_to_do_are_not_submitted_for_ever(jobs):
    name = jobs.write(cells=2)
    fail = "count.fail={how: chance, step: 3, attempts: 9}"
    jobs.launch(name, fail, "policy.retries.unknown=0", "--only", "seed=0")
    jobs.until(lambda: not jobs.cluster.job_states())
    # what is shown goes by the last launch, under which seed 0 has retries left; its own jobs have none
    jobs.launch(name, fail, "policy.retries.unknown=5", "--only", "seed=1", "cluster.sbatch.hold=true")
    for _ in range(6):
        said = jobs("reconcile", "jobs", code=None)
        jobs.until(lambda: len(jobs.cluster.job_states()) == 1)  # that of seed 1, which is held
    of_seed_0 = [each for each in jobs.submissions() if each["tasks"][0][0].startswith("seed0")]
    assert len(of_seed_0) == 4
    assert "jobs failed by unknown: 1 cell" in said and "nothing was left to do" in said
