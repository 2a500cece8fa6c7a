"""A budget is hard: real workers on pretended GPUs save and end at its limit, and a larger one goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.store.ledger import open_ledger
from tests.cli.launches import records

HOURS = "policy.budget.gpu_hours={:.8f}"


@pytest.fixture
def with_gpus(slow: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The slow sweep on a machine whose launcher sees two GPUs; its stages use none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return slow


def spent_s(sweep: Any) -> float:
    """Return the GPU-seconds that the sweep has spent."""
    found: float = sweep.json("status", "slow", "--spent")["budget"]["spent_gpu_hours"]
    return 3600 * found


def test_at_the_limit_stages_save_and_end_and_a_larger_budget_loses_nothing(with_gpus: Any) -> None:
    words = ("policy.lease_s=3", "policy.checkpoint_interval_s=1", "--only", "seed=0,1")
    words = (*words, "count.num_steps=600", "count.checkpoint_every=100")
    said = with_gpus("launch", "slow.yaml", *words, HOURS.format(2.5 / 3600), code=1)
    assert "blocked" in said and "held back: 2 cells. " in said and "of policy.budget.gpu_hours=" in said
    whys = {end["why"] for end in records(with_gpus.store, "end.json") if end["outcome"] == "released"}
    assert whys == {"budget"}
    assert 1.5 <= spent_s(with_gpus) < 2 * 30.0  # by how much it may overrun is a test of its own
    (why,) = {
        cell["reason"] for cell in with_gpus.json("status", "slow")["cells"] if cell["state"] == "blocked"
    }
    assert "policy.budget.gpu_hours" in why and "sweep launch slow policy.budget.gpu_hours=" in why
    logs = [path.read_text().splitlines() for path in with_gpus.store.glob("payload/*/*/1/metrics.jsonl")]
    with_gpus("launch", "slow.yaml", *words, "count.step_s=0.001", "policy.budget.gpu_hours=1")
    assert with_gpus.json("status", "slow")["counts"] == {"done": 2, "pending": 4}
    steps = [record["step"] for record in parents(with_gpus.store)]
    # A stage that was stopped saved first.
    assert sorted(steps) == sorted(json.loads(lines[-1])["step"] for lines in logs) and min(steps) > 0


def parents(store: Any) -> list[dict[str, Any]]:
    """Return the checkpoints from which attempts went on."""
    starts = [json.loads(path.read_text()) for path in store.glob("records/*/*/*/start.json")]
    return [start["parent"] for start in starts if start["parent"]]


@pytest.mark.long
def test_two_launches_at_once_overrun_by_at_most_one_checkpoint_interval_a_worker(
    with_gpus: Any, background: Any
) -> None:
    limit_s, interval_s, num_workers = 5.0, 1.0, 4
    words = ("policy.lease_s=3", f"policy.checkpoint_interval_s={interval_s}", "count.num_steps=100")
    words = ("launch", "slow.yaml", *words, HOURS.format(limit_s / 3600))
    open_ledger(str(with_gpus.store), create=True, at="")
    both = [background(*words) for _ in range(2)]
    for launch in both:
        code, output = launch.end()
        assert code == 1, output
    assert spent_s(with_gpus) <= limit_s + num_workers * (interval_s + 1.0)
    assert not any((end["cause"]) for end in records(with_gpus.store, "end.json"))


def test_a_launch_that_costs_too_much_is_refused_and_records_nothing(with_gpus: Any) -> None:
    with_gpus("launch", "slow.yaml", "count.num_steps=3", "--only", "seed=0")
    before = sorted(path for path in with_gpus.store.rglob("*.json"))
    said = with_gpus("launch", "slow.yaml", "count.num_steps=3", "policy.budget.gpu_hours=0.00001", code=2)
    assert "error: the forecast is" in said and "are spent" in said and "--budget" in said
    assert sorted(path for path in with_gpus.store.rglob("*.json")) == before
    assert "is past" in with_gpus("launch", "slow.yaml", "policy.budget.until='2020-01-01T00:00Z'", code=2)
    with_gpus("launch", "slow.yaml", "count.num_steps=3", "policy.budget.gpu_hours=1")


def test_a_sweep_without_gpus_is_bound_by_time_alone(slow: Any) -> None:
    slow("launch", "slow.yaml", "count.num_steps=2", "policy.budget.gpu_hours=0")
    assert slow.json("status", "slow")["counts"] == {"done": 6}


@pytest.mark.parametrize("held", [1, 2])
def test_a_plan_counts_the_gpus_that_workers_hold_as_the_launch_and_the_ledger_do(
    with_gpus: Any, held: int
) -> None:
    words = ("slow.yaml", "count.num_steps=3", f"launcher.gpus_per_worker={held}", "launcher.workers=1")
    with_gpus("launch", *words, "--only", "seed=0")
    (found,) = with_gpus.json("status", "slow", "--spent")["spent"]
    plan = with_gpus.json("plan", *words, "--budget", "policy.budget.gpu_hours=0.000001")
    assert plan["spent_gpu_hours"] == pytest.approx(found["total"] / 3600)
    (product,) = [json.loads(path.read_text()) for path in (with_gpus.store / "done").rglob("*.json")]
    assert plan["needed_gpu_hours"] == pytest.approx(5 * held * product["seconds"] / 3600)
    total = f"{plan['spent_gpu_hours'] + plan['needed_gpu_hours']:.4g}"
    said = with_gpus("launch", *words, "policy.budget.gpu_hours=0.000001", code=2)
    assert f"the forecast is {total} GPU-hours" in said


def test_where_no_worker_holds_a_gpu_the_plan_is_for_other_hardware_and_says_so(slow: Any) -> None:
    words = ("slow.yaml", "--budget", "policy.budget.gpu_hours=0")
    assert "workers of this launch hold no GPUs" in slow("plan", *words)
    assert not slow.json("plan", *words)["holds_gpus"]
    assert "policy.budget" not in slow("plan", "slow.yaml", "policy.budget.gpu_hours=0")


def test_plan_names_the_cells_to_drop_so_that_the_rest_fits(with_gpus: Any) -> None:
    with_gpus("launch", "slow.yaml", "count.num_steps=3", "--only", "seed=0")
    plan = with_gpus.json("plan", "slow.yaml", "--budget", "count.num_steps=3", "policy.budget.gpu_hours=1")
    assert plan["fits"] and plan["drop"] == []
    each_s = 3600 * plan["needed_gpu_hours"] / 5
    limit = plan["spent_gpu_hours"] + 3.5 * each_s / 3600
    words = ("slow.yaml", "--budget", "count.num_steps=3", f"policy.budget.gpu_hours={limit:.9f}")
    plan = with_gpus.json("plan", *words)
    assert not plan["fits"] and plan["fits_without"]
    assert len(plan["drop"]) == plan["claims_lost"] == 2
    assert "without 2 cells it fits; lost: 2 of 6 rows" in with_gpus("plan", *words)
