"""`tracker=wandb` with the real library against a server on loopback that takes runs, or does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trackers.offline import runs_in
from tests.trackers.wandb_server import WandbServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    server = WandbServer()
    for name in ("WANDB_MODE", "WANDB_DIR", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    yield server
    server.close()


def steps(lines: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """The (attempt, step) of each line of history."""
    return [(line["count/attempt"], line["count/step"]) for line in lines]


def test_every_cell_is_a_run_on_the_server_and_none_is_kept_here(two: Any, server: WandbServer) -> None:
    said = two("launch", "two.yaml", "tracker=wandb")
    assert "W&B: 2 runs in project polysweep" in said and "kept here" not in said
    assert len(server.history) == 2 and not runs_in(two.store / "sweeps/two")
    assert all(steps(lines) == [(1, n) for n in range(1, 9)] for lines in server.history.values())


@pytest.mark.long
def test_a_run_that_was_deleted_there_gets_another_id_and_its_whole_history_and_the_others_stay(
    two: Any, server: WandbServer
) -> None:
    fail = "count.fail={how: data, step: 6, attempts: 1}"
    two("launch", "two.yaml", fail, "tracker=wandb", code=1)
    first, second = sorted(server.configs)
    server.deleted.add(first)
    said = two("rerun", "two", "--yes")
    assert "W&B: 2 runs in project polysweep, of which 1 replace runs deleted there" in said
    assert "not mirrored whole" not in said and "kept here" not in said
    whole = [(1, n) for n in range(1, 6)] + [(2, n) for n in range(4, 9)]
    assert steps(server.history[f"{first}-2"]) == whole == steps(server.history[second])
    (log,) = two.store.glob("sweeps/two/logs/request-2-mirror.log")
    assert f"its run {first} was deleted in W&B" in log.read_text()
    refused = server.upserts[first]
    two("discard", "two", "seed=0", "--stage", "count", "--reason", "again")
    two("launch", "two.yaml", fail, "tracker=wandb")
    assert server.upserts[first] == refused  # the new id is remembered
    assert steps(server.history[f"{first}-2"])[len(whole) :] == [(3, n) for n in range(1, 9)]


def test_a_project_that_takes_nothing_of_ours_is_named_and_the_runs_are_kept_here(
    two: Any, server: WandbServer
) -> None:
    server.refuses = 403
    said = two("launch", "two.yaml", "tracker=wandb")
    assert "2 cells: 2 done" in said and "W&B: 2 runs kept here; upload: wandb sync" in said
    assert [len(run.history) for run in runs_in(two.store / "sweeps/two")] == [8, 8]
    (log,) = two.store.glob("sweeps/two/logs/request-1-mirror.log")
    assert "W&B takes no runs, they are kept here" in log.read_text() and "denied" in log.read_text()


@pytest.mark.long
def test_runs_that_an_outage_kept_here_are_sent_by_a_sync_once_and_go(two: Any, server: WandbServer) -> None:
    server.refuses = 403
    said = two("launch", "two.yaml", "tracker=wandb")
    assert said.count("sweep sync two --to wandb") == 2  # while it ran, and at its end
    assert "W&B" in two("sync", "two", "--to", "wandb", code=3)
    server.refuses = 0
    assert "sent 16 points and 2 results of 2 cells" in two("sync", "two", "--to", "wandb")
    whole = [(1, n) for n in range(1, 9)]
    assert [steps(lines) for lines in server.history.values()] == [whole, whole]
    assert not runs_in(two.store / "sweeps/two")
    assert "nothing was missing" in two("sync", "two", "--to", "wandb")
    # A mirror that was killed before it noted what it had sent: the server counts its lines.
    for path in two.store.glob("sweeps/two/wandb/online-*.json"):
        path.unlink()
    server.history[next(iter(server.history))].pop()
    assert "sent 1 point" in two("sync", "two", "--to", "wandb")
    assert [steps(lines) for lines in server.history.values()] == [whole, whole]
