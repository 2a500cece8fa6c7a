"""Cells get the GPUs that end the sweep earliest, and keep the number that was first recorded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.launches import Running, records
from tests.conftest import Sweep

SWEEP = """
description: one long cell, three short ones, and a stage that they share
config: {hours: 1, gpus: 1, fail: false, axis: 0}
axes: {hours: [1, 8, 2, 3]}
stages:
  shared: {run: "own:look", reads: [axis], estimate: "own:none"}
  train: {run: "own:train", after: [shared], reads: [hours, gpus], uses: [fail], estimate: "own:cost"}
  score: {run: "own:look", after: [train]}
"""
STAGES = """
import os, pathlib, time
from orchestrator.costs import Estimate

def none(config, **_):
    return Estimate(wall_hours=0.01)

def cost(config, **_):
    hours = float(config.hours)
    return Estimate(wall_hours=hours, gpu_hours=hours, num_gpus=config.gpus)

def look(config, inputs, context):
    return [{"seen": os.environ.get("CUDA_VISIBLE_DEVICES", "all")}]

def train(config, inputs, context):
    begin_s = time.monotonic()
    time.sleep(0.2)
    if context.uses.fail:
        raise RuntimeError("it was told to")
    seen = os.environ["CUDA_VISIBLE_DEVICES"]
    return [{"gpus": seen, "begin_s": begin_s, "end_s": time.monotonic()}]
"""
MOLD = "hardware.moldable=true"
ON_SLURM = ("launcher=slurm", MOLD, "cluster.cpus_per_gpu=1")


@pytest.fixture
def cells(sweep: Sweep) -> Sweep:
    """Cells of 1, 2, 3 and 8 hours, on a machine that is said to have four GPUs."""
    (sweep.folder / "mold.yaml").write_text(SWEEP)
    (sweep.folder / "own.py").write_text(STAGES)
    sweep.env = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1,2,3", "SWEEP_STORE": str(sweep.store)}
    return sweep


def _rows(cells: Sweep) -> list[dict[str, Any]]:
    cells("collect", "mold", "--out", "rows.json")
    found: list[dict[str, Any]] = json.loads((cells.folder / "rows.json").read_text())
    return found


def _chosen(store: Path) -> dict[str, set[int]]:
    """The recorded numbers of each cell, by its axis."""
    found: dict[str, set[int]] = {}
    for claim in records(store, "claim.json"):
        found.setdefault(claim["cell"].split("-")[0], set()).add(claim.get("chosen_gpus", 0))
    return {cell: numbers - {0} for cell, numbers in found.items()}


def test_local_workers_share_the_gpus_and_each_stage_sees_its_own_alone(cells: Sweep) -> None:
    cells("launch", "mold.yaml", MOLD)
    numbers = {8: 4, 3: 2, 2: 1, 1: 1}
    assert _chosen(cells.store) == {f"hours{hours}": {number} for hours, number in numbers.items()}
    rows = _rows(cells)
    trained = [row for row in rows if row["stage"] == "train"]
    assert {row["hours"]: len(row["gpus"].split(",")) for row in trained} == numbers
    for one in trained:
        for other in trained:
            at_once = one["begin_s"] < other["end_s"] and other["begin_s"] < one["end_s"]
            if one is not other and at_once:
                assert not set(one["gpus"].split(",")) & set(other["gpus"].split(","))
    # A stage that needs no GPU sees none; one without an estimate has what `gpus_per_worker` says.
    assert {row["seen"] for row in rows if row["stage"] == "shared"} == {""}
    assert {len(row["seen"]) for row in rows if row["stage"] == "score"} == {1}


def test_the_setting_changes_no_identity(cells: Sweep) -> None:
    one, two = (cells.json("plan", "mold.yaml", *words) for words in ((), (MOLD, "--gpus", "4")))
    digests = [
        [(cell["cell"], [stage["digest"] for stage in cell["stages"]]) for cell in plan["cells"]]
        for plan in (one, two)
    ]
    assert digests[0] == digests[1]
    cells("launch", "mold.yaml", MOLD)
    assert "4 of them done" in cells("launch", "mold.yaml")


@pytest.mark.long
def test_a_cell_keeps_its_number_when_it_is_run_again(cells: Sweep) -> None:
    long = ("--only", "hours=8")
    once = ("fail=true", "policy.retries.unknown=0")
    assert cells.env is not None
    two = Sweep(cells.folder, cells.store, {**cells.env, "CUDA_VISIBLE_DEVICES": "0,1"})
    two("launch", "mold.yaml", MOLD, *once, *long, code=1)
    assert _chosen(cells.store) == {"hours8": {2}}
    status = cells.json("status", "mold")["cells"]
    assert {cell["axes"]["hours"]: cell.get("chosen_gpus") for cell in status}["8"] == 2
    assert "on 2 GPUs, as chosen for the cell" in cells("why", "mold", "hours=8")
    said = cells("plan", "mold.yaml", MOLD)  # with four GPUs it would get them all
    assert "2     1        as recorded when it first started" in said
    cells("launch", "mold.yaml", MOLD)
    assert _chosen(cells.store)["hours8"] == {2} and len(_rows(cells)) == 12


@pytest.mark.long
def test_what_another_launch_recorded_first_wins_at_the_claim(cells: Sweep) -> None:
    once = ("fail=true", "policy.retries.unknown=0")
    cells("launch", "mold.yaml", MOLD, *once, "--only", "hours=8", code=1)
    (claim,) = (path for path in cells.store.rglob("claim.json") if '"chosen_gpus":4' in path.read_text())
    # A launch on a machine with more GPUs recorded 8: this machine has four, and takes its own choice.
    claim.write_text(claim.read_text().replace('"chosen_gpus":4', '"chosen_gpus":8'))
    cells("launch", "mold.yaml", MOLD, "--only", "hours=8")
    assert _chosen(cells.store)["hours8"] == {8, 4}


@pytest.mark.long
def test_of_two_launches_at_once_the_first_record_decides(
    cells: Sweep, background: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them would give the cell of 3 hours all four GPUs, the other one two."""
    both = SWEEP.replace("after: [train]}", 'after: [train], estimate: "own:cost"}')
    (cells.folder / "mold.yaml").write_text(both)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    launches = [background("launch", "mold.yaml", MOLD, *only) for only in ((), ("--only", "hours=3"))]
    assert [launch.process.wait(60) for launch in launches] == [0, 0]
    numbers = _chosen(cells.store)
    assert all(len(found) == 1 for found in numbers.values()) and numbers["hours3"] < {2, 4}


