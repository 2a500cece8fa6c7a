"""What Ray's driver makes of machines that fail, and of GPUs that were chosen for cells."""

from __future__ import annotations

import platform

import pytest

from tests.cli.launches import records
from tests.ray.sweeps import OnRay

FAILING = """
import pathlib
from orchestrator.errors import StageFailure

def train(config, inputs, context):
    if pathlib.Path("{flag}").exists():
        raise StageFailure("bad_node", "torch sees 0 of 8 GPUs")
    return [{{"seed": config.seed}}]
"""
MOLD = """
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


@pytest.mark.long
def test_the_driver_starts_no_worker_on_a_machine_that_is_left_out_until_it_is_freed(jobs: OnRay) -> None:
    flag = jobs.folder / "broken"
    flag.touch()
    jobs.write_stages(FAILING.format(flag=flag))
    name = jobs.write(cells=3, stage="train")
    jobs.launch(name, "policy.retries.bad_node=9", "launcher.max_workers=1", "--detach")
    here = platform.node()
    jobs.until(lambda: (found := jobs.json("nodes")) and found[0]["left_out"])
    log = jobs.store / "sweeps/jobs/logs/jobs-000001/0.log"
    jobs.until(lambda: f"node {here} is left out for" in log.read_text())
    # All nodes of the test bed are this machine, so that the worker waits.
    claims = len(records(jobs.store, "claim.json"))
    jobs.until(lambda: "0 workers run" in jobs.driver()["text"])
    assert len(records(jobs.store, "claim.json")) == claims
    flag.unlink()
    jobs("nodes", "--clear", here)
    jobs.until_done(3)
    assert "no node is left out any more" in log.read_text()


@pytest.mark.long
def test_workers_have_the_gpus_that_were_chosen_for_their_cells(jobs: OnRay) -> None:
    (jobs.folder / "jobs.yaml").write_text(MOLD)
    (jobs.folder / "own.py").write_text(STAGES)
    gpus = ("launcher.device=a100", "launcher.gpus_per_node=4", "launcher.cpus_per_gpu=1")
    jobs.launch("jobs.yaml", *gpus, "hardware.moldable=true", "launcher.max_gpus=8")
    jobs.until_done(3)
    chosen = {each["tasks"][0][0].split("-")[0]: each["resources"] for each in jobs.submissions()}
    numbers = {cell: resources["chosen_gpus"] for cell, resources in chosen.items()}
    assert numbers["hours8"] == 4 and numbers["hours1"] == 1
    jobs("collect", "jobs", "--out", "rows.csv")
    found = {}
    for line in (jobs.folder / "rows.csv").read_text().splitlines()[1:]:
        words = line.split(",")
        found[f"hours{words[1]}"] = int(words[-1])
    assert found == numbers
