"""Which ends count of jobs that a launch or rerun found open."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.core.failure import Cause
from orchestrator.core.state import State
from orchestrator.jobs.cells import Jobs
from orchestrator.jobs.judgement import JobListing
from tests.jobs.test_dispatch import QUEUED, RUNNING, asked, filed, over, state_of


def test_a_job_that_was_cancelled_after_a_launch_that_found_it_open_is_not_submitted_again():
    """The launch records which jobs are open, so no clocks are compared."""
    by_launch = asked(2, last_submission=1, held=Jobs([filed()], JobListing({("12", 0): QUEUED})).held())
    rerun = msgspec.structs.replace(by_launch, number=3, verb="rerun")
    ended = Jobs([filed(over=[over(Cause.CANCELLED, "CANCELLED")])], JobListing())
    for last in (by_launch, rerun):
        found = state_of(ended, since=last)
        assert (found.state, found.cause) == (State.FAILED, Cause.CANCELLED)
    again = asked(4, last_submission=1, held=ended.held())  # after the cancel: a fresh budget
    assert state_of(ended, since=again).state is State.PENDING
    assert state_of(ended, since=asked(4)).state is State.PENDING  # by an earlier version, not recorded


def test_a_launch_holds_the_cells_whose_jobs_it_finds_open_and_none_that_the_scheduler_is_ending():
    ending = RUNNING._replace(word="COMPLETING", is_ending=True)
    lost = over(Cause.NODE_LOST, index=3)
    four = filed(tasks=(("a", "b"), ("c",), ("d",), ("e",)), over=[lost])
    jobs = Jobs([four], JobListing({("12", 0): RUNNING, ("12", 1): ending}))
    assert jobs.held() == dict.fromkeys("abd", 1)  # not listed is not over


@pytest.mark.parametrize("cause", Cause)
def test_of_an_earlier_launchs_open_job_only_what_was_done_to_it_counts(cause):
    """Another setting, or mended code, may be why the user launched again."""
    ended = Jobs([filed(over=[over(cause)])], JobListing())
    is_counted = state_of(ended, since=asked(2, last_submission=1, held={"a": 1})).state is State.FAILED
    assert is_counted == (cause in (Cause.CANCELLED, Cause.PREEMPTED, Cause.NODE_LOST))
    assert state_of(ended, since=1).state is State.FAILED


def test_a_job_that_another_pass_submits_for_an_earlier_launch_counts_for_the_later_one():
    """A pass that began before a launch may submit jobs that the launch did not find."""
    late = Jobs([filed(), filed(number=2, job="13", over=[over(Cause.CANCELLED)])], JobListing())
    assert state_of(late, since=asked(2, last_submission=1)).state is State.FAILED
    assert state_of(late, since=asked(2, last_submission=2)).state is State.PENDING
