"""The stage that only counts passes the suite of all stages."""

from __future__ import annotations

import pytest

from orchestrator.testing import StageContract, SweepCommand


class TestCount(StageContract):
    name = "count"
    config = {"count": {"num_steps": 4, "checkpoint_every": 2, "step_s": 0, "fail": None}}

    @pytest.mark.long
    def test_the_same_config_gives_the_same_rows(self, on: SweepCommand) -> None:
        super().test_the_same_config_gives_the_same_rows(on)
