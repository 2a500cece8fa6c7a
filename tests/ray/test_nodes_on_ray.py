"""What Ray's driver makes of machines that fail, and of GPUs that were chosen for cells."""

from __future__ import annotations

import platform

import pytest

from tests.cli.launches import records
from tests.launchers.own_stages import gpus_by_hours, write_moldable
from tests.ray.sweeps import OnRay

FAILING = """
import pathlib
from orchestrator.errors import StageFailure

def train(config, inputs, context):
    if pathlib.Path("{flag}").exists():
        raise StageFailure("bad_node", "torch sees 0 of 8 GPUs")
    return [{{"seed": config.seed}}]
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
    name = write_moldable(jobs)
    gpus = ("launcher.device=a100", "launcher.gpus_per_node=4", "launcher.cpus_per_gpu=1")
    jobs.launch(name, *gpus, "hardware.moldable=true", "launcher.max_gpus=8")
    jobs.until_done(3)
    chosen = {each["tasks"][0][0].split("-")[0]: each["resources"] for each in jobs.submissions()}
    numbers = {cell: resources["chosen_gpus"] for cell, resources in chosen.items()}
    assert numbers["hours8"] == 4 and numbers["hours1"] == 1
    assert {f"hours{hours}": gpus for hours, gpus in gpus_by_hours(jobs).items()} == numbers
