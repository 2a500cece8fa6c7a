"""Phases and rungs in jobs of a real Slurm."""

from __future__ import annotations

import pytest

from tests.launchers.phases import assert_jobs_go_through_rungs_and_phases
from tests.slurm.sweeps import SLURM, OnSlurm


@pytest.mark.long
def test_jobs_decide_and_a_launch_that_stays_submits_what_follows(jobs: OnSlurm) -> None:
    assert_jobs_go_through_rungs_and_phases(jobs, *SLURM)