def test_the_plan_names_the_cells_with_more_gpus_and_why(cells: Sweep) -> None:
    said = cells("plan", "mold.yaml", MOLD)  # of this machine: four
    assert "2 cells of 4 would get more GPUs than suffice" in said
    assert "2.47 hours instead of 8; the GPU-hours of all cells fill 4 GPUs for 3.5 hours" in said
    plan = cells.json("plan", "mold.yaml", MOLD, "--gpus", "64")
    assert {cell["axes"]["hours"]: cell["gpus"]["number"] for cell in plan["cells"]}["8"] == 8
    assert plan["makespan"]["hours"] < 2 < plan["makespan"]["rigid_lower_bound_hours"] == 8.01
    rigid = cells.json("plan", "mold.yaml", "--gpus", "64")
    assert rigid["makespan"]["hours"] == pytest.approx(8.01) and "gpus" not in rigid["cells"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("hardware.moldable=perhaps",), "hardware.moldable is of the wrong type"),
        (ON_SLURM, "hardware.moldable=true chooses GPUs for launcher.max_gpus, which is not set"),
        ((*ON_SLURM, "launcher.max_gpus=0"), "launcher.max_gpus is 0"),
        ((*ON_SLURM, "launcher.max_gpus=2", "gpus=4"), "a cell needs 4 GPUs, and the launch may use 2"),
        ((MOLD, "gpus=8"), "a cell needs 8 GPUs, and the launch may use 4"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_anything_is_recorded(
    cells: Sweep, words: tuple[str, ...], message: str
) -> None:
    for verb in (("plan",), ("launch",)):
        assert f"error: {message}" in cells(*verb, "mold.yaml", *words, code=2)
    assert not cells.store.exists()


def test_jobs_ask_for_the_gpus_that_were_chosen(cells: Sweep) -> None:
    words = (*ON_SLURM, "launcher.max_gpus=16", "--dry-run")
    said = cells("launch", "mold.yaml", *words)
    tasks = re.findall(r"0: (hours\d).*?--gres=gpu:(\d)", said, re.DOTALL)
    assert dict(tasks) == {"hours8": "8", "hours3": "4", "hours2": "2", "hours1": "1"}
