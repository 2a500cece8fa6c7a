"""The longest cells start first, and the plan tells how long the whole takes on a cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.sweep import Cell
from orchestrator.execution.assignment import share
from tests.execution.faults import order_for

SWEEP = """
description: cells of different length
config: {hours: 0, gpus: 1}
axes: {hours: [1, 4, 2, 3]}
stages:
  first: {command: "true", reads: [hours], estimate: "own:first"}
  second: {command: "true", after: [first], estimate: "own:second"}
"""
HOOKS = """
from orchestrator.costs import Estimate

def first(config, **_):
    return Estimate(wall_hours=0.0)

def second(config, **_):
    return Estimate(wall_hours=float(config.hours), gpu_hours=float(config.hours), num_gpus=config.gpus)
"""


@pytest.fixture
def lengths(sweep: Any) -> Any:
    """Four cells whose second stage has an estimate of 1 to 4 hours."""
    (sweep.folder / "lengths.yaml").write_text(SWEEP)
    (sweep.folder / "own.py").write_text(HOOKS)
    return sweep


def _started(store: Path) -> list[str]:
    """The cells in the order in which the one worker began to work on them."""
    (log,) = store.glob("**/request-1-worker-0.log")
    return list(dict.fromkeys(re.findall(r"(hours\d)\S* \S+: attempt 1$", log.read_text(), re.MULTILINE)))


def test_workers_start_with_the_longest_cell(lengths: Any) -> None:
    lengths("launch", "lengths.yaml", "launcher=local", "launcher.workers=1")
    assert _started(lengths.store) == ["hours4", "hours3", "hours2", "hours1"]


def test_of_selected_cells_the_longest_starts_first(lengths: Any) -> None:
    lengths("launch", "lengths.yaml", "--only", "hours=1,2,3", "launcher.workers=1")
    assert _started(lengths.store) == ["hours3", "hours2", "hours1"]


@pytest.mark.parametrize(
    ("gpus", "per_node", "hours", "bound"), [(1, 8, 10, 10), (2, 8, 5, 5), (3, 1, 4, 4), (8, 8, 4, 4)]
)
def test_the_plan_tells_how_long_the_whole_takes_on_a_cluster(
    lengths: Any, gpus: int, per_node: int, hours: float, bound: float
) -> None:
    found = lengths.json("plan", "lengths.yaml", "--gpus", str(gpus), "--gpus-per-node", str(per_node))
    assert found["makespan"] == {
        "hours": hours,
        "lower_bound_hours": bound,
        "rigid_lower_bound_hours": bound,
        "ratio": hours / bound,
        "num_gpus": gpus,
    }
    assert "makespan" not in lengths.json("plan", "lengths.yaml")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "the hook own:second returned NoneType"),
        ("Estimate(wall_hours=float('nan'))", "the hook own:second returned wall_hours=nan"),
        ("Estimate(wall_hours=-1)", "the hook own:second returned wall_hours=-1"),
        ("Estimate(wall_hours='4 h')", "the hook own:second returned wall_hours='4 h'"),
        ("Estimate(num_gpus=-2)", "the hook own:second returned num_gpus=-2"),
    ],
)
def test_an_estimate_that_cannot_be_compared_is_refused(lengths: Any, returned: str, message: str) -> None:
    (lengths.folder / "own.py").write_text(f"{HOOKS}\ndef second(config, **_):\n    return {returned}\n")
    assert message in lengths("plan", "lengths.yaml", "--gpus", "8", code=2)
    assert message in lengths("launch", "lengths.yaml", code=2)
    assert not lengths.store.exists()


def test_estimates_that_are_wrong_change_the_time_and_the_same_seed_gives_the_same_time(lengths: Any) -> None:
    words = ["simulate", "lengths.yaml", "--gpus", "2", "--estimate-error", "0.3"]
    found = lengths.json(*words, "--seed", "1")
    assert found == lengths.json(*words, "--seed", "1")
    assert found["makespan"]["hours"] != lengths.json(*words, "--seed", "2")["makespan"]["hours"]
    assert found["makespan"]["hours"] >= found["makespan"]["lower_bound_hours"]
    assert lengths.json("simulate", "lengths.yaml", "--gpus", "2")["makespan"]["hours"] == 5
    assert "2 GPUs, 8 a node: 5 h 0 min" in lengths("simulate", "lengths.yaml", "--gpus", "2")


def test_cells_that_may_have_more_gpus_than_they_need_end_earlier(lengths: Any) -> None:
    found = lengths.json("simulate", "lengths.yaml", "--gpus", "16", "--moldable")["makespan"]
    assert found["hours"] < found["rigid_lower_bound_hours"] == 4


def test_an_error_that_is_out_of_range_is_refused(lengths: Any) -> None:
    words = ["simulate", "lengths.yaml", "--gpus", "2", "--estimate-error=-1"]
    assert "0 to 3; 0.3 means wrong by 30 %" in lengths(*words, code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "a cluster has at least one GPU"),
        (["--gpus", "8", "--gpus-per-node", "2"], "a cell needs 4 GPUs in one node"),
        (["--gpus", "2"], "a cell needs 4 GPUs in one node"),
    ],
)
def test_a_cluster_on_which_a_cell_fits_nowhere_is_refused(
    lengths: Any, words: list[str], message: str
) -> None:
    assert message in lengths("plan", "lengths.yaml", "gpus=4", *words, code=2)


def _cells(*names: str) -> list[Cell]:
    return [Cell(id=name, axes={}, columns={}, config={}, stage_digests=()) for name in names]


@pytest.mark.parametrize(
    ("given", "slot", "expected"),
    [
        pytest.param(None, 1, "cdab", id="cells in the order of the sweep are divided"),
        pytest.param(("a", "b", "c", "d"), 1, "cdab", id="also when they are named"),
        pytest.param(("d", "b", "a"), 0, "dba", id="ordered by length, from the front"),
        pytest.param(("d", "b", "a"), 1, "bad", id="the second worker takes the second longest"),
        pytest.param(("b", "x", "a"), 1, "ab", id="a cell that the revision lacks is left out"),
        pytest.param((), 1, "", id="no cells"),
    ],
)
def test_each_worker_begins_at_its_own_cell(
    given: tuple[str, ...] | None, slot: int, expected: str, tmp_path: Path
) -> None:
    order = order_for(tmp_path, "s", cells=given, slot=slot, num_slots=2)
    assert "".join(cell.id for cell in share(_cells(*"abcd"), order)) == expected


def test_failures_and_preemption_cost_time_and_the_result_says_where_it_went(lengths: Any) -> None:
    flaky = {"name": "flaky", "count": 0.2, "cause": "communication"}
    table = {"source": "ours", "gpu_hours": 1, "faults": [flaky]}
    (lengths.folder / "faults.json").write_text(json.dumps(table))
    words = ["simulate", "lengths.yaml", "--gpus", "2", "--failures", "faults.json"]
    words.append("policy.retries.communication=9")
    found = lengths.json(*words)
    assert found["makespan"]["hours"] > 5
    assert found["cells"] == {"done": 4} and found["attempts"]["succeeded"] == 8
    assert found["faults"]["flaky"] == found["attempts"]["failed"] > 0
    goodput = found["goodput"]
    assert sum(goodput["gpu_hours"].values()) == pytest.approx(goodput["held_gpu_hours"])
    assert found["waste"] == {"communication": pytest.approx(goodput["gpu_hours"]["lost"])}
    assert goodput["share"] == pytest.approx(10 / goodput["held_gpu_hours"])
    assert f"{found['faults']['flaky']} flaky" in lengths(*words)


def test_a_stage_that_would_be_preempted_for_ever_is_refused(lengths: Any) -> None:
    words = ["simulate", "lengths.yaml", "--gpus", "2", "--preempt-every"]
    assert "would never end, such as second" in lengths(*words, "3h", code=2)
    assert "a time such as 4h, 30m or 90s" in lengths(*words, "often", code=2)
    assert lengths.json(*words, "5h")["makespan"]["hours"] == 5


def test_the_order_of_the_sweep_takes_longer(lengths: Any) -> None:
    words = ["simulate", "lengths.yaml", "--gpus", "2"]
    assert lengths.json(*words, "--grid-order")["makespan"]["hours"] == 6
    assert "in the order of the sweep" in lengths(*words, "--grid-order")


def test_a_fault_that_can_strike_nothing_is_refused_and_a_time_that_is_not_known_is_named(
    lengths: Any,
) -> None:
    words = ["simulate", "lengths.yaml", "--gpus", "2", "--failures", "faults.json"]
    for given, message in (
        ({"stage": "secnd"}, "unknown stage 'secnd'"),
        ({"axes": {"hour": "1"}}, "no cell"),
    ):
        fault = {"name": "bad row", "cause": "data", "after_s": 1, **given}
        table = {"source": "ours", "gpu_hours": 1, "faults": [fault]}
        (lengths.folder / "faults.json").write_text(json.dumps(table))
        assert message in lengths(*words, code=2)
    (lengths.folder / "lengths.yaml").write_text(SWEEP.replace(', estimate: "own:second"', ""))
    assert "4 stages without an estimate counted as no time" in lengths(*words[:4])
    assert lengths.json(*words[:4])["num_without_estimate"] == 4
