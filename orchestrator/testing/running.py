"""The suites of launchers, trackers, mirrors and stages, which take part in real sweeps."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from orchestrator.errors import UserError
from orchestrator.registry import MIRRORS, STAGES, TRACKERS, load, lookup
from orchestrator.stage import StageSpec, Tracker
from orchestrator.testing.commands import (
    COUNT,
    SweepCommand,
    checkpoints,
    counted,
    records,
    running_heartbeats,
    wait_for,
)
from orchestrator.trackers.base import Tracked

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


def _kill_a_worker(store: Path) -> bool:
    """Kill the worker of an attempt that has not ended; return whether there was one."""
    folders = [beat["folder"] for beat in running_heartbeats(store)]
    for claim in records(store, "claim.json"):
        if claim["folder"] in folders:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(claim["owner"]["process"]["pid"], signal.SIGKILL)
                return True
    return False


class LauncherContract:
    """What every launcher must do, whatever starts its workers.

    Its workers must run on this machine, because one test kills a worker. The tests run ``sweep`` in a folder
    with a store of their own.

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
        output = self.launch(on, "gated.yaml", code=1)
        assert (
            "2 done" in output
            and "2 blocked" in output
            and "check[bad]" in output
            and "rehearsed on " in output
        )
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
        output = self.launch(on, name, fail, "--only", "seed=1,2", code=1)
        assert "failed by data: 2 stages" in output
        self.launch(on, name, "--only", "seed=0,3", code=0)
        assert on.json("status", "jobs")["counts"] == {"done": 2, "failed": 2}
        waits = [word for word in self.words if word.startswith("--")]
        assert "rerun 2 cells" in on("rerun", "jobs", *waits, timeout_s=240)
        self.assert_done_once(on)

    def test_a_killed_worker_loses_nothing(self, on: SweepCommand) -> None:
        name = self.write(on)
        output: list[Any] = []
        launch = threading.Thread(target=lambda: output.append(self.launch(on, name, "count.step_s=0.2")))
        launch.start()
        try:
            wait_for(lambda: checkpoints(on.store), timeout_s=90)
            wait_for(lambda: _kill_a_worker(on.store))
        finally:
            launch.join(240)
        assert output and "4 done" in output[0]
        self.assert_done_once(on)

    def test_a_cancel_stops_cells_with_a_checkpoint_until_they_are_launched_again(
        self, on: SweepCommand
    ) -> None:
        name = self.write(on)
        output: list[Any] = []
        launch = threading.Thread(
            target=lambda: output.append(self.launch(on, name, "count.step_s=0.5", code=1))
        )
        launch.start()
        try:
            wait_for(lambda: running_heartbeats(on.store), timeout_s=90)
            assert "cancelled 4 cells" in on("cancel", "jobs")
        finally:
            launch.join(240)
        assert output and "4 cancelled" in output[0]
        assert {(end["outcome"], end["why"]) for end in records(on.store, "end.json")} == {
            ("released", "cancelled")
        }
        assert "4 done" in self.launch(on, name)
        self.assert_done_once(on)


class _Contract:
    """What the suites here share.

    Attributes:
        name: of the object, as in the registry or the entry point.
    """

    name: str = ""

    @pytest.fixture
    def on(self, tmp_path: Path) -> Iterator[SweepCommand]:
        """Yield the command in an empty folder."""
        folder = tmp_path / "project"
        folder.mkdir()
        yield SweepCommand(folder, tmp_path / "store")


class TrackerContract(_Contract):
    """What every tracker must do: record metrics in the process of a stage, without ever harming it.

    A subclass sets `name` and `words`, and overrides `read`.

    Attributes:
        words: of a launch that uses it, such as ``("tracker=csv",)``.
    """

    words: tuple[str, ...] = ()

    def read(self, folder: Path) -> dict[int, dict[str, float]]:
        """Return what was recorded for an attempt: step to metrics.

        Args:
            folder: the attempt's own, see `Tracked.folder`.
        """
        raise NotImplementedError

    def opened(self, folder: Path) -> Tracker:
        """Open the tracker for an attempt."""
        tracked = Tracked(folder, "sweep", "cell", "stage", 1, {"seed": 0}, {"name": self.name})
        made: Tracker = lookup(TRACKERS, self.name, kind="tracker")(tracked)
        return made

    def test_it_records_the_metrics_of_each_step(self, tmp_path: Path) -> None:
        tracker = self.opened(tmp_path)
        for step in (1, 2, 3):
            tracker.log(step, {"loss": 1 / step, "rate": 0.5})
        tracker.close()
        found = self.read(tmp_path)
        assert found == {step: {"loss": pytest.approx(1 / step), "rate": 0.5} for step in (1, 2, 3)}

    def test_a_later_start_of_the_attempt_adds_to_what_is_there(self, tmp_path: Path) -> None:
        for step in (1, 2):
            tracker = self.opened(tmp_path)
            tracker.log(step, {"loss": float(step)})
            tracker.close()
        assert set(self.read(tmp_path)) == {1, 2}

    def test_no_value_makes_it_raise(self, tmp_path: Path) -> None:
        tracker = self.opened(tmp_path)
        odd: list[Any] = [math.nan, math.inf, 10**400, "text", None, [1], object()]
        for step, value in enumerate(odd, start=1):
            tracker.log(step, {"value": value, "a name with spaces": 1.0})
        tracker.close()

    def test_neither_a_folder_that_is_gone_nor_an_early_or_second_end_makes_it_raise(
        self, tmp_path: Path
    ) -> None:
        folder = tmp_path / "attempt"
        folder.mkdir()
        tracker = self.opened(folder)
        tracker.log(1, {"loss": 1.0})
        folder.rename(tmp_path / "taken")
        tracker.log(2, {"loss": 1.0})
        tracker.close()
        tracker.log(3, {"loss": 1.0})
        tracker.close()

    def test_it_does_not_hold_up_the_stage(self, tmp_path: Path) -> None:
        tracker = self.opened(tmp_path)
        start_s = time.process_time()
        for step in range(1, 1001):
            tracker.log(step, {"loss": 1.0})
        assert time.process_time() - start_s < 1.0
        tracker.close()
        assert len(self.read(tmp_path)) == 1000

    def test_a_sweep_runs_with_it(self, on: SweepCommand) -> None:
        (on.folder / "jobs.yaml").write_text(COUNT)
        assert "4 done" in on("launch", "jobs.yaml", *self.words)
        folders = list(on.store.glob("payload/count/*/1"))
        assert [sorted(self.read(folder)) for folder in folders] == [[*range(1, 21)]] * 4


