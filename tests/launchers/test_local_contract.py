"""The local launcher passes the suite of all launchers."""

from __future__ import annotations

import pytest

from orchestrator.testing import LauncherContract
from tests.conftest import Sweep


class TestLocal(LauncherContract):
    words = ("launcher=local", "launcher.workers=2")

    @pytest.fixture
    def on(self, sweep: Sweep) -> Sweep:
        return sweep
