"""The Ray launcher passes the suite of all launchers, on a real cluster, from outside."""

from __future__ import annotations

import pytest

from tests.conftest import Sweep
from tests.launchers.contract import LauncherContract
from tests.ray.sweeps import OnRay


class TestRay(LauncherContract):
    @pytest.fixture
    def on(self, jobs: OnRay) -> Sweep:
        self.words = (*jobs.words, "--wait")
        return jobs
