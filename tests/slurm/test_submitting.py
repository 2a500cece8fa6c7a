"""From `sweep launch` to the last cell done, and what a second launch does meanwhile."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.cli.launches import records
from tests.slurm.sweeps import SLURM

NAME = re.compile(r"(?<=--job-name=jobs\.1\.)\w{8}")
"""What makes a job's name its own."""


def test_a_launch_returns_with_job_ids_and_its_jobs_do_each_cell_once(jobs):
    said = jobs.launch(jobs.write(cells=6))
    assert "job " in said and "6 cells in 6 tasks" in said
    jobs.until_done(6)
    jobs.assert_each_done_once(6)
    claims = records(jobs.store, "claim.json")
    assert {claim["owner"]["cluster"] for claim in claims} == {"testbed"}
    assert sorted(claim["owner"]["array_index"] for claim in claims) == list(range(6))
    assert "6 done" in jobs("reconcile", "jobs")
    assert "nothing" not in jobs("collect", "jobs")


def test_a_second_launch_while_jobs_wait_submits_nothing(jobs):
    name = jobs.write(cells=3)
    jobs.launch(name, "cluster.sbatch.hold=true")
    first = jobs.cluster.job_states()
    assert set(jobs.states().values()) == {"queued"}
    said = jobs.launch(name)
    assert "3 queued" in said and "in 3 tasks" not in said
    assert "job " not in jobs("reconcile", "jobs").replace("sweep", "")
    assert jobs.cluster.job_states() == first
    assert len(jobs.submissions()) == 1


def test_a_dry_run_prints_what_a_launch_then_submits_and_writes_nothing(jobs):
    name = jobs.write(cells=3)
    said = jobs.launch(name, "--dry-run")
    assert not jobs.store.exists() and not jobs.cluster.job_states()
    jobs.launch(name)
    script = (jobs.store / "sweeps/jobs/logs/jobs-000001/job.sh").read_text()
    assert NAME.sub("", script) in NAME.sub("", said)
    for cell in jobs.states():
        assert cell in said


@pytest.mark.parametrize(("cells", "sizes"), [(101, [101]), (102, [101, 1])])
def test_arrays_are_split_at_the_controllers_limit(jobs, cells, sizes):
    said = jobs.launch(jobs.write(cells=cells), "--dry-run")
    assert [f"{size} task" in said for size in sizes] == [True] * len(sizes)
    assert said.count("#!/bin/bash") == len(sizes)


@pytest.mark.long
def test_small_cells_share_a_job_one_after_another_or_side_by_side(jobs):
    name = jobs.write(cells=7, steps=5)
    assert "4 cells in 1 task" in jobs.launch(name, "launcher.cells_per_job=4", "--only", "seed=0,1,2,3")
    assert "3 cells in 1 task" in jobs.launch(
        name, "launcher.cells_per_job=3", "launcher.workers_per_job=3", "--only", "seed=4,5,6"
    )
    jobs.until_done(7)
    jobs.assert_each_done_once(7)
    slots = {
        claim["cell"].split("-")[0]: claim["owner"]["slot"] for claim in records(jobs.store, "claim.json")
    }
    assert {slots[f"seed{n}"] for n in range(4)} == {0}
    assert "side by side" not in jobs("status", "jobs")


def test_what_no_cluster_would_take_is_refused_before_or_by_slurm_with_nothing_queued(jobs):
    name = jobs.write()
    for words, expected in (
        (["cluster.partitions={lo: null}"], "Slurm knows no partition 'lo'"),
        (["cluster.account=nobody"], "Invalid account"),
        (["cluster.sbatch.gres=gpu:99"], "not available"),
        (["cluster=nowhere"], "unknown cluster 'nowhere'"),
        (["launcher.resources=[{only: 'seed=9', gpus: 1}]"], "unknown seed '9'"),
    ):
        assert expected in jobs.launch(name, *words, code=2)
        assert not jobs.cluster.job_states()
    assert "4 cells in 4 tasks" in jobs.launch(name, "cluster.sbatch.hold=true")


@pytest.mark.long
def test_230_cells_go_through_arrays_of_101_and_each_is_done_once(jobs):
    said = jobs.launch(jobs.write(cells=230, steps=2), "cluster.memory_gib=50")  # 20 at once: ports
    assert "101 cells in 101 tasks" in said and "28 cells in 28 tasks" in said
    jobs("reconcile", "jobs", "--wait", timeout_s=400)
    jobs.assert_each_done_once(230)
    assert len(records(jobs.store, "claim.json")) == 230


@pytest.mark.long
def test_a_program_waits_for_its_jobs_and_what_a_limit_held_back_is_submitted_meanwhile(jobs):
    name, words = jobs.write(cells=5, steps=2), [*SLURM[1:], "launcher.max_jobs=2"]
    program = (
        "from orchestrator import Sweep\n"
        f"run = Sweep.compose({name!r}, store={str(jobs.store)!r}).launch(*{words!r}, launcher='slurm')\n"
        "print(run.wait(120).counts)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=jobs.folder,
        env=jobs.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "{'done': 5}\n", done.stderr
    assert {len(each["tasks"]) for each in jobs.submissions()} <= {1, 2}
    jobs.assert_each_done_once(5)
