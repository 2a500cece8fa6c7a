"""A machine on which stages fail at once is left out for a while, and `sweep nodes` says so."""

from __future__ import annotations

import json
import os
import platform
import time

import pytest

from tests.cli.launches import records
from tests.conftest import Sweep

SWEEP = """
description: a stage that needs a GPU
config: {seed: 0}
axes: {seed: "range(0,3)"}
stages: {train: {run: "own:train", reads: [seed]}}
"""
STAGE = """
import pathlib
from orchestrator.errors import StageFailure

def train(config, inputs, context):
    if pathlib.Path(__file__).with_name("broken").exists():
        raise StageFailure("bad_node", "torch sees 0 of 8 GPUs")
    return [{"seed": config.seed}]
"""
HERE = platform.node()


@pytest.fixture
def broken(sweep: Sweep) -> Sweep:
    """A machine whose GPU does not work, after a launch whose two workers have found that out."""
    (sweep.folder / "nodes.yaml").write_text(SWEEP)
    (sweep.folder / "own.py").write_text(STAGE)
    (sweep.folder / "broken").touch()
    sweep("launch", "nodes.yaml", "launcher.workers=2", code=3)
    return sweep


def test_a_broken_machine_gets_no_more_work_until_it_is_freed(broken: Sweep) -> None:
    said = broken("launch", "nodes.yaml", code=3)
    assert f"error: no worker is started: node {HERE} is left out for 60 more minutes" in said
    assert "torch sees 0 of 8 GPUs" in said and f"sweep nodes --clear {HERE}" in said
    assert 2 <= len(records(broken.store, "claim.json")) <= 3
    (node,) = broken.json("nodes")
    assert node["left_out"] and node["cluster"] == "local" and 3500 < node["left_s"] <= 3600
    assert {each["cause"] for each in node["reports"]} == {"bad_node"}
    assert all("train attempt" in each["attempt"] for each in node["reports"])
    assert broken.json("nodes", "nodes")[0]["reports"] == node["reports"]
    assert "train attempt 1" in broken("nodes")
    (broken.folder / "broken").unlink()
    assert f"{HERE} is used again" in broken("nodes", "--clear", HERE)
    broken("launch", "nodes.yaml")
    (node,) = broken.json("nodes")
    assert not node["left_out"] and node["reports"][-1]["kind"] == "cleared"


def test_one_failure_may_be_chance_and_stops_no_launch_on_this_machine(sweep: Sweep) -> None:
    (sweep.folder / "nodes.yaml").write_text(SWEEP)
    once = STAGE.replace(".exists():", ".exists() and context.attempt == 1 and config.seed == 1:")
    (sweep.folder / "own.py").write_text(once)
    (sweep.folder / "broken").touch()
    assert "3 done" in sweep("launch", "nodes.yaml", "launcher.workers=1")
    (node,) = sweep.json("nodes")
    assert not node["left_out"] and len(node["reports"]) == 1


def test_it_comes_back_when_the_failures_are_old_by_the_stores_clock(broken: Sweep) -> None:
    (broken.folder / "broken").unlink()
    old_s = time.time() - 3590
    for path in (broken.store / "nodes").iterdir():
        # The times that records name mean nothing, and so does the clock of whoever wrote them.
        path.write_text(json.dumps({**json.loads(path.read_text()), "at": "2031-01-01T00:00:00Z"}))
        os.utime(path, (old_s, old_s))
    assert "for 0 more minutes" in broken("launch", "nodes.yaml", code=3)
    for path in (broken.store / "nodes").iterdir():
        os.utime(path, (old_s - 20, old_s - 20))
    broken("launch", "nodes.yaml")


@pytest.mark.long
def test_workers_that_run_claim_no_more_on_a_machine_that_is_left_out(sweep: Sweep) -> None:
    (sweep.folder / "nodes.yaml").write_text(SWEEP.replace("(0,3)", "(0,9)"))
    (sweep.folder / "own.py").write_text(STAGE)
    (sweep.folder / "broken").touch()
    said = sweep("launch", "nodes.yaml", "launcher.workers=4", "policy.retries.bad_node=9", code=3)
    assert "error: " in said and f"sweep nodes --clear {HERE}" in said
    # Workers that had claimed already may fail too; nobody claims after that.
    assert 2 <= len(records(sweep.store, "claim.json")) <= 5
    assert sweep.json("nodes")[0]["left_out"]


def test_a_wrong_config_is_no_fault_of_the_machine(sweep: Sweep) -> None:
    (sweep.folder / "nodes.yaml").write_text(SWEEP)
    (sweep.folder / "own.py").write_text(f"import a_module_that_is_not_there\n{STAGE}")
    sweep("launch", "nodes.yaml", code=1)
    assert sweep.json("nodes") == []


def test_with_a_quarantine_of_0_seconds_no_machine_is_left_out(broken: Sweep) -> None:
    (broken.folder / "broken").unlink()
    broken("launch", "nodes.yaml", "policy.quarantine_s=0")
    assert {*broken.json("status", "nodes")["counts"]} == {"done"}


def test_what_is_not_there_is_not_freed(broken: Sweep) -> None:
    assert f"known: {HERE}" in broken("nodes", "--clear", "elsewhere", code=2)
    assert "policy.quarantine_s is -1" in broken("launch", "nodes.yaml", "policy.quarantine_s=-1", code=2)
    assert "one sweep at most" in broken("nodes", "nodes", "other", code=2)
