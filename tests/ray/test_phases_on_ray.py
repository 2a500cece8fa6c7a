"""Phases and rungs on a real Ray."""

from __future__ import annotations

import pytest

from tests.launchers.phases import assert_jobs_go_through_rungs_and_phases
from tests.ray.sweeps import OnRay


@pytest.mark.long
def test_drivers_decide_and_a_launch_that_stays_submits_what_follows(jobs: OnRay) -> None:
    assert_jobs_go_through_rungs_and_phases(jobs, *jobs.words, "launcher.idle_s=3")