class MirrorContract(_Contract):
    """What every mirror must do: show each cell of a sweep, and add only what is missing.

    A subclass sets `name` and `words`, and overrides `read`.

    Attributes:
        words: of a launch that uses it, such as ``("tracker=jsonl",)``.
    """

    words: tuple[str, ...] = ()

    def read(self, on: SweepCommand) -> dict[str, list[int]]:
        """Return what is shown: the beginning of a cell's id, such as ``seed0``, to its steps in order."""
        raise NotImplementedError

    def test_each_cell_is_shown_once_and_a_sync_adds_what_is_missing_alone(self, on: SweepCommand) -> None:
        (on.folder / "jobs.yaml").write_text(COUNT)
        on("launch", "jobs.yaml", *self.words, "--only", "seed=0,1")
        steps = [*range(1, 21)]
        assert self.read(on) == {"seed0": steps, "seed1": steps}
        assert "nothing was missing" in on("sync", "jobs", "--to", self.name)
        on("launch", "jobs.yaml")
        assert self.read(on) == {"seed0": steps, "seed1": steps}
        assert "of 2 cells" in on("sync", "jobs", "--to", self.name)
        assert self.read(on) == {f"seed{seed}": steps for seed in range(4)}
        assert "nothing was missing" in on("sync", "jobs", "--to", self.name)
        assert self.read(on) == {f"seed{seed}": steps for seed in range(4)}

    def test_what_it_shows_changes_no_result(self, on: SweepCommand) -> None:
        (on.folder / "jobs.yaml").write_text(COUNT)
        on("launch", "jobs.yaml", *self.words)
        rows = {int(row["seed"]): row["digest"] for row in on.json("collect", "jobs")}
        assert rows == {seed: counted(seed, 20) for seed in range(4)}

    def test_a_wrong_option_is_refused(self) -> None:
        with pytest.raises(UserError):
            lookup(MIRRORS, self.name, kind="mirror")({"no_such_option": 1})


class StageContract(_Contract):
    """What every stage must do: be found by its name, declare what it reads, and run once.

    A subclass sets `name` and `config`.

    Attributes:
        config: values of all keys that the stage reads and uses; a key ``seed`` is varied if it is read.
        module: the target of its `StageSpec`; "" for that of the registry or the entry point.
    """

    config: Mapping[str, Any] = {}

    def test_its_spec_has_its_name_and_can_be_imported(self) -> None:
        spec = lookup(STAGES, self.name, kind="stage")
        assert isinstance(spec, StageSpec) and spec.name == self.name and spec.version >= 1
        assert (spec.run is None) != (spec.command is None)
        for target in filter(None, (spec.run, spec.estimate, spec.needs)):
            assert callable(load(target))

    def test_cells_run_once_and_read_no_key_that_the_stage_does_not_declare(self, on: SweepCommand) -> None:
        self.write(on)
        assert "2 done" in on("launch", "mine.yaml")
        rows = on.json("collect", "mine")
        assert {row["cell"] for row in rows} == {cell["cell"] for cell in on.json("status", "mine")["cells"]}
        assert "2 done" in on("launch", "mine.yaml")
        assert len(list(on.store.glob("records/*/*/*/claim.json"))) == 2

    def test_the_same_config_gives_the_same_rows(self, on: SweepCommand) -> None:
        self.write(on)
        on("launch", "mine.yaml")
        before = on.json("collect", "mine")
        on("discard", "mine", "state=done", "--stage", self.name, "--reason", "to make it again")
        on("launch", "mine.yaml")
        own = {"attempts", "seconds", "generation"}
        rows = [
            [{k: v for k, v in row.items() if k not in own} for row in each]
            for each in (before, on.json("collect", "mine"))
        ]
        assert rows[0] == rows[1]

    def write(self, on: SweepCommand) -> None:
        """Write a sweep of two cells."""
        tree = {"config": {"seed": 0, **self.config}, "axes": {"seed": [0, 1]}, "stages": [self.name]}
        (on.folder / "mine.yaml").write_text(yaml.safe_dump(tree))
