"""For how long a worker that has nothing else to do waits for stages that the store errs for."""

from __future__ import annotations

import errno

import pytest

from orchestrator.execution.liveness import LEAVE_S, UNREADABLE_S, Leaving

ERROR = OSError(errno.EIO, "Input/output error")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leaving(clock: Clock) -> Leaving:
    return Leaving(clock)


def tries_until_it_leaves(leaving: Leaving, clock: Clock, digest: str) -> tuple[int, float]:
    """Works as a worker does whose one stage errs each time; returns how often it was tried, for how long."""
    num_tries, start_s = 0, clock.now_s
    while num_tries < 100:
        if leaving.status(digest) is None:
            num_tries += 1
            leaving.leave(digest, ERROR)
        elif not leaving.is_worth_another_look(is_passing=False):
            break
        clock.now_s += 0.25
    return num_tries, clock.now_s - start_s


def test_a_stage_that_errs_for_ever_is_tried_for_a_while_and_then_no_more(
    leaving: Leaving, clock: Clock
) -> None:
    num_tries, passed_s = tries_until_it_leaves(leaving, clock, "a")
    assert 2 <= num_tries <= UNREADABLE_S / LEAVE_S + 1
    assert UNREADABLE_S <= passed_s <= UNREADABLE_S + LEAVE_S


def test_each_outage_has_the_whole_patience(leaving: Leaving, clock: Clock) -> None:
    first = tries_until_it_leaves(leaving, clock, "a")
    clock.now_s += 60
    leaving.reset()  # a stage was worked on
    assert leaving.status("a") is None
    assert tries_until_it_leaves(leaving, clock, "a") == first


def test_another_stage_that_errs_later_has_the_whole_patience(leaving: Leaving, clock: Clock) -> None:
    tries_until_it_leaves(leaving, clock, "a")
    _, passed_s = tries_until_it_leaves(leaving, clock, "b")
    assert passed_s >= UNREADABLE_S


def test_a_stage_that_was_worked_on_after_an_error_keeps_nobody_waiting(
    leaving: Leaving, clock: Clock
) -> None:
    leaving.leave("a", ERROR)
    clock.now_s += LEAVE_S
    assert leaving.status("a") is None
    leaving.reset()
    assert not leaving.is_worth_another_look(is_passing=False)


def test_a_stage_that_nobody_asks_for_again_keeps_a_worker_waiting_no_longer_than_it_is_left(
    leaving: Leaving, clock: Clock
) -> None:
    leaving.leave("a", ERROR)
    clock.now_s += LEAVE_S
    assert leaving.is_worth_another_look(is_passing=False)  # it may be tried now
    assert not leaving.is_worth_another_look(is_passing=False)


def test_a_stage_whose_error_does_not_pass_stays_left_and_keeps_nobody_waiting(
    leaving: Leaving, clock: Clock
) -> None:
    leaving.leave("a", PermissionError(errno.EACCES, "Permission denied"))
    clock.now_s += 100
    assert leaving.status("a") is not None and not leaving.is_worth_another_look(is_passing=False)
