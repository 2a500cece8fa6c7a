"""Jobs with the GPUs that were chosen for their cells, and a cell that keeps its number."""

from __future__ import annotations

import json

from tests.cli.launches import records

SWEEP = """
description: one long cell and two short ones
config: {hours: 1}
axes: {hours: [1, 8, 3]}
stages: {train: {run: "own:train", reads: [hours], estimate: "own:cost"}}
"""
STAGES = """
import os
from orchestrator.costs import Estimate

def cost(config, **_):
    return Estimate(wall_hours=float(config.hours), num_gpus=1)

def train(config, inputs, context):
    return [{"gpus": len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))}]
"""
GPUS = ("cluster.device=a100", "cluster.cpus_per_gpu=1", "cluster.gpus_per_node=8", "hardware.moldable=true")


def test_jobs_have_the_gpus_that_were_chosen_and_a_cell_keeps_its_number(jobs):
    (jobs.folder / "jobs.yaml").write_text(SWEEP)
    (jobs.folder / "own.py").write_text(STAGES)
    hold = ("cluster.sbatch.hold=true", "--only", "hours=8,1")
    jobs.launch("jobs.yaml", *GPUS, "launcher.max_gpus=4", *hold)
    numbers = {each["tasks"][0][0].split("-")[0]: each["resources"] for each in jobs.submissions()}
    assert {cell: one["chosen_gpus"] for cell, one in numbers.items()} == {"hours8": 4, "hours1": 1}
    assert {cell: one["gpus_per_node"] for cell, one in numbers.items()} == {"hours8": 4, "hours1": 1}
    status = jobs.json("status", "jobs")["cells"]
    assert [cell.get("chosen_gpus") for cell in status] == [1, 4, None]
    assert "4 GPUs for each cell, as chosen" in jobs("why", "jobs", "hours=8")
    assert "2 waiting jobs cancelled" in jobs("cancel", "jobs")
    # On 16 GPUs the long cell would get 8, but it has its number.
    jobs.launch("jobs.yaml", *GPUS, "launcher.max_gpus=16")
    jobs.until_done(3)
    rows = json.loads(
        jobs("collect", "jobs", "--out", "rows.json") and (jobs.folder / "rows.json").read_text()
    )
    found = {row["hours"]: row["gpus"] for row in rows}
    assert found == {8: 4, 1: 1, 3: 2}
    assert all("chosen_gpus" not in claim for claim in records(jobs.store, "claim.json"))
