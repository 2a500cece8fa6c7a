"""The parts of held time add up to all of it, whatever happened, and work counts if a product holds it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.evidence import Attempt, Evidence, Liveness
from orchestrator.core.failure import Cause
from orchestrator.core.goodput import CATEGORIES, HeldJob, Holder, goodput, useful_shares
from orchestrator.core.records import (
    Claim,
    Done,
    End,
    Heartbeat,
    Owner,
    Parent,
    Process,
    StartRecord,
    Supersedes,
    TimeSpent,
)


def owner(pid: int = 1, job: str = "") -> Owner:
    return Owner(host="a", process=Process(boot_id="b", namespace="n", pid=pid, start="1"), job=job)


def attempt(
    number: int,
    spent: TimeSpent | None,
    *,
    outcome: str = "",
    cause: Cause | None = None,
    why: str = "",
    parent: tuple[int, int] | None = None,
    work: int | None = None,
    by: Owner | None = None,
    lost: int | None = None,
) -> Attempt:
    supersedes = Supersedes(attempt=lost, evidence="", cause=Cause.NODE_LOST) if lost else None
    end = End(nonce="", outcome=outcome, cause=cause, why=why, spent=spent) if outcome else None  # type: ignore[arg-type]
    return Attempt(
        number,
        Claim(
            nonce="",
            owner=by or owner(),
            lease_s=90,
            generation=1,
            sweep="s",
            cell="c",
            supersedes=supersedes,
            at="2026-01-01T00:00:00+00:00",
        ),
        StartRecord(
            parent=Parent(attempt=parent[0], step=parent[1]) if parent else None,
            uses={},
            provenance={},
            work=work,
        ),
        None if end else Heartbeat(counter=1, phase="running", spent=spent, at="2026-01-01T00:00:30+00:00"),
        end,
    )


def done(number: int) -> Done:
    return Done(
        nonce="", stage="train", digest="d", generation=1, attempt=number, files=(), rows=(), seconds=1.0
    )


def took(compute: float, *, saved: tuple[int, float] | None = None, start: float = 10.0) -> TimeSpent:
    step, saved_s = saved or (None, 0.0)
    return TimeSpent(
        seconds=compute + start,
        phases={"start": start, "compute": compute},
        saved_step=step,
        saved_s=saved_s,
        held_s=compute + start,
    )


def test_the_example_of_the_module_holds() -> None:
    evidence = Evidence(
        (
            attempt(1, took(100, saved=(60, 60.0))),
            attempt(2, took(50), outcome="failed", cause=Cause.UNKNOWN, parent=(1, 60), lost=1),
            attempt(3, took(40, saved=(90, 30.0)), outcome="succeeded", parent=(1, 60)),
        ),
        done(3),
    )
    (found,) = goodput("s", [Holder(owner(), 2, 300.0, start_s=5.0)], [("train", evidence)])
    assert found.unit == "gpu_seconds"
    assert found.parts["compute"] == 2 * (60 + 40)
    assert found.lost_by == {"node_lost": 2 * 40, "unknown": 2 * 60}
    assert found.parts["start"] == 2 * (5 + 10 + 10)
    assert found.parts["idle"] == 2 * (300 - 5 - 110 - 60 - 50)
    assert found.total == 2 * 300


def test_what_the_next_attempt_would_resume_from_counts_until_then() -> None:
    released = attempt(1, took(100, saved=(5, 80.0)), outcome="released", why="budget")
    assert useful_shares(Evidence((released,))) == {1: 0.8}
    running = attempt(1, took(100, saved=(5, 80.0)))
    assert useful_shares(Evidence((running,))) == {1: 1.0}
    assert useful_shares(Evidence((running,), liveness=Liveness.GONE)) == {1: 0.8}


def test_a_checkpoint_that_was_handed_on_is_not_counted_twice() -> None:
    evidence = Evidence(
        (
            attempt(1, took(100, saved=(60, 90.0))),
            attempt(2, took(50), parent=(1, 60), lost=1),
            attempt(3, took(40), outcome="succeeded", parent=(2, 60), lost=2),
        ),
        done(3),
    )
    assert useful_shares(evidence) == {3: 1.0, 2: 0.0, 1: 0.9}


def test_an_earlier_checkpoint_than_the_last_counts_by_its_steps() -> None:
    evidence = Evidence(
        (
            attempt(1, took(100, saved=(80, 80.0)), outcome="failed", cause=Cause.NAN),
            attempt(2, took(40), outcome="succeeded", parent=(1, 40)),
        ),
        done(2),
    )
    assert useful_shares(evidence) == {2: 1.0, 1: 0.4}


def test_work_in_a_folder_that_was_taken_over_counts() -> None:
    evidence = Evidence((attempt(1, took(9)), attempt(2, took(4), outcome="succeeded", work=1)), done(2))
    assert useful_shares(evidence) == {2: 1.0, 1: 1.0}


def test_a_product_that_no_longer_counts_was_lost() -> None:
    evidence = Evidence((attempt(1, took(9), outcome="succeeded"),), None, generation=2)
    (found,) = goodput("s", [], [("train", evidence)])
    assert found.unit == "worker_seconds"
    assert found.lost_by == {"product lost": 19}


def test_an_older_store_shows_what_it_can_and_invents_nothing() -> None:
    old = attempt(1, None, outcome="succeeded")
    assert old.end is not None
    old = old._replace(end=End(nonce="", outcome="succeeded", seconds=40.0))
    failed = attempt(2, None)  # a heartbeat 30 s after the claim is all that there is
    (found,) = goodput("s", [], [("train", Evidence((failed, old._replace(number=3)), done(3)))])
    assert found.parts == {**dict.fromkeys(CATEGORIES, 0.0), "unknown": 40.0, "lost": 30.0}


def test_the_gpus_of_an_older_job_are_those_of_its_submission() -> None:
    mine = owner(job="7")
    old = attempt(1, None, by=mine)._replace(
        end=End(nonce="", outcome="succeeded", seconds=40.0), heartbeat=None
    )
    job = HeldJob("local", "7", 0, 0, num_gpus=8, seconds=60.0)
    (found,) = goodput("s", [], [("train", Evidence((old,), done(1)))], [job])
    assert (found.unit, found.parts["unknown"], found.parts["idle"]) == ("gpu_seconds", 320, 160)


def test_a_job_whose_worker_never_started_was_held_in_vain() -> None:
    (found,) = goodput("s", [], [], [HeldJob("local", "7", 0, 0, num_gpus=8, seconds=60.0)])
    assert found.lost_by == {"never started": 480}


def test_a_shared_stage_is_charged_to_the_sweep_whose_worker_ran_it() -> None:
    evidence = Evidence((attempt(1, took(9), outcome="succeeded"),), done(1))
    assert goodput("another", [], [("train", evidence)]) == []


PHASES = st.dictionaries(
    st.sampled_from(["start", "data", "compute", "save", "restore", "evaluation", "of a later version"]),
    st.floats(0, 1e4),
)


@st.composite
def histories(draw: st.DrawFn) -> Evidence:
    """Draw attempts that were killed at any point: with any record missing, and any checkpoint resumed."""
    attempts: list[Attempt] = []
    for number in range(1, draw(st.integers(1, 5)) + 1):
        phases = draw(PHASES)
        total = sum(phases.values()) * draw(st.sampled_from([1.0, 0.9999, 1.01]))
        spent = draw(
            st.none()
            | st.builds(
                TimeSpent,
                held_s=st.floats(0, 1e5),
                seconds=st.just(total),
                phases=st.just(phases),
                saved_step=st.none() | st.integers(0, 9),
                saved_s=st.floats(0, 1e4),
            )
        )
        outcome = draw(st.sampled_from(["", "", "failed", "released", "succeeded"]))
        parent = (draw(st.integers(1, number - 1)), draw(st.integers(0, 12))) if number > 1 else None
        made = attempt(
            number,
            spent,
            outcome=outcome,
            parent=draw(st.sampled_from([None, parent])),
            by=owner(draw(st.integers(1, 2))),
        )
        gone = draw(st.sampled_from([{}, {"start": None}, {"heartbeat": None}]))
        attempts.append(made._replace(**gone))
    product = draw(st.none() | st.integers(1, len(attempts) + 1))
    liveness = draw(st.sampled_from([*Liveness]))
    return Evidence(tuple(attempts), done(product) if product else None, liveness=liveness)


HOLDERS = st.builds(
    Holder,
    owner=st.sampled_from([owner(1), owner(3)]),
    num_gpus=st.sampled_from([0, 4]),
    seconds=st.floats(0, 1e5),
    start_s=st.floats(0, 100),
)


@settings(max_examples=60)
@given(
    st.lists(histories(), max_size=4),
    st.lists(HOLDERS, max_size=2, unique_by=lambda holder: holder.owner),
)
def test_the_parts_are_never_negative_and_add_up_to_the_held_time(
    stages: list[Evidence], holders: list[Holder]
) -> None:
    found = goodput("s", holders, [("train", evidence) for evidence in stages])
    for each in found:
        assert set(each.parts) == set(CATEGORIES)
        assert min(each.parts.values()) >= -1e-6
        assert sum(each.parts.values()) == pytest.approx(each.total)
        assert sum(each.lost_by.values()) == pytest.approx(each.parts["lost"])
    # No second of an attempt or of a worker is left out.
    least = sum(holder.seconds * (holder.num_gpus or 1) for holder in holders)
    assert sum(each.total for each in found) >= least * (1 - 1e-9)
    times = [record.spent.seconds for evidence in stages for a in evidence.attempts
             if (record := a.end or a.heartbeat) is not None and record.spent is not None]  # fmt: skip
    assert sum(each.total for each in found) >= sum(times) * (1 - 1e-9)
