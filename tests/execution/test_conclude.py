"""How an attempt ended: one row a rule, and rows in which two rules meet, so that their ranks count."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from orchestrator.core.failure import Cause
from orchestrator.execution.assignment import NO_OUTCOME, ChildOutcome, Shortage
from orchestrator.execution.conclude import RULES, Conclusion, Fact, Facts, Rule, conclude

DONE = ChildOutcome(outcome="succeeded")
FAILED = ChildOutcome(
    outcome="failed", cause=Cause.NAN, exception="FloatingPointError", message="loss is nan"
)
NEEDS = ChildOutcome(outcome="failed", cause=Cause.DATA, exception="NotKept", message="no optimizer state")
SIGNALLED = ChildOutcome(outcome="released", why="stopped")
STOPPED = ChildOutcome(outcome="released", why="deadline")
FULL = Shortage(Cause.OOM_HOST, "61 of 64 GiB were used", at_once=True)
ERROR = "OSError: the store does not answer"

NEGATIVE: dict[str, Any] = {
    Fact.RECORDED: False,
    Fact.REFUSAL: "",
    Fact.SUPERSEDED: False,
    Fact.RETIRED_INPUT: "",
    Fact.SHORTAGE: None,
    Fact.STOP_CONFIRMED: False,
}


def facts(**given: Any) -> Facts:
    """All facts, established; those that are not given are negative."""
    return Facts(**{**NEGATIVE, **given})


def released(why: str, message: str = "", *, with_log: bool = False) -> Conclusion:
    return Conclusion("released", why=why, message=message, with_log=with_log)


def failed(cause: Cause, message: str, exception: str = "", *, with_log: bool = True) -> Conclusion:
    return Conclusion("failed", cause=cause, message=message, exception=exception, with_log=with_log)


ROWS: dict[str, tuple[Facts, Conclusion]] = {
    "the store failed after it recorded the product": (
        facts(error=ERROR, recorded=True),
        Conclusion("succeeded"),
    ),
    "the product is refused": (
        facts(child=DONE, refusal="input_retired"),
        released("input_retired"),
    ),
    "the product is published": (
        facts(child=DONE),
        Conclusion("succeeded"),
    ),
    "a successor or its product exists": (
        facts(superseded=True),
        released("superseded"),
    ),
    "the store failed": (
        facts(error=ERROR),
        failed(Cause.STORAGE, ERROR, with_log=False),
    ),
    "the output changed": (
        facts(child=DONE, changed="a.bin is missing"),
        failed(Cause.CODE, "the output changed after the stage returned: a.bin is missing"),
    ),
    "the stage needs the retired inputs": (
        facts(child=NEEDS, goes_without=True),
        released("not_kept", "no optimizer state", with_log=True),
    ),
    "an input was retired meanwhile": (
        facts(child=FAILED, retired_input="prepare"),
        released(
            "input_retired",
            "files of its input prepare were retired meanwhile: loss is nan",
            with_log=True,
        ),
    ),
    "its time limit is over": (
        facts(timed_out=True, seconds=3600.2),
        failed(Cause.TIMEOUT, "no end after its limit of 3600 s"),
    ),
    "its node is short of memory": (
        facts(shortage=FULL),
        failed(Cause.OOM_HOST, "61 of 64 GiB were used"),
    ),
    "the child was stopped by its worker": (
        facts(child=STOPPED),
        released("deadline"),
    ),
    "the child was stopped with its worker": (
        facts(child=SIGNALLED, stop_confirmed=True),
        released("stopped"),
    ),
    "the child was stopped by a signal of unknown origin": (
        facts(child=SIGNALLED),
        failed(Cause.UNKNOWN, "the stage's process received SIGTERM, but nobody asked for a stop"),
    ),
    "the child recorded a failure": (
        facts(child=FAILED),
        failed(Cause.NAN, "loss is nan", "FloatingPointError"),
    ),
    "the child was killed after a stop": (
        facts(stop="preempted", exit_code=-9),
        released("preempted"),
    ),
    "the child could not record its outcome": (
        facts(exit_code=NO_OUTCOME),
        failed(Cause.STORAGE, "the stage's process could not write its outcome to the store"),
    ),
    "the child died": (
        facts(exit_code=-9, oom_killed=True),
        failed(Cause.OOM_HOST, "the stage's process was killed while the kernel was out of memory"),
    ),
}


def applies(rule: Rule, given: Facts) -> bool:
    """Whether a rule would decide if no other came before it."""
    return rule.when(given) and (rule.fact is None or bool(getattr(given, rule.fact)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_decides_by_its_own_facts(rule: Rule) -> None:
    given, right = ROWS[rule.name]
    assert next(each.name for each in RULES if applies(each, given)) == rule.name
    assert conclude(given) == right


def test_each_rule_has_one_row() -> None:
    assert list(ROWS) == [rule.name for rule in RULES]


RECORDED, REFUSED, PUBLISHED, SUPERSEDED, STORE, CHANGED, NEEDED, RETIRED, LIMIT = range(9)
MEMORY, WORKER, CONFIRMED, STRAY, FAILURE, KILLED, NO_RECORD, DIED = range(9, 17)

MEETINGS: list[tuple[int, int, Facts, tuple[str, str | None]]] = [
    (RECORDED, SUPERSEDED, facts(error=ERROR, recorded=True, superseded=True), ("succeeded", None)),
    (RECORDED, STORE, facts(error=ERROR, recorded=True), ("succeeded", None)),
    (REFUSED, PUBLISHED, facts(child=DONE, refusal="input_retired"), ("released", "input_retired")),
    (
        REFUSED,
        SUPERSEDED,
        facts(child=DONE, refusal="input_retired", superseded=True),
        ("released", "input_retired"),
    ),
    (PUBLISHED, SUPERSEDED, facts(child=DONE, superseded=True), ("succeeded", None)),
    (PUBLISHED, LIMIT, facts(child=DONE, timed_out=True), ("succeeded", None)),
    (PUBLISHED, MEMORY, facts(child=DONE, shortage=FULL), ("succeeded", None)),
    (PUBLISHED, KILLED, facts(child=DONE, stop="preempted", exit_code=-9), ("succeeded", None)),
    (SUPERSEDED, STORE, facts(error=ERROR, superseded=True), ("released", "superseded")),
    (SUPERSEDED, CHANGED, facts(child=DONE, changed="x", superseded=True), ("released", "superseded")),
    (
        SUPERSEDED,
        NEEDED,
        facts(child=NEEDS, goes_without=True, superseded=True),
        ("released", "superseded"),
    ),
    (
        SUPERSEDED,
        RETIRED,
        facts(child=FAILED, retired_input="prepare", superseded=True),
        ("released", "superseded"),
    ),
    (SUPERSEDED, LIMIT, facts(timed_out=True, superseded=True), ("released", "superseded")),
    (SUPERSEDED, WORKER, facts(child=STOPPED, superseded=True), ("released", "superseded")),
    (SUPERSEDED, FAILURE, facts(child=FAILED, superseded=True), ("released", "superseded")),
    (STORE, CHANGED, facts(error=ERROR, child=DONE, changed="x"), ("failed", "storage")),
    (STORE, RETIRED, facts(error=ERROR, retired_input="prepare"), ("failed", "storage")),
    (STORE, DIED, facts(error=ERROR, exit_code=-9), ("failed", "storage")),
    (CHANGED, LIMIT, facts(child=DONE, changed="x", timed_out=True), ("failed", "code")),
    (CHANGED, MEMORY, facts(child=DONE, changed="x", shortage=FULL), ("failed", "code")),
    (CHANGED, KILLED, facts(child=DONE, changed="x", stop="stopped"), ("failed", "code")),
    (NEEDED, LIMIT, facts(child=NEEDS, goes_without=True, timed_out=True), ("released", "not_kept")),
    (NEEDED, MEMORY, facts(child=NEEDS, goes_without=True, shortage=FULL), ("released", "not_kept")),
    (NEEDED, FAILURE, facts(child=NEEDS, goes_without=True), ("released", "not_kept")),
    (RETIRED, LIMIT, facts(timed_out=True, retired_input="prepare"), ("released", "input_retired")),
    (RETIRED, MEMORY, facts(shortage=FULL, retired_input="prepare"), ("released", "input_retired")),
    (RETIRED, FAILURE, facts(child=FAILED, retired_input="prepare"), ("released", "input_retired")),
    (RETIRED, KILLED, facts(stop="stopped", retired_input="prepare"), ("released", "input_retired")),
    (
        RETIRED,
        NO_RECORD,
        facts(exit_code=NO_OUTCOME, retired_input="prepare"),
        ("released", "input_retired"),
    ),
    (RETIRED, DIED, facts(exit_code=-9, retired_input="prepare"), ("released", "input_retired")),
    (LIMIT, MEMORY, facts(timed_out=True, shortage=FULL), ("failed", "timeout")),
    (LIMIT, WORKER, facts(child=STOPPED, timed_out=True), ("failed", "timeout")),
    (LIMIT, CONFIRMED, facts(child=SIGNALLED, timed_out=True, stop_confirmed=True), ("failed", "timeout")),
    (LIMIT, FAILURE, facts(child=FAILED, timed_out=True), ("failed", "timeout")),
    (LIMIT, KILLED, facts(timed_out=True, stop="stopped", exit_code=-9), ("failed", "timeout")),
    (LIMIT, DIED, facts(timed_out=True, exit_code=-9), ("failed", "timeout")),
    (MEMORY, WORKER, facts(child=STOPPED, shortage=FULL), ("failed", "oom_host")),
    (MEMORY, CONFIRMED, facts(child=SIGNALLED, shortage=FULL, stop_confirmed=True), ("failed", "oom_host")),
    (MEMORY, STRAY, facts(child=SIGNALLED, shortage=FULL), ("failed", "oom_host")),
    (MEMORY, FAILURE, facts(child=FAILED, shortage=FULL), ("failed", "oom_host")),
    (MEMORY, KILLED, facts(stop="stopped", shortage=FULL, exit_code=-9), ("failed", "oom_host")),
    (MEMORY, DIED, facts(exit_code=-9, shortage=FULL), ("failed", "oom_host")),
    (WORKER, STRAY, facts(child=STOPPED), ("released", "deadline")),
    (WORKER, KILLED, facts(child=STOPPED, stop="cancelled"), ("released", "deadline")),
    (CONFIRMED, STRAY, facts(child=SIGNALLED, stop_confirmed=True), ("released", "stopped")),
    (
        CONFIRMED,
        KILLED,
        facts(child=SIGNALLED, stop="deadline", stop_confirmed=True),
        ("released", "stopped"),
    ),
    (STRAY, FAILURE, facts(child=SIGNALLED), ("failed", "unknown")),
    (FAILURE, KILLED, facts(child=FAILED, stop="stopped"), ("failed", "nan")),
    (FAILURE, DIED, facts(child=FAILED, exit_code=-9), ("failed", "nan")),
    (KILLED, NO_RECORD, facts(stop="preempted", exit_code=NO_OUTCOME), ("released", "preempted")),
    (KILLED, DIED, facts(stop="preempted", exit_code=-9, oom_killed=True), ("released", "preempted")),
    (NO_RECORD, DIED, facts(exit_code=NO_OUTCOME), ("failed", "storage")),
]


@pytest.mark.parametrize(
    ("first", "second", "given", "right"),
    [pytest.param(*row, id=f"{RULES[row[0]].name} before {RULES[row[1]].name}") for row in MEETINGS],
)
def test_of_two_rules_that_apply_the_higher_one_decides(
    first: int, second: int, given: Facts, right: tuple[str, str | None]
) -> None:
    assert applies(RULES[first], given) and applies(RULES[second], given)
    found = conclude(given)
    assert isinstance(found, Conclusion)
    assert (found.outcome, found.why or found.cause) == right
    assert found != RULES[second].conclusion(given)


def test_any_two_neighbours_meet_in_a_row_unless_they_exclude_each_other_or_agree() -> None:
    met = {(first, second) for first, second, *_ in MEETINGS}
    exclude = {(RECORDED, REFUSED), (CHANGED, NEEDED), (NEEDED, RETIRED)}
    agree = {(WORKER, CONFIRMED)}
    assert {(rank, rank + 1) for rank in range(len(RULES) - 1)} <= met | exclude | agree


@pytest.mark.parametrize(
    ("given", "requested"),
    [
        (Facts(child=DONE, timed_out=True), [Fact.REFUSAL]),
        (Facts(error=ERROR), [Fact.RECORDED, Fact.SUPERSEDED]),
        (Facts(child=DONE, changed="x"), [Fact.SUPERSEDED]),
        (Facts(child=NEEDS, goes_without=True), [Fact.SUPERSEDED]),
        (Facts(child=FAILED, goes_without=True), [Fact.SUPERSEDED, Fact.SHORTAGE]),
        (Facts(child=FAILED), [Fact.SUPERSEDED, Fact.RETIRED_INPUT, Fact.SHORTAGE]),
        (Facts(timed_out=True), [Fact.SUPERSEDED, Fact.RETIRED_INPUT]),
        (Facts(child=STOPPED), [Fact.SUPERSEDED, Fact.SHORTAGE]),
        (Facts(child=SIGNALLED), [Fact.SUPERSEDED, Fact.SHORTAGE, Fact.STOP_CONFIRMED]),
    ],
)
def test_only_facts_on_which_the_end_depends_are_requested(given: Facts, requested: list[Fact]) -> None:
    """A judgement of memory has effects, a wait for a stop costs time, and each request may fail."""
    found = []
    while isinstance(decision := conclude(given), Fact):
        found.append(decision)
        given = replace(given, **{decision: NEGATIVE[decision]})
    assert found == requested


def test_an_established_fact_ends_the_requests_if_it_decides() -> None:
    assert conclude(Facts(child=FAILED, superseded=True)) == released("superseded")
    assert conclude(Facts(error=ERROR, recorded=True)) == Conclusion("succeeded")
