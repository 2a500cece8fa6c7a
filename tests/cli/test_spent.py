"""What a sweep cost: real workers, two GPUs that the launcher is given, and a worker that is killed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.launches import records, running_heartbeats, wait_for
from tests.cli.test_survival import kill_worker


@pytest.fixture
def with_gpus(slow: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The slow sweep on a machine whose launcher sees two GPUs; its stages use none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return slow


@pytest.mark.long
def test_held_gpu_time_is_divided_whole_and_a_kill_loses_what_came_after_the_checkpoint(
    with_gpus: Any, background: Any
) -> None:
    words = ("count.checkpoint_every=100", "policy.lease_s=3")  # a heartbeat each second, no checkpoint
    launch = background("launch", "slow.yaml", *words)
    wait_for(lambda: [beat for beat in running_heartbeats(with_gpus.store) if (beat["step"] or 0) > 10])
    kill_worker(with_gpus.store)
    code, output = launch.end()
    assert code == 0, output
    data = with_gpus.json("status", "slow", "--spent")
    (found,) = data["spent"]
    assert found["unit"] == "gpu_seconds"
    assert found["num_workers"] == 3  # one was replaced
    assert sum(found["parts"].values()) == pytest.approx(found["total"], abs=1e-3)
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    assert found["parts"]["unknown"] < 0.1
    # Six cells of 30 steps of 0.05 s each; what was lost came again.
    assert 9.0 <= found["parts"]["compute"] < 30.0
    assert found["lost_by"] == {"node_lost": pytest.approx(found["parts"]["lost"])}
    assert found["parts"]["lost"] > 0.1
    workers = [worker["seconds"] for worker in records_of_workers(with_gpus.store)]
    assert sum(workers) - 1e-3 <= found["total"] <= sum(workers) + 3.0  # a heartbeat of the killed one
    said = with_gpus("status", "slow", "--spent")
    assert "GPU-hours held by 3 workers" in said and "lost by node_lost" in said
    with_gpus("report", "slow")
    page = (with_gpus.store / "sweeps/slow/report/report.md").read_text()
    assert "Held GPU-hours" in page and "node\\_lost" in page


def records_of_workers(store: Any) -> list[dict[str, Any]]:
    """Read the records of all workers."""
    return [json.loads(path.read_text()) for path in store.glob("sweeps/*/workers/*.json")]


def test_workers_without_gpus_are_counted_in_worker_seconds_and_idle_ones_too(slow: Any) -> None:
    slow("launch", "slow.yaml", "launcher.workers=2", "count.num_steps=2")
    (found,) = slow.json("status", "slow", "--spent")["spent"]
    assert found["unit"] == "worker_seconds"
    assert found["by_stage"][""]["start"] > 0
    assert set(found["by_stage"]) == {"", "count"}


def test_a_store_of_an_earlier_version_shows_what_is_known_and_invents_nothing(slow: Any) -> None:
    slow("launch", "slow.yaml", "launcher.workers=2", "count.num_steps=2")
    for path in slow.store.glob("sweeps/*/workers/*.json"):
        path.unlink()
    for path in slow.store.glob("records/*/*/*/end.json"):
        end = json.loads(path.read_text())
        del end["spent"]
        path.write_text(json.dumps(end))
    seconds = sum(end["seconds"] for end in records(slow.store, "end.json"))
    (found,) = slow.json("status", "slow", "--spent")["spent"]
    assert found["parts"]["unknown"] == pytest.approx(seconds)
    assert found["total"] == pytest.approx(seconds)


def test_spent_is_about_the_whole_sweep(slow: Any) -> None:
    slow("launch", "slow.yaml", "launcher.workers=2", "count.num_steps=1")
    assert "--spent is about the whole sweep" in slow("status", "slow", "--spent", "--only", "seed=0", code=2)
