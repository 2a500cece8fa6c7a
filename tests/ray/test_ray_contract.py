"""The Ray launcher passes the suite of all launchers, on a real cluster, from outside."""

from __future__ import annotations

import pytest

from orchestrator.testing import LauncherContract
from tests.conftest import Sweep
from tests.ray.sweeps import OnRay


class TestRay(LauncherContract):
    @pytest.fixture
    def on(self, jobs: OnRay) -> Sweep:
        self.words = (*jobs.words, "--wait")
        return jobs

    @pytest.mark.long
    def test_a_stage_that_cells_share_runs_once(self, on: Sweep) -> None:
        super().test_a_stage_that_cells_share_runs_once(on)

    @pytest.mark.long
    def test_a_failure_is_named_by_its_cause_and_rerun_runs_what_failed_alone(self, on: Sweep) -> None:
        super().test_a_failure_is_named_by_its_cause_and_rerun_runs_what_failed_alone(on)

    @pytest.mark.long
    def test_a_gate_runs_once_for_its_cells_and_blocks_these_alone(self, on: Sweep) -> None:
        super().test_a_gate_runs_once_for_its_cells_and_blocks_these_alone(on)

    @pytest.mark.long
    def test_what_chance_may_cure_is_tried_again_from_the_checkpoint(self, on: Sweep) -> None:
        super().test_what_chance_may_cure_is_tried_again_from_the_checkpoint(on)

    @pytest.mark.long
    def test_a_cancel_stops_cells_with_a_checkpoint_until_they_are_launched_again(self, on: Sweep) -> None:
        super().test_a_cancel_stops_cells_with_a_checkpoint_until_they_are_launched_again(on)

    @pytest.mark.long
    def test_a_killed_worker_loses_nothing(self, on: Sweep) -> None:
        super().test_a_killed_worker_loses_nothing(on)
