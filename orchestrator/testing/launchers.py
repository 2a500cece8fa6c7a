"""The suite that every launcher passes. The tests run ``sweep`` in a folder with a store of their own.

The launcher's workers must run on this machine, because one test kills a worker.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.testing.commands import (
    COUNT,
    SweepCommand,
    checkpoints,
    counted,
    records,
    running_heartbeats,
    wait_for,
)

SHARED = """
description: four cells that share a stage
config: {seed: 0, metric: a}
axes: {metric: [a, b, c, d]}
stages:
  common: {run: "shared:common", reads: [seed]}
  own: {run: "shared:own", reads: [metric], after: [common]}
"""
SHARED_MODULE = """
import json, time

def common(config, inputs, context):
    time.sleep(0.5)
    (context.output / "x.json").write_text(json.dumps(config.seed))

def own(config, inputs, context):
    return [{"value": json.loads((inputs["common"] / "x.json").read_text()), "metric": config.metric}]
"""


GATED = """
description: four cells in two classes, each of which is rehearsed
config: {kind: good, seed: 0}
axes: {kind: [good, bad], seed: [0, 1]}
stages:
  check: {run: "gated:check", reads: [kind]}
  own: {run: "gated:own", reads: [kind, seed], gated_by: [check]}
"""
GATED_MODULE = """
from orchestrator.errors import StageFailure

def check(config, inputs, context):
    if config.kind == "bad":
        raise StageFailure("data", f"rehearsed on {config.launch.device}")

def own(config, inputs, context):
    return [{"value": config.seed}]
"""


class LauncherContract:
    """What every launcher must do, whatever starts its workers.

    A subclass sets `words`, and overrides the fixture `on` where the command needs more than an empty folder.

    Attributes:
        words: choose the launcher, and have the launch stay until all cells are done.
    """

    words: tuple[str, ...] = ()

    @pytest.fixture
    def on(self, tmp_path: Path) -> Iterator[SweepCommand]:
        """Yield the command in an empty folder."""
        folder = tmp_path / "project"
        folder.mkdir()
        yield SweepCommand(folder, tmp_path / "store")

    def launch(self, on: SweepCommand, name: str, *words: str, code: int = 0) -> str:
        """Launch a sweep, and return what was printed."""
        return on("launch", name, *self.words, *words, code=code, timeout_s=240)

    def write(self, on: SweepCommand) -> str:
        """Write a sweep of four cells that count, and return its file."""
        (on.folder / "jobs.yaml").write_text(COUNT)
        return "jobs.yaml"

    def assert_done_once(self, on: SweepCommand) -> None:
        """Assert that each of the four cells was done once, with the right result."""
        assert on.json("status", "jobs")["counts"] == {"done": 4}
        assert len(list((on.store / "done").rglob("*.json"))) == 4
        rows = {int(row["seed"]): row["digest"] for row in on.json("collect", "jobs")}
        assert rows == {seed: counted(seed, 20) for seed in range(4)}

    def test_every_cell_is_done_once_and_a_second_launch_does_nothing(self, on: SweepCommand) -> None:
        name = self.write(on)
        assert "4 done" in self.launch(on, name)
        self.assert_done_once(on)
        assert "4 done" in self.launch(on, name)
        assert len(records(on.store, "claim.json")) == 4

    def test_a_stage_that_cells_share_runs_once(self, on: SweepCommand) -> None:
        (on.folder / "shared.yaml").write_text(SHARED)
        (on.folder / "shared.py").write_text(SHARED_MODULE)
        assert "4 done" in self.launch(on, "shared.yaml")
        assert len(list((on.store / "done/common").iterdir())) == 1
        assert len(list(on.store.glob("records/common/*/*/claim.json"))) == 1
        assert {row["metric"] for row in on.json("collect", "shared") if "metric" in row} == set("abcd")

    def test_a_gate_runs_once_for_its_cells_and_blocks_these_alone(self, on: SweepCommand) -> None:
        (on.folder / "gated.yaml").write_text(GATED)
        (on.folder / "gated.py").write_text(GATED_MODULE)
        said = self.launch(on, "gated.yaml", code=1)
        assert "2 done" in said and "2 blocked" in said and "check[bad]" in said and "rehearsed on " in said
        stages = sorted(claim["folder"].parts[-3] for claim in records(on.store, "claim.json"))
        assert stages == ["check", "check", "own", "own"]
        cells = on.json("status", "gated")["cells"]
        assert {cell["axes"]["kind"] for cell in cells if cell["state"] == "blocked"} == {"bad"}

    def test_what_chance_may_cure_is_tried_again_from_the_checkpoint(self, on: SweepCommand) -> None:
        fail = "count.fail={how: chance, step: 12, attempts: 1}"
        assert "4 done" in self.launch(on, self.write(on), fail)
        self.assert_done_once(on)
        parents = [start["parent"] for start in records(on.store, "start.json") if start["parent"]]
        assert [parent["step"] for parent in parents] == [10] * 4

    def test_a_failure_is_named_by_its_cause_and_rerun_runs_what_failed_alone(self, on: SweepCommand) -> None:
        name = self.write(on)
        fail = "count.fail={how: data, step: 12, attempts: 1}"
        said = self.launch(on, name, fail, "--only", "seed=1,2", code=1)
        assert "failed by data: 2 stages" in said
        self.launch(on, name, "--only", "seed=0,3", code=0)
        assert on.json("status", "jobs")["counts"] == {"done": 2, "failed": 2}
        waits = [word for word in self.words if word.startswith("--")]
        assert "rerun 2 cells" in on("rerun", "jobs", *waits, timeout_s=240)
        self.assert_done_once(on)

    def test_a_killed_worker_loses_nothing(self, on: SweepCommand) -> None:
        name = self.write(on)
        said: list[Any] = []
        launch = threading.Thread(target=lambda: said.append(self.launch(on, name, "count.step_s=0.2")))
        launch.start()
        try:
            wait_for(lambda: checkpoints(on.store), timeout_s=90)
            beat = wait_for(lambda: running_heartbeats(on.store))[0]
            claim = next(c for c in records(on.store, "claim.json") if c["folder"] == beat["folder"])
            os.kill(claim["owner"]["process"]["pid"], signal.SIGKILL)
        finally:
            launch.join(240)
        assert said and "4 done" in said[0]
        self.assert_done_once(on)

    def test_a_cancel_stops_cells_with_a_checkpoint_until_they_are_launched_again(
        self, on: SweepCommand
    ) -> None:
        name = self.write(on)
        said: list[Any] = []
        launch = threading.Thread(
            target=lambda: said.append(self.launch(on, name, "count.step_s=0.5", code=1))
        )
        launch.start()
        try:
            wait_for(lambda: running_heartbeats(on.store), timeout_s=90)
            assert "cancelled 4 cells" in on("cancel", "jobs")
        finally:
            launch.join(240)
        assert said and "4 cancelled" in said[0]
        assert {(end["outcome"], end["why"]) for end in records(on.store, "end.json")} == {
            ("released", "cancelled")
        }
        assert "4 done" in self.launch(on, name)
        self.assert_done_once(on)
