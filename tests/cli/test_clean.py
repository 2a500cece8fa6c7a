"""`clean`: what no revision in use names is deleted after it was shown; all else stays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.launches import wait_for

SWEEP = """
description: a product that takes room
config: {seed: 0, wait_s: 0.0}
axes: {seed: [0, 1]}
stages:
  make: {run: "parts:make", reads: [seed], uses: [wait_s]}
  use: {run: "parts:use", reads: [seed], after: [make]}
"""
PARTS = """
import time

def make(config, inputs, context):
    (context.output / "part").write_text(f"made for {config.seed}")
    with context.checkpoint(1) as folder:
        (folder / "state").write_text("x" * 100)
    context.log(1, loss=0.5)
    until = time.monotonic() + context.uses.wait_s
    while time.monotonic() < until and not context.stop_asked:
        time.sleep(0.05)
    context.stop_if_asked()
    return [{"seed_was": config.seed}]

def use(config, inputs, context):
    return [{"text": (inputs["make"] / "part").read_text()}]
"""


@pytest.fixture
def own(sweep: Any) -> Any:
    (sweep.folder / "own.yaml").write_text(SWEEP)
    (sweep.folder / "parts.py").write_text(PARTS)
    return sweep


def parts(store: Path) -> list[str]:
    return sorted(path.read_text() for path in store.glob("payload/make/*/*/output/part"))


def test_what_only_an_older_revision_names_goes_and_what_is_shared_stays(own: Any) -> None:
    own("launch", "own.yaml", "launcher.workers=1")
    assert "every file is of a stage that a revision in use names" in own("clean")
    own("launch", "own.yaml", "seed=1,2", "launcher.workers=1")
    assert parts(own.store) == ["made for 0", "made for 1", "made for 2"]
    before = {path: path.read_bytes() for path in own.store.rglob("*") if path.is_file()}
    told = own.json("clean")
    assert told["deleted"] is False and [stage["stage"] for stage in told["stages"]] == ["make"]
    assert "would delete" in own("clean") and "--yes" in own("clean")
    assert {path: path.read_bytes() for path in own.store.rglob("*") if path.is_file()} == before

    assert "deleted" in own("clean", "--yes")
    assert parts(own.store) == ["made for 1", "made for 2"]
    left = {path for path in own.store.rglob("*") if path.is_file()}
    assert all("/payload/" in str(path) for path in set(before) - left)
    assert all(path.name not in ("log.txt", "metrics.jsonl") for path in set(before) - left)
    rows = own.json("collect", "own@1")
    assert {row["text"] for row in rows if row["stage"] == "use"} == {"made for 0", "made for 1"}
    assert {cell["state"] for cell in own.json("status", "own@1")["cells"]} == {"done"}
    assert "every file" in own("clean", "--yes")

    own("discard", "own@1", "seed=0", "--stage", "make", "--reason", "make it again")
    own("launch", "own@1", "launcher.workers=1")
    assert "made for 0" in parts(own.store)
    assert sorted(int(p.name) for p in own.store.glob("records/make/*/*") if p.is_dir())[-1] == 2


def test_a_sweep_that_is_dropped_leaves_what_another_one_shares(own: Any) -> None:
    own("launch", "own.yaml", "launcher.workers=1")
    own("launch", "own.yaml", "seed=1", "--name", "other", "launcher.workers=1")
    assert "did you mean other" in own("clean", "--drop", "othr", "--yes", code=2)
    own("clean", "--drop", "own", "--yes")
    assert parts(own.store) == ["made for 1"]


@pytest.mark.long
def test_code_that_no_launch_of_a_revision_in_use_names_goes(own: Any) -> None:
    own("launch", "own.yaml", "launcher.workers=1", "launcher.snapshot=true", "--only", "seed=0")
    (own.folder / "parts.py").write_text(PARTS + "\n# edited\n")
    own("launch", "own.yaml", "seed=1", "launcher.workers=1", "launcher.snapshot=true")
    dead = own.store / "code" / ("d" * 64)  # of a launch that died while it stored its code
    dead.mkdir()
    (dead / "part.py").write_text("x = 1")
    last, first = sorted((own.store / "code").glob("*.json"), key=lambda path: -path.stat().st_mtime_ns)
    assert {code["digest"] for code in own.json("clean")["code"]} == {first.stem, dead.name}
    assert "would delete" in own("clean") and "2 code snapshots" in own("clean", "--yes")
    assert {path.name for path in (own.store / "code").iterdir()} == {last.stem, last.name}
    assert own.json("clean")["code"] == []
    own("launch", "own.yaml", "launcher.workers=1", "launcher.snapshot=true")  # what is gone is stored anew


def test_nothing_is_deleted_while_something_runs(own: Any, background: Any) -> None:
    running = background("launch", "own.yaml", "seed=6", "wait_s=60", "launcher.workers=1")
    wait_for(lambda: "made for 6" in parts(own.store))
    assert "1 cell of own@1 may still be running" in own("clean", "--yes", code=2)
    own("launch", "own.yaml", "seed=5", "launcher.workers=1")  # no current revision names the other one
    assert re.search(r"error: make \w{12} may still be running", own("clean", "--yes", code=2))
    assert parts(own.store) == ["made for 5", "made for 6"]
    running.process.terminate()
    running.process.wait(timeout=60)
