"""Which notices are due, their texts and fields, and when they are tried again, is as recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from orchestrator.core.evidence import Hold, Holds
from orchestrator.core.failure import Cause
from orchestrator.core.notices import AlikeFailures, due_events, next_try, pause_after_refusal, within_limit
from orchestrator.core.settings import NOTICE_KINDS, SpendingLimit
from tests.core.test_due_notices import facts, sent
from tests.recording import Answers

HOLDS = {
    "": Holds(),
    "breaker": Holds(
        {"a": Hold("two cells failed alike", cause=Cause.CODE, failure="f" * 10), "b": Hold("x")}
    ),
    "two": Holds({c: Hold("failed alike", cause=Cause.NAN, failure=f"f{c}") for c in "abc"}),
    "budget": Holds(stages={f"d{c}": Hold("the budget is spent") for c in "abc"}),
    "for a while": Holds(stages={f"d{c}": Hold("the disk is full", False, Cause.STORAGE) for c in "abc"}),
}
FAILURES = {
    "": (),
    "one": (AlikeFailures("f0", "code", "train of a", "ValueError: bad\nline two", 1),),
    "many": (
        AlikeFailures("f1", "oom_gpu", "cell 1", "bad " * 100, 1),
        AlikeFailures("f2", "nan", "cell 2", "b", 2),
    ),
    "jobs": (AlikeFailures("job", "timeout", "job 12", "DUE TO TIME LIMIT", 3),),
}
STATES = (
    "done done done", "done failed cancelled", "done pending pending", "failed blocked blocked", "running done",
    "queued done", "stopped done", "lost released unknown", "done", "failed",
)  # fmt: skip


def events() -> Answers:
    """The events of sweeps in many states."""
    for states, (held, holds), (failed, failures) in itertools.product(
        STATES, HOLDS.items(), FAILURES.items()
    ):
        for quiet_s, limit, codes in itertools.product(
            (0.0, 599.0, 7230.0),
            (SpendingLimit(), SpendingLimit(gpu_hours=9.5)),
            ({}, {"a": "c" * 64, "b": "d" * 64}),
        ):
            if (failed and (quiet_s or codes)) or (codes and held not in ("breaker", "two")):
                continue
            found = facts(states, failures=failures, holds=holds, codes=codes, budget=limit, quiet_s=quiet_s)
            for stalled_s in (0.0, 1.0, 600.0) if quiet_s else (600.0,):
                notices = due_events(found, kinds=NOTICE_KINDS, stalled_s=stalled_s)
                question = f"{states}, holds {held}, failures {failed}, quiet {quiet_s} of {stalled_s}, {limit.gpu_hours}"
                yield question, [tuple(notice) for notice in notices]
    some = facts(STATES[1], failures=FAILURES["many"], quiet_s=7230.0)
    for kind in NOTICE_KINDS:
        yield f"only {kind}", [n.kind for n in due_events(some, kinds=[kind], stalled_s=1.0)]


def tries() -> Answers:
    """When a notice is tried again."""
    for length in (0, 1, 2, 3, 4):
        for outcomes in itertools.product(("refused", "unclear", "delivered", None), repeat=length):
            if length > 2 and set(outcomes[:-1]) != {"refused"}:
                continue
            made = [sent(number, outcome) for number, outcome in enumerate(outcomes, start=1)]  # type: ignore[arg-type]
            for age, is_due in itertools.product(
                (None, 0.0, 1.0, 59.0, 60.0, 61.0, 119.0, 120.0, 121.0, 1e6), (True, False)
            ):
                found = next_try(made, {} if age is None else {length: age}, is_due=is_due)
                yield f"{outcomes} {age} {is_due}", tuple(found)
    for number, asked in itertools.product((1, 2, 3, 4, 9), (None, 0.0, 0.5, 30.0, 59.0, 61.0, 1e6)):
        yield f"pause {number} {asked}", pause_after_refusal(number, asked)


def limits() -> Answers:
    """Which of many failures are sent."""
    many = tuple(AlikeFailures(f"f{n:02}", "code", "x", "y", 1) for n in range(30))
    due = due_events(facts("failed done", failures=many), kinds=NOTICE_KINDS, stalled_s=0.0)
    for known in (0, 1, 5, 19, 20, 21, 30):
        before = [notice.id for notice in due if notice.kind == "failure"][:known]
        for more in ([], ["done-1", "breaker-x"]):
            yield f"{known} known, {more}", [notice.id for notice in within_limit(due, [*before, *more])]


ASKED: Mapping[str, Callable[[], Answers]] = {"events": events, "tries": tries, "limits": limits}
