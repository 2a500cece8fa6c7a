"""States of stages, cells and sweeps, derived from evidence. Nothing stores a state.

Evidence is ranked: a product outranks an end record, which outranks a live heartbeat, which outranks the
scheduler. The ranking keeps states true when processes die halfway, since files outlive their writers:

    done record exists, no end record          done: the worker died between the two writes
    end record, heartbeat still new            over: the last heartbeat came just before the end
    no end record, heartbeat changes           running, even if the scheduler does not list the job

The scheduler's evidence about jobs is added in `orchestrator.jobs`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from orchestrator.core.evidence import (
    FAILED,
    NO_HOLDS,
    NOT_KEPT,
    Attempt,
    Budget,
    Evidence,
    Former,
    Hold,
    Holds,
    Liveness,
    causes,
    describe_retired,
    is_answered,
    spent,
)
from orchestrator.core.failure import Cause
from orchestrator.core.records import End
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.errors import means_full_disk, one_line

NOT_STARTED = "not started"
"""Reason of a stage without attempts."""


class State(StrEnum):
    """The state of a stage or a cell."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    FAILED = "failed"
    LOST = "lost"
    BLOCKED = "blocked"
    RELEASED = "released"
    CANCELLED = "cancelled"
    PENDING = "pending"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


FINAL = frozenset({State.DONE, State.FAILED, State.BLOCKED, State.CANCELLED, State.STOPPED})
"""States that workers leave as they are."""

GOOD = frozenset({State.DONE, State.STOPPED})
"""States of cells that have ended as they should: `stopped` by a decision is no failure."""


STARTABLE = frozenset({State.PENDING, State.RELEASED, State.LOST})
"""States of stages that may be claimed. A failed stage has no budget left until a new request."""


class StageStatus(NamedTuple):
    """The state of a stage.

    Attributes:
        state: from the stage's own evidence; in a `CellStatus` also from its inputs.
        reason: one line, for people.
        cause: of the failure, if there was one.
        attempts: number of attempts.
        seconds: wall time of the last attempt, or of the one that made the product.
        retired: how many files of its product were deleted and under which policy, "" for none. Stages that
            still take the product are blocked, unless they can be made from `former`.
        former: the product that an earlier version of the stage left; None if there is none.
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
        """What the stage does with the product of its earlier version, "" if it cannot use one."""
        return self.former.how if self.former and not self.former.problem else ""


class CellStatus(NamedTuple):
    """The state of a cell, and the states of the stages of its chain.

    Attributes:
        state: of the cell.
        reason: one line, for people.
        cause: of the failure, if there was one.
        attempts: number of attempts of all its stages.
        stages: digest to status.
    """

    state: State
    reason: str
    cause: Cause | None
    attempts: int
    stages: dict[str, StageStatus]

    def is_undecided(self, cell: Cell) -> bool:
        """Return whether the cell has nothing to run until a decision is made."""
        return bool(cell.waits) and all(stage.state is State.DONE for stage in self.stages.values())


def stage_status(evidence: Evidence, budget: Budget) -> StageStatus:
    """Derive a stage's state from its own evidence, without regard to its inputs.

    Args:
        evidence: of the stage.
        budget: the retries, and the attempts that count.
    """
    status = _own_status(evidence, budget)
    return status if evidence.former is None else status._replace(former=_former(evidence, budget))


def num_starved(evidence: Evidence, after: int) -> int:
    """Return how many attempts of a stage ran out of host memory in jobs that requested some.

    Args:
        evidence: of the stage.
        after: the attempt up to which none counts, as after a rerun.
    """
    starts = {attempt.number: attempt.start for attempt in evidence.attempts if attempt.number > after}
    failed = (starts.get(number) for number, cause in causes(evidence) if cause is Cause.OOM_HOST)
    return sum(start is not None and Cause.OOM_HOST in start.remedies for start in failed)


def _former(evidence: Evidence, budget: Budget) -> Former | None:
    """Return the earlier version's product, with what attempts found that tried to use it."""
    if evidence.former is None or evidence.former.problem:
        return evidence.former
    for attempt in reversed(evidence.attempts):
        if attempt.end is not None and attempt.end.why == NOT_KEPT and attempt.number > budget.after:
            problem = f"attempt {attempt.number} found: {one_line(attempt.end.message)}"
            return evidence.former._replace(problem=problem)
    return evidence.former


