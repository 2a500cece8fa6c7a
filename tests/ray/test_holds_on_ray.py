"""The breaker, the budget and a full disk, evaluated by a driver and the workers of a real Ray."""

from __future__ import annotations

import pytest

from tests.launchers.own_stages import (
    assert_all_end_one_after_the_other,
    assert_box_is_held_until_mended_and_budget_ends,
    on_small_disk,
)
from tests.ray.sweeps import OnRay

GPUS = ("launcher.device=a100", "launcher.resources=[{gpus: 1, cpus: 1}]", "launcher.max_workers=1")


@pytest.mark.long
def test_workers_start_no_cell_like_those_that_failed_alike_and_stop_where_the_budget_ends(
    jobs: OnRay,
) -> None:
    assert_box_is_held_until_mended_and_budget_ends(jobs, *jobs.words, *GPUS, "launcher.idle_s=3")


@pytest.mark.long
def test_cells_that_fit_on_a_disk_one_at_a_time_all_end_as_workers(jobs: OnRay) -> None:
    with on_small_disk(jobs):
        assert_all_end_one_after_the_other(jobs, *jobs.words)
