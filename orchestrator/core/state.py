"""States derived from evidence: product > end record > live heartbeat > scheduler. Nothing stores one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from orchestrator.core.failure import DETERMINISTIC, Cause
from orchestrator.core.records import Claim, Done, End, Heartbeat, Retired, StartRecord
from orchestrator.core.retention import describe
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.text import one_line

NOT_KEPT = "not_kept"
"""Why an attempt was released: what an earlier version left did not suffice, and inputs were retired."""

NOT_STARTED = "not started"
"""The reason of a stage that was never tried."""


class State(StrEnum):
    """Where a stage or a cell stands."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    FAILED = "failed"
    LOST = "lost"
    BLOCKED = "blocked"
    RELEASED = "released"
    CANCELLED = "cancelled"
    PENDING = "pending"
    UNKNOWN = "unknown"


FINAL = frozenset({State.DONE, State.FAILED, State.BLOCKED, State.CANCELLED})
"""States that no worker changes by itself."""


FAILED = frozenset({"failed", "unknown"})
"""Outcomes that count against the budget of a cause; an unknown one is a later version's word."""


class Liveness(StrEnum):
    """What an observer can say of the owner of an attempt that has no `end`."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


class Attempt(NamedTuple):
    """The records of one attempt; one that is absent or unreadable is None, the latter named in `problem`."""

    number: int
    claim: Claim | None = None
    start: StartRecord | None = None
    heartbeat: Heartbeat | None = None
    end: End | None = None
    problem: str = ""


class Former(NamedTuple):
    """The product of an earlier version of a stage, made from the same inputs.

    Attributes:
        node: what the stage was under that version.
        done: the product; None where it does not count.
        how: what the stage does with it, for people.
        problem: why it cannot be used, "" where it can.
    """

    node: StageInstance
    done: Done | None
    how: str
    problem: str = ""


class Evidence(NamedTuple):
    """What the store says of one stage.

    Attributes:
        attempts: by number, from 1.
        done: the product that counts, if there is one.
        generation: that of `done`, else the one that the next attempt makes.
        problem: damage or an unreadable record, named for the user.
        damaged: `generation` is that of a product that must be voided before the next attempt.
        liveness: of the owner of the highest attempt, when that has no `end`.
        liveness_reason: how that is known.
        liveness_cause: what the attempt counts as when its owner is gone.
        retired: what of the product's files is absent by decision.
        unreadable: why nothing is known, as where a folder refuses to be read; outranks all else.
        is_passing: whether that may be otherwise in a moment.
        former: of a stage that is not done, what an earlier version of it left; None for nothing.
    """

    attempts: tuple[Attempt, ...] = ()
    done: Done | None = None
    generation: int = 1
    problem: str = ""
    damaged: bool = False
    liveness: Liveness = Liveness.UNKNOWN
    liveness_reason: str = ""
    liveness_cause: Cause = Cause.NODE_LOST
    retired: tuple[Retired, ...] = ()
    unreadable: str = ""
    is_passing: bool = False
    former: Former | None = None


class Budget(NamedTuple):
    """How often each cause may be retried, and from which attempt on failures count.

    Attributes:
        retries: cause to number of retries; a cause that is not named has none.
        after: attempts up to this number count for no cause (a rerun was asked).
        after_chance: attempts up to this number count only for deterministic causes (a launch was asked).
    """

    retries: Mapping[str, int]
    after: int = 0
    after_chance: int = 0


class StageStatus(NamedTuple):
    """A stage's state by itself, whatever its inputs.

    Attributes:
        retired: how many files of its product are gone by decision and why; who still takes it is blocked,
            unless it can be made from `former`.
        former: what an earlier version of the stage left; None for nothing.
    """

    state: State
    reason: str
    cause: Cause | None = None
    attempts: int = 0
    seconds: float | None = None
    retired: str = ""
    former: Former | None = None

    @property
    def going_on(self) -> str:
        """What the stage does with the product of its earlier version, "" where there is none to use."""
        return self.former.how if self.former and not self.former.problem else ""


class CellStatus(NamedTuple):
    """A cell's state and that of each stage of its chain, by digest."""

    state: State
    reason: str
    cause: Cause | None
    attempts: int
    stages: dict[str, StageStatus]