def _own_status(evidence: Evidence, budget: Budget) -> StageStatus:
    num_attempts = evidence.attempts[-1].number if evidence.attempts else 0
    # The order of these tests is the ranking of evidence: unreadable, product, owner's life, budget.
    if evidence.unreadable:
        return StageStatus(State.UNKNOWN, evidence.unreadable)
    if evidence.done is not None:
        retired = describe_retired(evidence.retired)
        reason = f"product (retired: {retired})" if retired else "product"
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
        # The next attempt repairs the damage, as long as the budget lasts.
        return StageStatus(State.PENDING, evidence.problem, None, num_attempts, seconds)
    return _between_attempts(last, evidence, num_attempts, seconds)


def _between_attempts(
    last: Attempt, evidence: Evidence, num_attempts: int, seconds: float | None
) -> StageStatus:
    """Return the status of a stage whose last attempt is over and which may be tried again."""
    if last.end is None:
        reason = f"attempt {last.number} was lost: {evidence.liveness_reason}"
        return StageStatus(State.LOST, reason, evidence.liveness_cause, num_attempts)
    if last.end.outcome in FAILED:
        cause = last.end.cause or Cause.UNKNOWN
        left = "another remedy" if is_answered(last, cause) else "a retry"
        reason = f"attempt {last.number} failed ({cause}), {left} is left: {one_line(last.end.message)}"
        return StageStatus(State.PENDING, reason, cause, num_attempts, seconds)
    if last.end.outcome == "released":
        reason = f"attempt {last.number} was released ({one_line(last.end.why)})"
        return StageStatus(State.RELEASED, reason, None, num_attempts, seconds)
    return StageStatus(State.PENDING, "its product no longer counts", None, num_attempts, seconds)


def _given_inputs(
    status: StageStatus,
    inputs: Sequence[tuple[StageInstance, StageStatus]],
    *,
    cancelled: bool,
    hold: Hold | None,
    again: str,
) -> StageStatus:
    """Return a stage's status given those of its inputs.

    Args:
        status: from the stage's own evidence.
        inputs: its inputs and their statuses.
        cancelled: whether a cancel is in force for the cell.
        hold: of the stage on behalf of the cell; None if there is none.
        again: the command that makes a stage again, without the stage's name.
    """
    if status.state in (State.DONE, State.RUNNING):
        return status
    if cancelled and status.state is not State.FAILED:
        return status._replace(state=State.CANCELLED, reason="cancelled")
    for instance, taken in inputs:
        if taken.retired and not status.going_on:  # outranks a failure, since even a rerun would fail
            reason = f"files of its input {instance.name} were retired ({taken.retired}); "
            reason += f"to make it again: {again} {instance.stage}"
            if status.former is not None:
                reason += f"; the product of its earlier version cannot be used: {status.former.problem}"
            return status._replace(state=State.BLOCKED, reason=reason, cause=None)
    for instance, taken in inputs:
        if taken.state in _STUCK and status.state is not State.FAILED:
            reason = f"input {instance.name} is {taken.state}"
            return status._replace(state=State.BLOCKED, reason=reason)
    if hold is not None and status.state is not State.FAILED:
        state = State.BLOCKED if hold.is_final else status.state
        return status._replace(state=state, reason=hold.reason, cause=hold.cause or status.cause)
    retired = ", ".join(dict.fromkeys(instance.stage for instance, taken in inputs if taken.retired))
    if retired and status.state is not State.FAILED:
        reason = f"{status.going_on}, without the retired files of {retired}"
        reason += "" if status.reason == NOT_STARTED else f"; {status.reason}"
        return status._replace(reason=reason)
    return status


def goes_without(status: StageStatus, inputs: Iterable[StageStatus]) -> bool:
    """Return whether a stage will start from its earlier version's product, because its inputs were retired.

    Args:
        status: of the stage.
        inputs: the statuses of its inputs.
    """
    return bool(status.going_on) and any(taken.retired for taken in inputs)


