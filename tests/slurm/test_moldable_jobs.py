"""Jobs with the GPUs that were chosen for their cells, and jobs that start when others have rehearsed."""

from __future__ import annotations

import pytest

from tests.cli.launches import records, wait_for
from tests.launchers.own_stages import gpus_by_hours, write_moldable

GPUS = ("cluster.device=a100", "cluster.cpus_per_gpu=1", "cluster.gpus_per_node=8", "hardware.moldable=true")


@pytest.mark.long
def test_jobs_have_the_gpus_that_were_chosen_and_a_cell_keeps_its_number(jobs):
    name = write_moldable(jobs)
    hold = ("cluster.sbatch.hold=true", "--only", "hours=8,1")
    jobs.launch(name, *GPUS, "launcher.max_gpus=4", *hold)
    numbers = {each["tasks"][0][0].split("-")[0]: each["resources"] for each in jobs.submissions()}
    assert {cell: one["chosen_gpus"] for cell, one in numbers.items()} == {"hours8": 4, "hours1": 1}
    assert {cell: one["gpus_per_node"] for cell, one in numbers.items()} == {"hours8": 4, "hours1": 1}
    status = jobs.json("status", "jobs")["cells"]
    assert [cell.get("chosen_gpus") for cell in status] == [1, 4, None]
    assert "4 GPUs for each cell, as chosen" in jobs("why", "jobs", "hours=8")
    assert "2 waiting jobs cancelled" in jobs("cancel", "jobs")
    # On 16 GPUs the long cell would get 8, but it has its number.
    jobs.launch(name, *GPUS, "launcher.max_gpus=16")
    jobs.until_done(3)
    assert gpus_by_hours(jobs) == {8: 4, 1: 1, 3: 2}
    assert all("chosen_gpus" not in claim for claim in records(jobs.store, "claim.json"))


GATED = """
description: two classes of two cells, each of which is rehearsed
config: {kind: a, seed: 0}
axes: {kind: [a, b], seed: [1, 2]}
stages:
  check: {run: "own:check", reads: [kind], estimate: "own:short"}
  train: {run: "own:train", reads: [kind, seed], estimate: "own:cost", gated_by: [check]}
"""
OWN = """
from orchestrator.costs import Estimate

def short(config, **_):
    return Estimate(wall_hours=0.01, num_gpus=1)

def cost(config, **_):
    return Estimate(wall_hours=9.0 - config.seed, num_gpus=1)

def check(config, inputs, context):
    return [{"checked": config.kind}]

def train(config, inputs, context):
    return [{"trained": config.kind}]
"""


def test_jobs_that_would_wait_for_a_rehearsal_wait_in_the_queue_and_hold_no_gpus(jobs):
    (jobs.folder / "jobs.yaml").write_text(GATED)
    (jobs.folder / "own.py").write_text(OWN)
    jobs.launch("jobs.yaml", *GPUS[:3])
    first, later = jobs.submissions()
    assert [cell.partition("-")[0] for task in first["tasks"] for cell in task] == ["a.seed1", "b.seed1"]
    assert [cell.partition("-")[0] for task in later["tasks"] for cell in task] == ["a.seed2", "b.seed2"]
    job = later["after"][0].partition("_")[0]
    assert later["after"] == [f"{job}_0", f"{job}_1"]
    wait_for(lambda: jobs.counts() == {"done": 2, "queued": 2}, 40)
    array = jobs.array()
    shown = jobs.cluster.run("scontrol", "show", "job", array)
    assert "Reason=Dependency" in shown and f"Dependency=after:{job}" in shown
    for task in (0, 1):  # in place of the minutes until Slurm starts them
        jobs.cluster.run("scontrol", "update", f"jobid={array}_{task}", "dependency=")
    wait_for(lambda: jobs.counts() == {"done": 4}, 40)
