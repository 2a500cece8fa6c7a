"""What waits for space after a stage found a disk full. Tables over records."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from orchestrator.core.evidence import NO_HOLDS, Evidence
from orchestrator.core.failure import Cause
from orchestrator.core.holding import holds_of, no_space
from tests.core.test_breaker import Records, failed


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
        assert bool(no_space(holds)) is is_held
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
        assert set(held.stages) == trainings and no_space(held, patience_s=0), times
        assert no_space(held) == "", "others start meanwhile, and jobs are submitted"
        assert no_space(held, patience_s=seconds) == ""
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