_STUCK = frozenset({State.FAILED, State.BLOCKED})
# The state that most needs the user's attention comes first, and becomes that of the cell.
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
    instances: Mapping[str, StageInstance],
    statuses: Mapping[str, StageStatus],
    *,
    cancelled: bool,
    holds: Holds = NO_HOLDS,
    sweep: str = "SWEEP",
) -> CellStatus:
    """Derive a cell's state from its stages: done if all are, else the state that most needs attention.

    A cell whose chain a decision has cut, or may cut, is `stopped` or waits when the rest of it is done.

    Args:
        cell: the cell.
        instances: digest to stage instance.
        statuses: digest to the stage's own state, for at least the cell's chain.
        cancelled: whether a cancel is in force for the cell.
        holds: what is held back in the sweep.
        sweep: the sweep's name, for suggested commands.
    """
    stages = {digest: statuses[digest] for digest in cell.stage_digests}
    is_done = all(status.state is State.DONE for status in stages.values())
    # Nothing changes what is done, and most cells of a large sweep are.
    for digest in () if is_done else cell.stage_digests:
        # Inputs come before their consumers in a chain, so their statuses are complete here.
        inputs = [(instances[taken.digest], stages[taken.digest]) for taken in instances[digest].inputs]
        again = f"sweep discard {sweep} {cell.id} --reason ... --stage"
        hold = holds.of(cell.id, digest)
        stages[digest] = _given_inputs(statuses[digest], inputs, cancelled=cancelled, hold=hold, again=again)
    attempts = sum(status.attempts for status in stages.values())
    if is_done and cell.waits:
        return CellStatus(State.PENDING, cell.waits, None, attempts, stages)
    if is_done:
        state = State.STOPPED if cell.stopped else State.DONE
        return CellStatus(state, cell.stopped or "all stages are done", None, attempts, stages)
    for state in _PRECEDENCE:
        for digest, status in stages.items():
            if status.state is state:
                reason = f"{instances[digest].name}: {status.reason}"
                return CellStatus(state, reason, status.cause, attempts, stages)
    raise AssertionError(f"no precedence for {[s.state for s in stages.values()]}")


def is_disk_full(end: End) -> bool:
    """Return whether an attempt failed because a disk is full, or a quota is used up."""
    return end.cause is Cause.STORAGE and means_full_disk(end.message)


def failed_end(status: StageStatus, evidence: Evidence) -> End | None:
    """Return how the last attempt of an unfinished stage failed; None if it did not fail.

    Args:
        status: the stage's own state.
        evidence: of the stage.
    """
    is_over = status.state not in (State.DONE, State.RUNNING, State.UNKNOWN)
    end = evidence.attempts[-1].end if is_over and evidence.attempts else None
    return end if end is not None and end.outcome == "failed" else None


class SweepFacts(NamedTuple):
    """What is known of the stages of a sweep.

    Attributes:
        status_of: returns a stage's own state by digest.
        evidence_of: returns a stage's evidence by digest.
        cancelled: ids of cancelled cells.
        holds: what is held back in the sweep.
    """

    status_of: Callable[[str], StageStatus]
    evidence_of: Callable[[str], Evidence]
    cancelled: Collection[str] = ()
    holds: Holds = NO_HOLDS


class Goal(StrEnum):
    """What to wait for.

    Attributes:
        DONE: every cell is done.
        FAILED: at least one cell has failed.
        STALLED: cells are left, and nothing has changed for a while.
    """

    DONE = "done"
    FAILED = "failed"
    STALLED = "stalled"


class Outlook(StrEnum):
    """The answer of `outlook`.

    Attributes:
        REACHED: the goal is reached.
        IMPOSSIBLE: the goal can no longer be reached without a further launch, rerun or discard.
        OPEN: neither is certain yet.
    """

    REACHED = "reached"
    IMPOSSIBLE = "impossible"
    OPEN = "open"


def outlook(goal: Goal, states: Collection[State], *, quiet_s: float, stall_s: float) -> Outlook:
    """Return whether a goal is reached, impossible, or still open.

    A blocked cell counts as ended once every other cell has ended. Until then another cell may still
    unblock it, for example by a success that refutes why it was held.

    Args:
        goal: what is waited for.
        states: of the cells.
        quiet_s: seconds for which no record of the cells has changed.
        stall_s: seconds without a change after which the cells count as stalled.
    """
    is_over = all(state in FINAL for state in states)
    match goal:
        case Goal.DONE:
            is_reached = all(state in GOOD for state in states)
            is_over = is_over or State.FAILED in states or State.CANCELLED in states
        case Goal.FAILED:
            is_reached = State.FAILED in states
        case Goal.STALLED:
            # A job that waits for a scheduler is at work: its queue may be days long.
            is_reached = not is_over and State.QUEUED not in states and quiet_s >= stall_s
    return Outlook.REACHED if is_reached else Outlook.IMPOSSIBLE if is_over else Outlook.OPEN
