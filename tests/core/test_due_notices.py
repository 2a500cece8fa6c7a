"""Which events are due, and whether a notice may be sent. Tables over records."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from orchestrator.core.evidence import Hold, Holds
from orchestrator.core.failure import Cause
from orchestrator.core.notices import (
    MAX_FAILURES,
    MAX_PAUSE_S,
    PAUSES_S,
    AlikeFailures,
    NoticeFacts,
    NoticeOutcome,
    NoticeTry,
    SentTry,
    due_events,
    next_try,
    pause_after_refusal,
    within_limit,
)
from orchestrator.core.settings import NOTICE_KINDS, SpendingLimit
from orchestrator.core.state import CellStatus, State

Answer = Literal["delivered", "refused", "unclear", "unknown"]


def facts(states: str, **changes: Any) -> NoticeFacts:
    """Return facts on cells a, b, ... in these states, such as ``done failed``."""
    cells = {"abcdef"[i]: CellStatus(State(state), "", None, 1, {}) for i, state in enumerate(states.split())}
    usual = NoticeFacts(
        sweep="s",
        revision=2,
        cells=cells,
        marks={f"d{cell}": "1" for cell in cells},
        failures=(),
        holds=Holds(),
        codes={},
        budget=SpendingLimit(),
        quiet_s=0.0,
    )
    return usual._replace(**changes)


def due(found: NoticeFacts, stalled_s: float = 600.0) -> list[tuple[str, str]]:
    return [(n.kind, n.id) for n in due_events(found, kinds=NOTICE_KINDS, stalled_s=stalled_s)]


def kinds(found: NoticeFacts, stalled_s: float = 600.0) -> list[str]:
    return [kind for kind, _ in due(found, stalled_s)]


def alike(digest: str = "f0", number: int = 1) -> AlikeFailures:
    return AlikeFailures(digest, "code", "train of a", "ValueError: bad <row>", number)


def test_a_sweep_has_ended_when_no_launched_cell_can_go_on():
    assert kinds(facts("")) == []
    assert kinds(facts("done running")) == []
    assert kinds(facts("done done")) == ["done"]
    (notice,) = due_events(facts("done failed cancelled"), kinds=NOTICE_KINDS, stalled_s=0)
    assert notice.text == "s@2 has ended: 3 cells: 1 done, 1 failed, 1 cancelled"
    assert notice.facts["counts"] == {"done": 1, "failed": 1, "cancelled": 1} and not notice.facts["is_done"]


def test_the_end_is_another_event_after_another_attempt_product_or_cell():
    ids = {name for _, name in due(facts("done done"))}
    assert ids == {name for _, name in due(facts("done done"))}  # whoever looks, and how often
    ids |= {name for _, name in due(facts("done done", marks={"da": "2", "db": "1"}))}
    ids |= {name for _, name in due(facts("done done", revision=3))}
    ids |= {name for _, name in due(facts("done done done"))}
    assert len(ids) == 4 and all("/" not in name for name in ids)


def test_failures_are_one_event_for_each_fingerprint_and_jobs_one_for_each_cause():
    job = AlikeFailures("job", "timeout", "a", "TIME LIMIT", 2)
    found = facts("failed running", failures=[alike(number=3), alike("f1"), job])
    assert due(found) == [
        ("failure", "failure-code-f0"),
        ("failure", "failure-code-f1"),
        ("failure", "failure-timeout-job"),
    ]
    text = due_events(found, kinds=["failure"], stalled_s=0)[0].text
    assert text == (
        "s@2: first failure by code: train of a (and 2 more alike): ValueError: bad <row> (sweep failures s)"
    )
    assert due_events(found, kinds=["done"], stalled_s=0) == []


def test_a_sweep_has_notices_of_few_kinds_of_failures():
    found = facts("failed running", failures=[alike(f"f{n}") for n in range(MAX_FAILURES + 5)])
    notices = due_events(found, kinds=NOTICE_KINDS, stalled_s=0)
    known = {"failure-code-f3", "failure-nan-other", "done@1-ab"}
    sent = within_limit(notices, known)
    assert len(sent) == MAX_FAILURES - 1 and "failure-code-f3" in {notice.id for notice in sent}
    assert within_limit(notices, {n.id for n in sent} | known) == sent  # those of before may be tried again


def test_a_breaker_is_one_event_for_each_fingerprint_and_code():
    hold = Hold("3 cells failed alike", cause=Cause.CODE, failure="f0")
    held = facts("failed blocked blocked running", holds=Holds({"a": hold, "b": hold, "c": hold}))
    held = held._replace(codes=dict.fromkeys("bc", "c0de" * 9))
    assert due(held) == [("breaker", "breaker-f0-c0dec0de")]
    assert (
        "2 cells held back: 3 cells failed alike" in due_events(held, kinds=NOTICE_KINDS, stalled_s=0)[0].text
    )
    assert due(held._replace(codes=dict.fromkeys("bc", "beef" * 9))) == [("breaker", "breaker-f0-beefbeef")]
    assert due(facts("blocked running", holds=Holds({"a": Hold("waits for a gate")}))) == []


def test_a_budget_is_reached_once_and_a_larger_one_again():
    holds = Holds(stages={"da": Hold("9 of policy.budget.gpu_hours=9 are spent")})
    reached = facts("done blocked running", holds=holds, budget=SpendingLimit(gpu_hours=9.0))
    ((kind, first),) = due(reached)
    ((_, second),) = due(reached._replace(budget=SpendingLimit(gpu_hours=12.0)))
    assert kind == "budget" and first != second
    assert kinds(facts("done failed", holds=holds, budget=SpendingLimit(gpu_hours=9.0))) == ["done"]


def test_a_sweep_is_stalled_when_cells_are_left_and_nothing_changes():
    quiet = facts("done pending", quiet_s=601.0)
    ((kind, first),) = due(quiet)
    assert kind == "stalled"
    assert due(quiet, stalled_s=0) == [] and due(quiet, stalled_s=602) == []
    assert due(facts("done queued", quiet_s=9999.0)) == []  # a scheduler's queue is no stall
    assert kinds(facts("done failed", quiet_s=9999.0)) == ["done"]
    assert due(quiet._replace(quiet_s=7777.0)) == [("stalled", first)]
    ((_, second),) = due(quiet._replace(marks={"da": "1", "db": "2"}))  # it went on, and stands still again
    assert first != second


def sent(number: int, outcome: Answer | None, pause_s: float = 60.0) -> SentTry:
    begun = NoticeTry(nonce="", event="e", channel="webhook", number=number, by="me@here")
    ended = None if outcome is None else NoticeOutcome(outcome=outcome, detail="HTTP 500", pause_s=pause_s)
    return SentTry(begun, ended)


@pytest.mark.parametrize(
    ("outcomes", "age_s", "number", "why"),
    [
        ([], 0, 1, ""),
        (["delivered"], 1e9, 0, ""),
        (["refused"], 59, 2, "refused, to be tried again: HTTP 500"),
        (["refused", "refused", "refused"], 61, 4, "refused, to be tried again: HTTP 500"),
        (["refused"] * 4, 1e9, 0, "refused 4 times: HTTP 500"),
        (["refused", "delivered"], 1e9, 0, ""),
        (["unclear"], 1e9, 0, "unclear, HTTP 500: not tried again"),
        (["unknown"], 1e9, 0, "unclear, HTTP 500: not tried again"),
        (["refused", "unclear"], 1e9, 0, "unclear, HTTP 500: not tried again"),
        ([None], 5, 0, "me@here is sending it"),
        ([None], 500, 0, "unclear, its sender me@here was lost: not tried again"),
        (["refused", None], 500, 0, "unclear, its sender me@here was lost: not tried again"),
    ],
)
def test_only_refused_notices_are_tried_again(outcomes: list[Any], age_s: float, number: int, why: str):
    tries = [sent(n, outcome) for n, outcome in enumerate(outcomes, start=1)]
    found = next_try(tries, {len(tries): age_s})
    assert (found.number, found.why) == (number, why)
    assert found.wait_s == (60 - age_s if number > 1 and age_s < 60 else 0)


def test_a_refused_notice_of_an_event_that_is_past_is_not_tried_again():
    found = next_try([sent(1, "refused")], {1: 61}, is_due=False)
    assert (found.number, found.why) == (0, "refused, and no longer true of the sweep: HTTP 500")


def test_pauses_grow_and_follow_the_receiver_up_to_a_limit():
    assert [pause_after_refusal(number, None) for number in (1, 2, 3, 4)] == [*PAUSES_S, PAUSES_S[-1]]
    assert pause_after_refusal(1, 30.0) == 30.0 and pause_after_refusal(3, 30.0) == PAUSES_S[-1]
    assert pause_after_refusal(1, 1e6) == MAX_PAUSE_S