def causes(evidence: Evidence) -> Iterator[tuple[int, Cause]]:
    """Yields (attempt, cause) of each attempt that failed or was lost, or whose product was.

    An attempt's cause is its `end`, or else what its successor's `supersedes` says, or else, for the last
    one, that its owner is gone. An owner that lived and gave way to its successor changes nothing: else
    workers that take each other for dead could take over for ever.
    """
    superseded = {
        later.claim.supersedes.attempt: later.claim.supersedes.cause
        for later in evidence.attempts
        if later.claim is not None and later.claim.supersedes is not None
    }
    for attempt in evidence.attempts:
        if attempt.end is not None:
            if attempt.end.outcome in FAILED:
                yield attempt.number, attempt.end.cause or Cause.UNKNOWN
            elif attempt.end.outcome == "succeeded" and evidence.done is None:
                yield attempt.number, Cause.STORAGE  # its product is gone
            elif attempt.end.why == "superseded" and attempt.number in superseded:
                yield attempt.number, superseded[attempt.number]
        elif attempt.number in superseded:
            yield attempt.number, superseded[attempt.number]
        elif attempt.number == evidence.attempts[-1].number and evidence.liveness is Liveness.GONE:
            yield attempt.number, evidence.liveness_cause


def spent(evidence: Evidence, budget: Budget) -> tuple[Cause, int] | None:
    """Returns the cause whose budget is spent and how many attempts failed by it, or None."""
    counts: dict[Cause, int] = {}
    for number, cause in causes(evidence):
        boundary = budget.after if cause in DETERMINISTIC else max(budget.after, budget.after_chance)
        if number > boundary and cause is not Cause.CANCELLED:  # that speaks against its job, not the stage
            counts[cause] = counts.get(cause, 0) + 1
    for cause, count in counts.items():
        if count > budget.retries.get(cause, 0):
            return cause, count
    return None


def stage_status(evidence: Evidence, budget: Budget) -> StageStatus:
    """Derives a stage's state from its evidence alone (not from its inputs)."""
    return _own_status(evidence, budget)._replace(former=_former(evidence, budget))


def _former(evidence: Evidence, budget: Budget) -> Former | None:
    """Return what is known of the earlier version's product, also by attempts that tried to use it."""
    if evidence.former is None or evidence.former.problem:
        return evidence.former
    for attempt in reversed(evidence.attempts):
        if attempt.end is not None and attempt.end.why == NOT_KEPT and attempt.number > budget.after:
            problem = f"attempt {attempt.number} found: {one_line(attempt.end.message)}"
            return evidence.former._replace(problem=problem)
    return evidence.former


def _own_status(evidence: Evidence, budget: Budget) -> StageStatus:
    num_attempts = evidence.attempts[-1].number if evidence.attempts else 0
    if evidence.unreadable:
        return StageStatus(State.UNKNOWN, evidence.unreadable)
    if evidence.done is not None:
        retired = describe(evidence.retired)
        reason = f"product, of which {retired} retired" if retired else "product"
        return StageStatus(State.DONE, reason, None, num_attempts, evidence.done.seconds, retired)
    if not evidence.attempts:
        return StageStatus(State.PENDING, evidence.problem or NOT_STARTED)
    last = evidence.attempts[-1]
    seconds = last.end.seconds if last.end else None
    if last.end is None and evidence.liveness is not Liveness.GONE:
        reason = "; ".join(filter(None, (evidence.liveness_reason, last.problem)))
        return StageStatus(State.RUNNING, reason, None, num_attempts)
    exhausted = spent(evidence, budget)
    if exhausted is not None:
        cause, count = exhausted
        message = one_line(last.end.message) if last.end else evidence.liveness_reason
        tries = "" if count == 1 else f", {count} attempts"
        return StageStatus(State.FAILED, f"{message} ({cause}{tries})", cause, num_attempts, seconds)
    if evidence.problem:
        return StageStatus(State.PENDING, evidence.problem, None, num_attempts, seconds)
    return _between_attempts(last, evidence, num_attempts, seconds)


