"""What waits for space after a stage found a disk full. Tables over records."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from orchestrator.core.evidence import NO_HOLDS, Evidence, Liveness
from orchestrator.core.failure import Cause
from orchestrator.core.holding import holds_of
from orchestrator.core.settings import Policy
from tests.core.test_breaker import Records, failed, made


def test_a_full_disk_holds_all_stages_for_a_while_until_space_is_no_longer_scarce() -> None:
    full = failed(cause=Cause.STORAGE, message="OSError: [Errno 28] No space left on device")
    records = Records()
    records.found["train.math.a.en"] = full
    gib = 2**30
    for space, is_held in (
        ((9 * gib, 10_000 * gib), True),
        ((11 * gib, 10_000 * gib), False),
        ((gib // 2, 100 * gib), True),  # below one part in a hundred
        ((2 * gib, 100 * gib), False),
        (None, False),
    ):
        holds = holds_of(records.records()._replace(space=space))
        assert set(holds.stages) == (set(records.sweep.stages) if is_held else set())
        assert bool(holds.lack_of_space()) is is_held
        assert not any(hold.is_final for hold in holds.stages.values())
    records.found["train.math.a.en"] = failed(cause=Cause.STORAGE, message="OSError: [Errno 5] I/O")
    assert holds_of(records.records()._replace(space=(0, gib))).stages == {}


def test_where_space_seems_to_be_there_stages_like_one_that_lacked_it_wait_twice_as_long_each_time() -> None:
    message = "OSError: [Errno 28] No space left on device"
    records = Records()
    first = failed(cause=Cause.STORAGE, message=message).attempts[0]
    assert first.end is not None
    one = Evidence((first._replace(end=replace(first.end, at="1970-01-01T01:00:00Z")),))
    records.found["train.math.a.en"] = one
    trainings = {digest for digest in records.sweep.stages if digest.startswith("train.")}
    for times, last_s, seconds in ((1, 59, 60), (2, 119, 120), (3, 239, 240), (9, 3599, 3600)):
        attempts = one.attempts * times
        records.found["train.math.a.en"] = one._replace(attempts=attempts)
        held = holds_of(records.records()._replace(now=3600.0 + last_s))
        assert set(held.stages) == trainings and held.lack_of_space(0), times
        assert held.lack_of_space() == "", "others start meanwhile, and jobs are submitted"
        assert held.lack_of_space(seconds) == "" and held.until == 3600 + seconds
        assert not any(hold.is_final for hold in held.stages.values())
        assert holds_of(records.records()._replace(now=3600.0 + seconds)).stages == {}, times
    other = first._replace(end=replace(first.end, cause=Cause.COMMUNICATION))
    records.found["train.math.a.en"] = one._replace(attempts=(*one.attempts, other, *one.attempts))
    assert holds_of(records.records()._replace(now=3660.0)).stages == {}, "the last ones in a row count"
    for model in ("a", "b", "c"):
        records.found[f"train.math.{model}.en"] = one._replace(attempts=one.attempts * 9)
    assert holds_of(records.records()._replace(now=1e6)) == NO_HOLDS, "the breaker leaves full disks alone"


@pytest.mark.parametrize("verb", ["launch", "rerun"])
@pytest.mark.parametrize("only", [None, ["api.a.en"]])
def test_a_request_after_a_full_disk_ends_the_wait_for_space(verb: str, only: list[str] | None) -> None:
    """Its user may have made room, for all cells."""
    records = Records()
    full = failed(cause=Cause.STORAGE, message="OSError: [Errno 28] No space left on device")
    last = full.attempts[0].end
    assert last is not None
    at = "1970-01-01T01:00:00Z"
    attempts = [full.attempts[0]._replace(number=n, end=replace(last, at=at)) for n in (1, 2, 3)]
    records.found["train.math.a.en"] = full._replace(attempts=tuple(attempts[:2]))
    scarce, pause = (0, 2**30), {"now": 3601.0}
    assert holds_of(records.records()._replace(space=scarce)).stages
    assert holds_of(records.records()._replace(**pause)).stages
    records.ask(verb, only)
    assert holds_of(records.records()._replace(space=scarce)) == NO_HOLDS
    assert holds_of(records.records()._replace(**pause)) == NO_HOLDS
    records.found["train.math.a.en"] = full._replace(attempts=tuple(attempts))
    held = holds_of(records.records()._replace(**pause)).stages["train.math.b.en"]
    assert held.pause_s == 60, "one more failure counts as the first"
    until = "1970-01-01T01:01:00Z"
    assert held.reason == f"train lacked space on a disk: the next starts at {until}, or at the next launch"


MESSAGE = "OSError: [Errno 28] No space left on device"
A, B, C, D = (f"train.math.{model}.en" for model in "abcd")


def lacking(times: int) -> Evidence:
    """Return the evidence of a stage that lacked space so many times, the last time at 01:00."""
    found = failed(times, MESSAGE, cause=Cause.STORAGE)
    ends = [replace(each.end, at="1970-01-01T01:00:00Z") for each in found.attempts if each.end is not None]
    attempts = zip(found.attempts, ends, strict=True)
    return Evidence(tuple(attempt._replace(end=end) for attempt, end in attempts))


def running(times: int = 0) -> Evidence:
    """Return the evidence of a stage that runs, and lacked space so many times before."""
    before = lacking(times).attempts if times else ()
    last = failed().attempts[0]._replace(number=times + 1, end=None)
    return Evidence((*before, last), liveness=Liveness.ALIVE)


def lacked_space(**found: Evidence) -> Records:
    """Return records by which a and b lacked space twice, c once, and d never; the pause ends at 01:02."""
    records = Records()
    records.policy = Policy(retries={"storage": 2})
    records.found |= {A: lacking(2), B: lacking(2), C: lacking(1)}
    records.found |= {f"train.math.{model}.en": evidence for model, evidence in found.items()}
    return records


def test_of_stages_that_lacked_space_twice_one_may_start_at_a_time_and_all_choose_alike() -> None:
    records = lacked_space().records()
    trainings = {digest for digest in records.sweep.stages if digest.startswith("train.")}
    starts, began = [], 3600 + 120
    for now in range(began, began + 600):
        free = trainings - set(holds_of(records._replace(now=float(now))).stages)
        place, seconds = divmod(now - began, 60)
        if seconds > 30:
            assert not free, "what starts in a turn becomes visible before the next one"
        elif seconds < 30:
            starts.append((place, frozenset(free)))
    turns = [free for _, free in dict.fromkeys(starts)]
    others = frozenset(trainings - {A, B})
    assert turns == [{A}, others, {B}, others, {A}, others, {B}, others, {A}, others]
    in_job = records._replace(now=float(began + 50), takes_turns=False)
    found = holds_of(in_job)
    assert found.stages == {}, "a job was submitted when its cell was alone"
    assert found.turns == {A: 1, B: 3, **dict.fromkeys(others, 0)}
    assert holds_of(records._replace(now=float(began - 1))).turns == {}, "all pause"
    assert holds_of(lacked_space(d=running()).records()._replace(now=float(began))).turns == {}


def test_holds_stand_until_the_time_that_they_name() -> None:
    records, now, seen = lacked_space().records(), 3600.0, []
    for _ in range(6):
        found = holds_of(records._replace(now=now))
        assert found.until is not None and found.until > now
        between = holds_of(records._replace(now=(now + found.until) / 2))
        assert between.stages == found.stages and between.until == found.until
        seen.append(now := found.until)
    assert seen == [3720, 3750, 3780, 3810, 3840, 3870]


def test_what_lacked_space_twice_runs_alone() -> None:
    """It is last: the others go on as before while one of them runs."""
    others = holds_of(lacked_space(d=running()).records()._replace(now=3720.0))
    assert set(others.stages) == {A, B} and others.until is None
    assert others.lack_of_space(1e9) and others.lack_of_space() == "", "jobs leave, others are submitted"
    assert others.stages[A].reason.startswith("train lacked space on a disk: this waits until train")
    alone = holds_of(lacked_space(a=running(2)).records()._replace(now=3720.0))
    assert {B, C, D} <= set(alone.stages) and not any(d.startswith("prepare") for d in alone.stages)
    records = lacked_space(a=lacking(3), b=made())
    assert holds_of(records.records()._replace(now=3600.0 + 240)) == NO_HOLDS, (
        "no retry is left, and b is done"
    )
    records = lacked_space()
    records.policy = replace(records.policy, space_pause_s=0)
    assert holds_of(records.records()._replace(now=3720.0)) == NO_HOLDS


def test_stages_of_other_names_that_lacked_space_take_turns_with_them() -> None:
    records = lacked_space()
    records.found = {A: lacking(2), "prepare.math.en": lacking(2)}
    for now in range(3720, 4320, 7):
        held = holds_of(records.records()._replace(now=float(now))).stages
        free = {A, "prepare.math.en"} - set(held)
        assert len(free) < 2
    records.found["prepare.math.en"] = running(2)
    assert A in holds_of(records.records()._replace(now=4000.0)).stages
