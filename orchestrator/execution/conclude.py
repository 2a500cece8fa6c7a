"""The decision how an attempt ended. Pure: no I/O, no clock, no randomness.

Several things can be true at once: a stage may fail because its input was deleted, while its worker is being
stopped. `RULES` ranks them; the first rule that applies decides. Causes outside the stage come before the
stage's own error, so that they do not spend its retry budget::

    product > superseded > store's error > changed output > retired input > time limit > memory > outcome >
        stop > exit code

Some facts are established only if the decision depends on them. Each costs a request to the store or a wait,
or has an effect. `conclude` then returns the fact to establish, and is called again with it::

    conclude(Facts())                           -> Fact.SUPERSEDED     look for a successor
    conclude(Facts(superseded=False))           -> Fact.RETIRED_INPUT  look for retired inputs
    conclude(Facts(superseded=False, retired_input="prepare"))  -> released, input_retired
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from orchestrator.core.evidence import NOT_KEPT
from orchestrator.core.exits import cause_of_exit
from orchestrator.core.failure import Cause
from orchestrator.errors import NotKept
from orchestrator.execution.assignment import NO_OUTCOME, NO_SPACE, ChildOutcome, Shortage

INPUT_RETIRED, SUPERSEDED = "input_retired", "superseded"
"""Reasons of a release, as `End.why` records them."""

NO_RECORD = ChildOutcome(outcome="")
"""Stands for the outcome of a child that died without one."""


class Fact(StrEnum):
    """A fact that is established only on request. The value is its field in `Facts`."""

    RECORDED = "recorded"
    REFUSAL = "refusal"
    SUPERSEDED = "superseded"
    RETIRED_INPUT = "retired_input"
    SHORTAGE = "shortage"
    STOP_CONFIRMED = "stop_confirmed"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an attempt when nothing of it runs any more.

    Attributes:
        error: the error of the store that ended the attempt's supervision; "" for none. No other fact of the
            child is known then.
        child: what the child recorded; `NO_RECORD` if it left no record.
        changed: the first difference between the output and the child's record of it; "" for none.
        goes_without: whether files of its inputs were retired before the start, so that it was given the
            product of an earlier version of the stage instead.
        timed_out: whether the worker killed the child at the stage's time limit.
        seconds: wall time of the attempt so far.
        stop: why the worker stopped the child, "" if it did not.
        exit_code: of the child; negative for a signal.
        oom_killed: whether the kernel's OOM killer was active on this machine while the child ran.
        log: the last lines that a child printed which left no record.
        recorded: whether `done` names this attempt, looked up after an error of the store.
        refusal: why the product was not accepted, "" if `done` names it now. To establish this, publish the
            product.
        superseded: whether a later attempt or a product exists, or the generation is void.
        retired_input: stage of an input whose files were retired meanwhile, "" for none.
        shortage: the lack of memory on the node that ended the worker, None without one. To look it up also
            records which worker is at fault.
        stop_confirmed: whether the worker too received the stop that ended the child. The news may take a
            moment, so this may wait.
    """

    error: str = ""
    child: ChildOutcome = NO_RECORD
    changed: str = ""
    goes_without: bool = False
    timed_out: bool = False
    seconds: float = 0.0
    stop: str = ""
    exit_code: int = 0
    oom_killed: bool = False
    log: str = ""
    recorded: bool | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    superseded: bool | UnsetType = UNSET
    retired_input: str | UnsetType = UNSET
    shortage: Shortage | UnsetType | None = UNSET
    stop_confirmed: bool | UnsetType = UNSET

    @property
    def has_product(self) -> bool:
        """Whether the child finished, and its output is still as it was then."""
        return not self.error and self.child.outcome == "succeeded" and not self.changed


class Conclusion(NamedTuple):
    """How an attempt ended: the part of its `End` record that is decided.

    Attributes:
        outcome, why, cause, exception, message: as in `orchestrator.core.records.End`.
        with_log: whether the record holds the last lines of the log.
    """

    outcome: Literal["succeeded", "failed", "released"]
    why: str = ""
    cause: Cause | None = None
    exception: str = ""
    message: str = ""
    with_log: bool = False


class Rule(NamedTuple):
    """One row of the decision table.

    Attributes:
        name: the condition in words.
        when: whether the rule can apply, by the facts that are always known.
        conclusion: how the attempt ended, if the rule applies.
        fact: the fact that must also hold; None if `when` is the whole condition.
    """

    name: str
    when: Callable[[Facts], bool]
    conclusion: Callable[[Facts], Conclusion]
    fact: Fact | None = None


def conclude(facts: Facts) -> Conclusion | Fact:
    """Return how an attempt ended, or the fact that must be established before that can be decided."""
    for rule in RULES:
        if not rule.when(facts):
            continue
        holds = True if rule.fact is None else getattr(facts, rule.fact)
        if holds is UNSET:
            assert rule.fact is not None
            return rule.fact
        if holds:
            return rule.conclusion(facts)
    raise AssertionError("the last rule applies to all facts")


def _failed(cause: Cause | None, message: str, exception: str = "") -> Conclusion:
    return Conclusion("failed", cause=cause, message=message, exception=exception, with_log=True)


def _without_former(facts: Facts) -> Conclusion:
    return Conclusion("released", why=NOT_KEPT, message=facts.child.message, with_log=True)


def _input_retired(facts: Facts) -> Conclusion:
    message = f"files of its input {facts.retired_input} were retired meanwhile"
    message += f": {facts.child.message}" if facts.child.outcome else ""
    return Conclusion("released", why=INPUT_RETIRED, message=message, with_log=True)