def _between_attempts(
    last: Attempt, evidence: Evidence, num_attempts: int, seconds: float | None
) -> StageStatus:
    """A stage whose last attempt is over, and which may be tried again."""
    if last.end is None:
        reason = f"attempt {last.number} was lost: {evidence.liveness_reason}"
        return StageStatus(State.LOST, reason, evidence.liveness_cause, num_attempts)
    if last.end.outcome in FAILED:
        cause = last.end.cause or Cause.UNKNOWN
        reason = f"attempt {last.number} failed ({cause}), a retry is left: {one_line(last.end.message)}"
        return StageStatus(State.PENDING, reason, cause, num_attempts, seconds)
    if last.end.outcome == "released":
        reason = f"attempt {last.number} was released ({one_line(last.end.why)})"
        return StageStatus(State.RELEASED, reason, None, num_attempts, seconds)
    return StageStatus(State.PENDING, "its product no longer counts", None, num_attempts, seconds)


def _given_inputs(
    status: StageStatus, inputs: Sequence[tuple[StageInstance, StageStatus]], *, cancelled: bool, again: str
) -> StageStatus:
    """A stage's state given those of the products that it takes."""
    if status.state in (State.DONE, State.RUNNING):
        return status
    if cancelled and status.state is not State.FAILED:
        return status._replace(state=State.CANCELLED, reason="cancelled")
    for node, taken in inputs:
        if taken.retired and not status.going_on:  # outranks a failure: not even a rerun could go on
            reason = f"its input {node.name} retired {taken.retired}; to make it again: {again} {node.stage}"
            if status.former is not None:
                reason += f"; the product of its earlier version cannot be used: {status.former.problem}"
            return status._replace(state=State.BLOCKED, reason=reason, cause=None)
    for node, taken in inputs:
        if taken.state in _STUCK and status.state is not State.FAILED:
            reason = f"input {node.name} is {taken.state}"
            return status._replace(state=State.BLOCKED, reason=reason)
    retired = ", ".join(dict.fromkeys(node.stage for node, taken in inputs if taken.retired))
    if retired and status.state is not State.FAILED:
        reason = f"{status.going_on}, without what {retired} retired"
        reason += "" if status.reason == NOT_STARTED else f"; {status.reason}"
        return status._replace(reason=reason)
    return status


def goes_without(status: StageStatus, inputs: Iterable[StageStatus]) -> bool:
    """Return whether a stage will be made from what its earlier version left, for its inputs are retired."""
    return bool(status.going_on) and any(taken.retired for taken in inputs)


_STUCK = frozenset({State.FAILED, State.BLOCKED})
_PRECEDENCE = (
    State.FAILED,
    State.RUNNING,
    State.LOST,
    State.UNKNOWN,
    State.RELEASED,
    State.QUEUED,
    State.BLOCKED,
    State.CANCELLED,
    State.PENDING,
)


def cell_status(
    cell: Cell,
    nodes: Mapping[str, StageInstance],
    statuses: Mapping[str, StageStatus],
    *,
    cancelled: bool,
    sweep: str = "SWEEP",
) -> CellStatus:
    """Derives a cell's state from its stages: done when all are, else the state that needs most attention.

    Args:
        cell: the cell.
        nodes: digest to stage instance.
        statuses: digest to the stage's own state; must hold the cell's chain.
        cancelled: whether a cancel is in force for the cell.
        sweep: how commands that are suggested name it.
    """
    stages: dict[str, StageStatus] = {}
    for digest in cell.chain:
        inputs = [(nodes[taken.digest], stages[taken.digest]) for taken in nodes[digest].inputs]
        again = f"sweep discard {sweep} {cell.cell} --reason ... --stage"
        stages[digest] = _given_inputs(statuses[digest], inputs, cancelled=cancelled, again=again)
    attempts = sum(status.attempts for status in stages.values())
    if all(status.state is State.DONE for status in stages.values()):
        return CellStatus(State.DONE, "all stages are done", None, attempts, stages)
    for state in _PRECEDENCE:
        for digest, status in stages.items():
            if status.state is state:
                reason = f"{nodes[digest].name}: {status.reason}"
                return CellStatus(state, reason, status.cause, attempts, stages)
    raise AssertionError(f"no precedence for {[s.state for s in stages.values()]}")
