"""The stage that only counts passes the suite of all stages."""

from __future__ import annotations

from orchestrator.testing import StageContract


class TestCount(StageContract):
    name = "count"
    config = {"count": {"num_steps": 4, "checkpoint_every": 2, "step_s": 0, "fail": None}}
