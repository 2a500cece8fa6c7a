"""The Slurm launcher passes the suite of all launchers, on a real Slurm."""

from __future__ import annotations

import pytest

from tests.conftest import Sweep
from tests.launchers.contract import LauncherContract
from tests.slurm.sweeps import SLURM, OnSlurm


class TestSlurm(LauncherContract):
    words = (*SLURM, "--wait")

    @pytest.fixture
    def on(self, jobs: OnSlurm) -> Sweep:
        return jobs
