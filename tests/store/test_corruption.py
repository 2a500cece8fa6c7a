"""Records cut short, overwritten with garbage or of another kind: named, never a traceback, never in the way.

A launch or rerun then finishes, or says why it cannot.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.core.sweep import Input
from orchestrator.store import layout
from tests.conftest import Sweep
from tests.store.builders import counted

COUNT = """
description: counts
expect_cells: 3
config: {seed: 0, count: {num_steps: 2, checkpoint_every: 1, step_s: 0, fail: null}}
axes:
  seed: {a: {seed: 1}, b: {seed: 2}, bad: {seed: 3, count.fail: {how: data, step: 2, attempts: 1}}}
stages: [count]
"""

GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "binary": lambda data: b"\x00\xff\xfe" + data[:20],
    "another kind": lambda data: b'{"surprise": [1, 2, 3]}',
    "a list": lambda data: b"[]",
    "nested deeply": lambda data: b'{"at":' + b"[" * 100_000,
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose sweep was launched: two cells done, one failed."""
    root = tmp_path_factory.mktemp("launched")
    sweep = Sweep(root, root / "store")
    (root / "counts.yaml").write_text(COUNT)
    sweep("launch", "counts.yaml", "launcher.workers=1", code=1)
    return root


@pytest.fixture
def copied(launched: Path, tmp_path: Path) -> Sweep:
    """A copy of it that a test may harm."""
    shutil.copytree(launched, tmp_path / "copy")
    return Sweep(tmp_path / "copy", tmp_path / "copy/store")


def digest_of(sweep: Sweep, seed: str) -> str:
    cells = sweep.json("status", "counts")["cells"]
    stages = next(cell["stages"] for cell in cells if cell["axes"]["seed"] == seed)
    return str(stages[0]["digest"])


def cell_of(sweep: Sweep, seed: str) -> dict[str, object]:
    return next(c for c in sweep.json("status", "counts")["cells"] if c["axes"]["seed"] == seed)


def assert_all_done(sweep: Sweep) -> None:
    assert [cell["state"] for cell in sweep.json("status", "counts")["cells"]] == ["done"] * 3
    for seed, value in (("a", 1), ("b", 2), ("bad", 3)):
        digest = digest_of(sweep, seed)
        done = sorted((sweep.store / "done/count").glob(f"{digest}.*"))[-1]
        attempt = json.loads(done.read_text())["attempt"]
        product = sweep.store / layout.payload(Input("count", "", digest), attempt) / "output/count.txt"
        assert product.read_text() == counted(value)


FOLDER = "a folder"
ONE = ["cut short"]
ALL = [pytest.param(kind, marks=() if kind in ONE else pytest.mark.long) for kind in (*GARBAGE, FOLDER)]


def spoil(path: Path, how: str) -> None:
    """Put garbage in the place of a record, or a folder, as a copy that went wrong does."""
    if how == FOLDER:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(GARBAGE[how](path.read_bytes()))


@pytest.mark.parametrize("garbage", ALL)
@pytest.mark.parametrize("record", [layout.CLAIM, layout.START, layout.HEARTBEAT, layout.END])
def test_a_record_of_a_failed_attempt_that_cannot_be_read_is_named_and_does_not_stop_a_rerun(
    copied: Sweep, record: str, garbage: str
) -> None:
    digest = digest_of(copied, "bad")
    path = copied.store / layout.attempt(Input("count", "", digest), 1, record)
    spoil(path, garbage)
    copied("status", "counts")
    if record != layout.HEARTBEAT:  # of an attempt that has ended nobody reads it
        said = copied("why", "counts", "seed=bad")
        assert record in said and "unreadable" in said
    copied("rerun", "counts", "--only", "seed=bad", "--yes", "launcher.workers=1")
    assert_all_done(copied)


@pytest.mark.parametrize("garbage", ALL)
def test_a_done_record_that_cannot_be_read_is_named_and_made_again_by_a_launch(
    copied: Sweep, garbage: str
) -> None:
    path = copied.store / layout.done(Input("count", "", digest_of(copied, "a")), 1)
    spoil(path, garbage)
    cell = cell_of(copied, "a")
    assert cell["state"] == "pending" and path.name in str(cell["reason"])
    assert path.name[:12] in copied("status", "counts")
    copied("rerun", "counts", "--only", "seed!=b", "--yes", "launcher.workers=1")
    assert_all_done(copied)


@pytest.mark.parametrize("garbage", [*ALL[:-1], FOLDER])
def test_a_void_that_cannot_be_read_still_counts(copied: Sweep, garbage: str) -> None:
    copied("discard", "counts", "seed=a", "--stage", "count", "--reason", "a test")
    path = copied.store / layout.void(Input("count", "", digest_of(copied, "a")), 1)
    spoil(path, garbage)
    cell = cell_of(copied, "a")
    assert cell["state"] == "pending" and path.name in str(cell["reason"])
    copied("rerun", "counts", "--only", "seed!=b", "--yes", "launcher.workers=1")
    assert_all_done(copied)