def _short_of_memory(facts: Facts) -> Conclusion:
    assert isinstance(facts.shortage, Shortage)
    return _failed(facts.shortage.cause, facts.shortage.message)


def _without_outcome(facts: Facts) -> Conclusion:
    why = ": No space left on device" if facts.exit_code == NO_SPACE else ""
    return _failed(Cause.STORAGE, f"the stage's process could not write its outcome to the store{why}")


RULES = (
    # An error may come after `done` was created, and a product that exists counts. It would otherwise be
    # taken for a successor's below. After an error nothing is published, so the next two rules do not apply.
    Rule(
        "the store failed after it recorded the product",
        lambda facts: facts.error != "",
        lambda facts: Conclusion("succeeded"),
        Fact.RECORDED,
    ),
    # A refused product does not count, so this comes before the rule that takes it for published.
    Rule(
        "the product is refused",
        lambda facts: facts.has_product,
        lambda facts: Conclusion("released", why=str(facts.refusal)),
        Fact.REFUSAL,
    ),
    # `done` exists only once, so this attempt has the result, even if a successor runs by now. A stop or a
    # time limit that came after the child's end changes nothing about its product.
    Rule("the product is published", lambda facts: facts.has_product, lambda facts: Conclusion("succeeded")),
    # A fenced attempt has no part in the result. Any error may be a consequence of its successor, also one of
    # the store, so it must cost no retry budget.
    Rule(
        "a successor or its product exists",
        lambda facts: True,
        lambda facts: Conclusion("released", why=SUPERSEDED),
        Fact.SUPERSEDED,
    ),
    # No fact of the child is known after an error of the store, so all rules below would judge nothing.
    Rule(
        "the store failed",
        lambda facts: facts.error != "",
        lambda facts: Conclusion("failed", cause=Cause.STORAGE, message=facts.error),
    ),
    # The stage returned without an error, so neither retired inputs nor a time limit or a stop explain why
    # its output changed afterwards. A release would hide a defect that recurs.
    Rule(
        "the output changed",
        lambda facts: facts.child.outcome == "succeeded",
        lambda facts: _failed(Cause.CODE, f"the output changed after the stage returned: {facts.changed}"),
    ),
    # The stage reported that it needs the files that were retired before its start. That blocks it whatever
    # else is true. The next rule is about files that were retired later.
    Rule(
        "the stage needs the retired inputs",
        lambda facts: facts.goes_without and facts.child.exception == NotKept.__name__,
        _without_former,
    ),
    # A stage whose files vanish may fail in any way, and may hang until its time limit. It is not at fault,
    # so this comes before all rules that spend a budget.
    Rule(
        "an input was retired meanwhile",
        lambda facts: not facts.goes_without and facts.child.outcome in ("", "failed"),
        _input_retired,
        Fact.RETIRED_INPUT,
    ),
    # The worker killed the child for this. A judgement of memory affects other workers, so it is made only
    # where the time limit does not explain the end.
    Rule(
        "its time limit is over",
        lambda facts: facts.timed_out,
        lambda facts: _failed(Cause.TIMEOUT, f"no end after its limit of {facts.seconds:.0f} s"),
    ),
    # The worker was ended for memory, and stopped its child for that. The child records only that it was
    # stopped. The true cause must be recorded, because the next job may need more memory.
    Rule("its node is short of memory", lambda facts: True, _short_of_memory, Fact.SHORTAGE),
    # Reasons such as "deadline" come from the worker, and "superseded" from the child's own fence check. No
    # signal causes them, so they do not need the confirmation of the next rule.
    Rule(
        "the child was stopped by its worker",
        lambda facts: facts.child.outcome == "released" and facts.child.why != "stopped",
        lambda facts: Conclusion("released", why=facts.child.why),
    ),
    # A scheduler signals all processes at once: the child may end before the worker's signal arrives. Only a
    # signal that the worker does not receive too is a stray one, which the next rule is about.
    Rule(
        "the child was stopped with its worker",
        lambda facts: facts.child.outcome == "released",
        lambda facts: Conclusion("released", why=facts.child.why),
        Fact.STOP_CONFIRMED,
    ),
    # A release would cost no budget, and a stage that something signals again and again would never end. The
    # child recorded no cause, so the next rule would record a failure without a reason.
    Rule(
        "the child was stopped by a signal of unknown origin",
        lambda facts: facts.child.outcome == "released",
        lambda facts: _failed(
            Cause.UNKNOWN, "the stage's process received SIGTERM, but nobody asked for a stop"
        ),
    ),
    # The child records an error that is only a consequence of a stop as a release. What it recorded as a
    # failure is therefore the stage's own, even if the worker stopped it.
    Rule(
        "the child recorded a failure",
        lambda facts: facts.child.outcome != "",
        lambda facts: _failed(facts.child.cause, facts.child.message, facts.child.exception),
    ),
    # A child that does not stop in its grace period is killed: its exit code is that of our own signal.
    Rule(
        "the child was killed after a stop",
        lambda facts: facts.stop != "",
        lambda facts: Conclusion("released", why=facts.stop),
    ),
    # `cause_of_exit` has no meaning for this code: the failure would spend the budget of unknown causes.
    Rule(
        "the child could not record its outcome",
        lambda facts: facts.exit_code in (NO_OUTCOME, NO_SPACE),
        _without_outcome,
    ),
    # Last, because an exit code is the weakest evidence: every end has one.
    Rule(
        "the child died",
        lambda facts: True,
        lambda facts: _failed(*cause_of_exit(facts.exit_code, facts.log, oom_killed=facts.oom_killed)),
    ),
)
"""All rules, the highest-ranked first. The last one applies to all facts."""
