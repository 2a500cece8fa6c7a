"""Cells that move between nodes, which share nothing but the bucket; a node is its cache."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from orchestrator.testing import SHARED, SHARED_MODULE
from tests.bucket.buckets import Bucket, BucketSweep
from tests.cli.launches import Running, records, running_heartbeats, wait_for
from tests.cli.test_survival import expected
from tests.cli.test_training_survives import CELL, weights
from tests.conftest import Sweep

ONE = """
description: one cell that counts
config: {seed: 7, count: {num_steps: 30, checkpoint_every: 5, step_s: 0.1, fail: null}}
axes: {seed: [7]}
stages: [count]
"""
WORDS = ("launcher.workers=1", "policy.grace_s=20")
STAYS = "count.fail={how: hang, step: 12, attempts: 1}"
"""The first attempt is still there when it is killed, however late that is."""


@pytest.fixture
def nodes(bucket: Bucket, tmp_path: Path) -> tuple[BucketSweep, BucketSweep]:
    """The command on two nodes, in one folder of the user's."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "one.yaml").write_text(ONE)
    return BucketSweep(folder, bucket, node="first"), BucketSweep(folder, bucket, node="second")


class Launched(Running):
    """A launch in the background on one node."""

    def __init__(self, on: BucketSweep, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
        assert on.env is not None
        monkeypatch.setenv("SWEEP_CACHE", on.env["SWEEP_CACHE"])
        super().__init__(on.folder, on.bucket.url, words)  # type: ignore[arg-type]

    def end_node(self, on: BucketSweep) -> None:
        """Kills what runs of it, as the end of its node does: first who would start something anew."""
        claim = records(on.store, "claim.json")[-1]
        beat = records(on.store, "heartbeat.json")[-1]
        self.process.kill()
        os.kill(claim["owner"]["process"]["pid"], signal.SIGKILL)
        if beat["child"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(beat["child"]["pid"], signal.SIGKILL)
        self.end()


def parents(on: BucketSweep) -> list[int | None]:
    """The step that each attempt went on from, in order."""
    starts = sorted(records(on.store, "start.json"), key=lambda start: int(start["folder"].name))
    return [start["parent"]["step"] if start["parent"] else None for start in starts]


def whole_checkpoints(on: BucketSweep) -> set[int]:
    """The steps of the checkpoints that count."""
    return {int(path.parent.name) for path in on.store.glob("payload/*/*/*/checkpoints/*/manifest.json")}


def assert_counted(on: BucketSweep, num_steps: int = 30) -> None:
    (row,) = on.json("collect", "one")
    assert row["digest"] == expected(7, num_steps)


def test_a_cell_that_started_on_one_node_goes_on_at_another(
    nodes: tuple[BucketSweep, BucketSweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nodes
    launch = Launched(first, monkeypatch, "launch", "one.yaml", *WORDS, STAYS)
    wait_for(lambda: max(whole_checkpoints(first), default=0) >= 10)
    launch.end_node(first)
    assert "1 done" in second("launch", "one.yaml", *WORDS, STAYS)
    assert parents(second)[0] is None and (parents(second)[1] or 0) >= 10
    assert_counted(second)
    assert not whole_checkpoints(second)  # they go when the stage is done, whoever's they were


@pytest.mark.long
def test_a_stop_leaves_its_last_checkpoint_in_the_store(
    nodes: tuple[BucketSweep, BucketSweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nodes
    words = (*WORDS, "count.checkpoint_every=0", "policy.checkpoint_interval_s=1000")
    launch = Launched(first, monkeypatch, "launch", "one.yaml", *words, "count.step_s=0.3")
    wait_for(lambda: [b for b in running_heartbeats(first.store) if b["phase"] == "running"], timeout_s=60)
    wait_for(lambda: first.bucket.proxy.has_seen("PUT", "metrics.jsonl"))
    launch.interrupt()
    assert launch.end()[0] == 1
    (step,) = whole_checkpoints(first)
    (end,) = records(first.store, "end.json")
    assert (end["outcome"], end["why"]) == ("released", "stopped") and step > 1
    second("launch", "one.yaml", *words)
    assert parents(second) == [None, step]


@pytest.mark.parametrize("victim", ["child", pytest.param("worker", marks=pytest.mark.long)])
def test_who_dies_in_the_middle_of_an_upload_costs_at_most_that_checkpoint(
    nodes: tuple[BucketSweep, BucketSweep], monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """A child's death costs nothing: its worker uploads on. What a worker left half uploaded never counts."""
    first, second = nodes
    proxy = first.bucket.proxy
    proxy.hangs = "checkpoints/00000010/state"
    launch = Launched(first, monkeypatch, "launch", "one.yaml", *WORDS, STAYS, "policy.retries.unknown=3")
    wait_for(lambda: proxy.has_seen("PUT", "checkpoints/00000010/state"))
    if victim == "child":
        beat = running_heartbeats(first.store)[-1]
        os.kill(beat["child"]["pid"], signal.SIGKILL)
        proxy.hangs = None
        code, said = launch.end()
        assert code == 0, said
        assert (parents(first)[1] or 0) >= 10
    else:
        launch.end_node(first)
        proxy.hangs = None
        assert whole_checkpoints(first) == {5}
        second("launch", "one.yaml", *WORDS, STAYS)
        assert parents(second) == [None, 5]
    assert_counted(second)


@pytest.mark.long
def test_a_server_that_is_gone_for_a_while_costs_no_cell(
    nodes: tuple[BucketSweep, BucketSweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away while the stage runs, and away when its product should be uploaded."""
    first, second = nodes
    proxy = first.bucket.proxy
    launch = Launched(first, monkeypatch, "launch", "one.yaml", *WORDS)
    wait_for(lambda: whole_checkpoints(first), timeout_s=60)
    proxy.is_down = True
    wait_for(lambda: len(proxy.seen) > 200 or proxy.has_seen("PUT", "output/count.txt"), timeout_s=60)
    proxy.is_down = False
    code, said = launch.end(timeout_s=120)
    if code != 0:  # the launcher looked at the wrong moment: launched again, it goes on
        second("launch", "one.yaml", *WORDS)
    assert_counted(second)
    assert len(list(second.store.glob("done/count/*"))) == 1, said


def shared(on: BucketSweep) -> str:
    (on.folder / "shared.yaml").write_text(SHARED)
    (on.folder / "shared.py").write_text(SHARED_MODULE)
    return "shared.yaml"


@pytest.mark.long
def test_a_product_that_is_damaged_in_the_store_is_made_again_and_one_here_is_fetched_again(
    nodes: tuple[BucketSweep, BucketSweep],
) -> None:
    first, second = nodes
    name = shared(first)
    first("launch", name, *WORDS, "--only", "metric=a")
    (path,) = first.store.glob("payload/common/*/1/output/x.json")
    key = path.relative_to(first.store).as_posix()
    (copy,) = Path(first.env["SWEEP_CACHE"]).rglob("output/x.json")  # type: ignore[index]
    copy.chmod(0o644)
    copy.write_text("9")
    assert "2 done" in first("launch", name, *WORDS, "--only", "metric=a,b")
    assert copy.read_text() == "0" and not list(first.store.glob("void/**/*.json"))
    first.bucket.open().put(key, b"9")
    assert "3 done" in second("launch", name, *WORDS, "--only", "metric=a,b,c")
    (void,) = first.store.glob("void/common/*.1.json")
    assert json.loads(void.read_text())["kind"] == "damaged"
    rows = {row["metric"]: row["value"] for row in second.json("collect", "shared") if "metric" in row}
    assert rows["c"] == 0


@pytest.mark.long
def test_a_reader_elsewhere_follows_a_log_and_downloads_no_product(
    nodes: tuple[BucketSweep, BucketSweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nodes
    proxy = first.bucket.proxy
    launch = Launched(first, monkeypatch, "launch", shared(first), *WORDS, "--only", "metric=a")
    assert launch.end()[0] == 0
    cell = first.json("status", "shared")["cells"][0]["cell"]
    proxy.seen.clear()
    for words in (
        ("status", "shared"),
        ("plan", "shared.yaml"),
        ("collect", "shared"),
        ("show", "shared", cell),
    ):
        second(*words)
    assert not proxy.has_seen("GET", r"payload/[^?]*output")
    second("logs", "shared", cell, "--follow")
    assert not list(Path(second.env["SWEEP_CACHE"]).rglob("output"))  # type: ignore[index]


@pytest.mark.long
def test_discard_and_retention_delete_in_the_bucket_and_here(nodes: tuple[BucketSweep, BucketSweep]) -> None:
    first, _ = nodes
    first("launch", "one.yaml", *WORDS, "count.step_s=0", "policy.keep_checkpoints=true")
    assert len(whole_checkpoints(first)) >= 1
    first("launch", "one.yaml", *WORDS)
    first("discard", "one", "seed=7", "--stage", "count", "--reason", "a bug")
    assert "1 done" in first("launch", "one.yaml", *WORDS, "count.step_s=0")
    assert {path.name.split(".")[1] for path in first.store.glob("done/count/*.json")} == {"1", "2"}
    assert parents(first) == [None, None]  # nothing of what was discarded


@pytest.mark.long
def test_a_training_that_moves_between_nodes_ends_with_bit_identical_weights(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are those of a calm training over a folder, which no bucket had a part in."""
    folder = tmp_path / "project"
    folder.mkdir()
    calm = Sweep(folder, tmp_path / "calm")
    calm("launch", *CELL, timeout_s=280)
    first, second = (BucketSweep(folder, bucket, node=node) for node in ("first", "second"))
    launch = Launched(first, monkeypatch, "launch", *CELL, "launcher.workers=1")
    wait_for(lambda: list(first.store.glob("payload/train/*/*/checkpoints/*/manifest.json")), timeout_s=240)
    launch.end_node(first)
    second("launch", *CELL, "launcher.workers=1", timeout_s=280)
    started = [s for s in records(second.store, "start.json") if "/records/train/" in str(s["folder"])]
    assert len(started) == 2 and [s["parent"] for s in started if s["parent"]]
    assert weights(second.store) == weights(calm.store) and len(weights(calm.store)) >= 2