@pytest.mark.parametrize("garbage", ALL[: len(GARBAGE)])  # it is written anew, and no folder is replaced
def test_a_spec_that_cannot_be_read_is_in_nobodys_way(copied: Sweep, garbage: str) -> None:
    path = copied.store / layout.stage_spec(Input("count", "", digest_of(copied, "bad")))
    spoil(path, garbage)
    copied("why", "counts", "seed=bad")
    copied("rerun", "counts", "--yes", "launcher.workers=1")
    assert_all_done(copied)


@pytest.mark.parametrize("garbage", ALL)
def test_a_request_that_cannot_be_read_does_not_stop_the_next(copied: Sweep, garbage: str) -> None:
    path = copied.store / layout.request("counts", 1)
    spoil(path, garbage)
    copied("status", "counts")
    copied("launch", "counts.yaml", "launcher.workers=1", code=None)
    copied("rerun", "counts", "--yes", "launcher.workers=1")
    assert_all_done(copied)


@pytest.mark.parametrize("garbage", ALL)
def test_a_revision_that_cannot_be_read_is_named_and_a_launch_seals_another(
    copied: Sweep, garbage: str
) -> None:
    path = copied.store / layout.revision("counts", 1)
    spoil(path, garbage)
    said = copied("status", "counts", code=3)
    assert "counts@1" in said and "unreadable" in said
    assert "counts@1" in copied("rerun", "counts", "--yes", code=3)
    copied("launch", "counts.yaml", "launcher.workers=1", code=None)
    copied("rerun", "counts", "--yes", "launcher.workers=1")
    assert_all_done(copied)


def test_fields_that_a_later_version_added_change_nothing(copied: Sweep) -> None:
    before = copied.json("status", "counts")
    for path in copied.store.rglob("*.json"):
        if not path.is_relative_to(copied.store / "payload"):
            path.write_bytes(path.read_bytes()[:-1] + b', "from_the_future": {"a": [1]}}')
    now = copied.json("status", "counts")
    assert now.pop("as_of") > before.pop("as_of") and now == before
    copied("rerun", "counts", "--yes", "launcher.workers=1")
    assert_all_done(copied)
    assert len([*(copied.store / "sweeps/counts").glob("*.json")]) == 1


@pytest.mark.parametrize("garbage", ALL)
def test_a_store_whose_mark_cannot_be_read_is_refused(copied: Sweep, garbage: str) -> None:
    path = copied.store / layout.STORE
    spoil(path, garbage)
    for words in (["status", "counts"], ["launch", "counts.yaml"], ["rerun", "counts", "--yes"]):
        said = copied(*words, code=3)
        assert "mark cannot be trusted" in said and "store.json" in said


def test_a_store_of_a_newer_format_is_refused_as_such(copied: Sweep) -> None:
    path = copied.store / layout.STORE
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99, "new": 1}))
    assert "format 99" in copied("status", "counts", code=2)


@pytest.mark.parametrize("harm", ["deleted", "cut short", "records deleted"])
def test_a_product_that_was_harmed_is_named_and_made_again(copied: Sweep, harm: str) -> None:
    digest = digest_of(copied, "a")
    product = copied.store / layout.payload(Input("count", "", digest), 1) / "output/count.txt"
    if harm == "cut short":
        product.write_text("2")
    else:
        product.unlink()
    if harm == "records deleted":
        shutil.rmtree(copied.store / layout.attempts(Input("count", "", digest)))
    cell = cell_of(copied, "a")
    assert cell["state"] == "pending" and "count.txt" in str(cell["reason"])
    assert "count.txt" in copied("plan", "counts.yaml", "--json")
    copied("launch", "counts.yaml", "launcher.workers=1", code=1)  # one cell has failed and is left
    copied("rerun", "counts", "--yes", "launcher.workers=1")
    assert_all_done(copied)


@pytest.mark.parametrize("garbage", ALL)
@pytest.mark.parametrize("record", [layout.CLAIM, layout.START, layout.HEARTBEAT])
def test_a_record_of_an_attempt_that_was_lost_is_named_and_the_cell_finishes(
    copied: Sweep, record: str, garbage: str
) -> None:
    """Of a claim that cannot be read nobody knows the owner: it is waited for, as `status` says."""
    digest = digest_of(copied, "a")
    (copied.store / layout.done(Input("count", "", digest), 1)).unlink()
    (copied.store / layout.attempt(Input("count", "", digest), 1, layout.END)).unlink()
    path = copied.store / layout.attempt(Input("count", "", digest), 1, record)
    spoil(path, garbage)
    cell = cell_of(copied, "a")
    if record == layout.CLAIM:
        assert cell["state"] == "running" and str(cell["reason"]).count(layout.CLAIM) == 1
        return  # a watcher of 90 s: see test_watching
    assert cell["state"] == "lost"
    assert record in copied("why", "counts", "seed=a")
    copied("rerun", "counts", "--yes", "launcher.workers=1")
    assert_all_done(copied)
