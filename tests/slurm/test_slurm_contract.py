"""The Slurm launcher passes the suite of all launchers, on a real Slurm."""

from __future__ import annotations

import pytest

from orchestrator.testing import LauncherContract
from tests.conftest import Sweep
from tests.slurm.sweeps import SLURM, OnSlurm


class TestSlurm(LauncherContract):
    words = (*SLURM, "--wait")

    @pytest.fixture
    def on(self, jobs: OnSlurm) -> Sweep:
        return jobs

    @pytest.mark.long
    def test_a_gate_runs_once_for_its_cells_and_blocks_these_alone(self, on: Sweep) -> None:
        super().test_a_gate_runs_once_for_its_cells_and_blocks_these_alone(on)

    @pytest.mark.long
    def test_what_chance_may_cure_is_tried_again_from_the_checkpoint(self, on: Sweep) -> None:
        super().test_what_chance_may_cure_is_tried_again_from_the_checkpoint(on)

    @pytest.mark.long
    def test_a_killed_worker_loses_nothing(self, on: Sweep) -> None:
        super().test_a_killed_worker_loses_nothing(on)

    @pytest.mark.long
    def test_a_cancel_stops_cells_with_a_checkpoint_until_they_are_launched_again(self, on: Sweep) -> None:
        super().test_a_cancel_stops_cells_with_a_checkpoint_until_they_are_launched_again(on)
