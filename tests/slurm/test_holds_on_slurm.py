"""The breaker, the budget and a full disk, evaluated by jobs of a real Slurm."""

from __future__ import annotations

import pytest

from tests.launchers.own_stages import (
    assert_all_end_one_after_the_other,
    assert_box_is_held_until_mended_and_budget_ends,
    on_small_disk,
)
from tests.slurm.sweeps import SLURM, OnSlurm

GPUS = ("cluster.device=a100", "cluster.cpus_per_gpu=1", "launcher.resources=[{gpus: 1}]")


@pytest.mark.long
def test_jobs_start_no_cell_like_those_that_failed_alike_and_stop_where_the_budget_ends(
    jobs: OnSlurm,
) -> None:
    assert_box_is_held_until_mended_and_budget_ends(jobs, *SLURM, *GPUS, "launcher.max_running=1")
    logs = [path.read_text() for path in (jobs.store / "sweeps/jobs/logs").rglob("*.log")]
    assert any("held back: 3 cells with task=b failed alike" in log for log in logs)


@pytest.mark.long
def test_cells_that_fit_on_a_disk_one_at_a_time_all_end_as_jobs(jobs: OnSlurm) -> None:
    with on_small_disk(jobs):
        assert_all_end_one_after_the_other(jobs, *SLURM)
