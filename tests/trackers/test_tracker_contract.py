"""The store's tracker and the TensorBoard mirror pass the suites of all trackers and mirrors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orchestrator.testing import MirrorContract, SweepCommand, TrackerContract


class TestStoreTracker(TrackerContract):
    name = "store"

    def read(self, folder: Path) -> dict[int, dict[str, float]]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return {row.pop("step"): {k: v for k, v in row.items() if k != "time_s"} for row in rows}


class TestTensorboard(MirrorContract):
    name = "tensorboard"
    words = ("tracker=tensorboard", "tracker.tensorboard.dir=tb")

    def read(self, on: SweepCommand) -> dict[str, list[int]]:
        found = {}
        for folder in (on.folder / "tb").iterdir():
            events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
            events.Reload()
            steps = [event.step for event in events.Scalars("count/value")]
            (seed,) = (str(n) for n in range(4) if f"seed{n}" in folder.name)
            found[f"seed{seed}"] = steps
        return found

    @pytest.mark.long
    def test_each_cell_is_shown_once_and_a_sync_adds_what_is_missing_alone(self, on: SweepCommand) -> None:
        super().test_each_cell_is_shown_once_and_a_sync_adds_what_is_missing_alone(on)

    @pytest.mark.long
    def test_what_it_shows_changes_no_result(self, on: SweepCommand) -> None:
        super().test_what_it_shows_changes_no_result(on)
