"""States of stages and cells, derived from evidence. Nothing stores a state.

Evidence is ranked: a product outranks an end record, which outranks a live heartbeat, which outranks the
scheduler. The ranking keeps states true when processes die halfway, since files outlive their writers:

    done record exists, no end record          done: the worker died between the two writes
    end record, heartbeat still new            over: the last heartbeat came just before the end
    no end record, heartbeat changes           running, even if the scheduler does not list the job

The scheduler's evidence about jobs is added in `orchestrator.jobs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from orchestrator.core.failure import DETERMINISTIC, Cause
from orchestrator.core.records import Claim, Done, End, Heartbeat, Retired, StartRecord, describe_retired
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.errors import one_line

NOT_KEPT = "not_kept"
"""Reason of a release: inputs were retired, and the earlier version's product was not enough without them."""

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
    UNKNOWN = "unknown"


FINAL = frozenset({State.DONE, State.FAILED, State.BLOCKED, State.CANCELLED})
"""States that workers leave as they are."""


FAILED = frozenset({"failed", "unknown"})
"""Outcomes that count against a retry budget. ``unknown`` stands for an outcome of a later version."""


class Liveness(StrEnum):
    """What an observer concludes about the owner of an attempt without an `end` record."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


class Attempt(NamedTuple):
    """The records of one attempt. A record that is absent or unreadable is None.

    Attributes:
        number: of the attempt, from 1.
        claim: who owns it.
        start: what it started from.
        heartbeat: the latest one.
        end: how it ended.
        problem: which record is unreadable and why, "" if none is.
    """

    number: int
    claim: Claim | None = None
    start: StartRecord | None = None
    heartbeat: Heartbeat | None = None
    end: End | None = None
    problem: str = ""


class Former(NamedTuple):
    """The product of an earlier version of a stage, made from the same inputs.

    Attributes:
        instance: the stage instance under the earlier version.
        done: the record of the product; None if the product does not count.
        how: what the stage does with the product, for people.
        problem: why the product cannot be used, "" if it can.
    """

    instance: StageInstance
    done: Done | None
    how: str
    problem: str = ""


class Evidence(NamedTuple):
    """The store's records about one stage instance.

    Attributes:
        attempts: by number, from 1.
        done: the product that counts, if there is one.
        generation: of `done`, or else of the product that the next attempt makes.
        problem: damage or an unreadable record, in words for the user.
        damaged: whether `generation` is that of a damaged product, to be voided before the next attempt.
        liveness: of the owner of the highest attempt, if that attempt has no `end`.
        liveness_reason: the observation behind `liveness`.
        liveness_cause: the cause that counts for the attempt if its owner is gone.
        retired: the product's files that were deleted on purpose.
        unreadable: why the records cannot be read, such as a folder without permission. It outranks all else.
        is_passing: whether `unreadable` may pass by itself in a moment.
        former: the product that an earlier version of an unfinished stage left; None if there is none.
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
    """How often each cause may be retried, and which attempts count.

    Attributes:
        retries: cause to number of retries; a cause that is not listed has none.
        after: attempts up to this number count for no cause, because a rerun or discard came after them.
        after_chance: attempts up to this number count only for deterministic causes, because a launch came
            after them.
    """

    retries: Mapping[str, int]
    after: int = 0
    after_chance: int = 0


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


def causes(evidence: Evidence) -> Iterator[tuple[int, Cause]]:
    """Yield (attempt, cause) for each attempt that failed or was lost, or whose product was lost.

    Each attempt's cause comes from the first of these that exists: its `end` record, its successor's
    `supersedes`, or, for the last attempt, the finding that its owner is gone.

    An attempt also counts if its owner was alive after all and gave way to its successor. If it did not
    count, two workers that consider each other dead could take over from each other without end:

        attempt 1  (worker A)   released: superseded      counts as node_lost, from attempt 2's claim
        attempt 2  (worker B)   released: superseded      counts as node_lost, from attempt 3's claim
        ...                     until the budget of node_lost is spent, and the stage has failed
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
                yield attempt.number, Cause.STORAGE  # finished, but the product no longer exists
            elif attempt.end.why == "superseded" and attempt.number in superseded:
                yield attempt.number, superseded[attempt.number]
        elif attempt.number in superseded:
            yield attempt.number, superseded[attempt.number]
        elif attempt.number == evidence.attempts[-1].number and evidence.liveness is Liveness.GONE:
            yield attempt.number, evidence.liveness_cause


def spent(evidence: Evidence, budget: Budget) -> tuple[Cause, int] | None:
    """Return the cause whose budget is spent and the number of its attempts, or None.

    Args:
        evidence: of the stage.
        budget: the retries, and the attempts that count.
    """
    counts: dict[Cause, int] = {}
    for number, cause in causes(evidence):
        boundary = budget.after if cause in DETERMINISTIC else max(budget.after, budget.after_chance)
        if number > boundary and cause is not Cause.CANCELLED:  # a cancelled job is no fault of the stage
            counts[cause] = counts.get(cause, 0) + 1
    for cause, count in counts.items():
        if count > budget.retries.get(cause, 0):
            return cause, count
    return None


def stage_status(evidence: Evidence, budget: Budget) -> StageStatus:
    """Derive a stage's state from its own evidence, without regard to its inputs.

    Args:
        evidence: of the stage.
        budget: the retries, and the attempts that count.
    """
    return _own_status(evidence, budget)._replace(former=_former(evidence, budget))


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
        reason = f"attempt {last.number} failed ({cause}), a retry is left: {one_line(last.end.message)}"
        return StageStatus(State.PENDING, reason, cause, num_attempts, seconds)
    if last.end.outcome == "released":
        reason = f"attempt {last.number} was released ({one_line(last.end.why)})"
        return StageStatus(State.RELEASED, reason, None, num_attempts, seconds)
    return StageStatus(State.PENDING, "its product no longer counts", None, num_attempts, seconds)


def _given_inputs(
    status: StageStatus, inputs: Sequence[tuple[StageInstance, StageStatus]], *, cancelled: bool, again: str
) -> StageStatus:
    """Return a stage's status given those of its inputs.

    Args:
        status: from the stage's own evidence.
        inputs: its inputs and their statuses.
        cancelled: whether a cancel is in force for the cell.
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
    sweep: str = "SWEEP",
) -> CellStatus:
    """Derive a cell's state from its stages: done if all are, else the state that most needs attention.

    Args:
        cell: the cell.
        instances: digest to stage instance.
        statuses: digest to the stage's own state, for at least the cell's chain.
        cancelled: whether a cancel is in force for the cell.
        sweep: the sweep's name, for suggested commands.
    """
    stages: dict[str, StageStatus] = {}
    for digest in cell.stage_digests:
        # Inputs come before their consumers in a chain, so their statuses are complete here.
        inputs = [(instances[taken.digest], stages[taken.digest]) for taken in instances[digest].inputs]
        again = f"sweep discard {sweep} {cell.id} --reason ... --stage"
        stages[digest] = _given_inputs(statuses[digest], inputs, cancelled=cancelled, again=again)
    attempts = sum(status.attempts for status in stages.values())
    if all(status.state is State.DONE for status in stages.values()):
        return CellStatus(State.DONE, "all stages are done", None, attempts, stages)
    for state in _PRECEDENCE:
        for digest, status in stages.items():
            if status.state is state:
                reason = f"{instances[digest].name}: {status.reason}"
                return CellStatus(state, reason, status.cause, attempts, stages)
    raise AssertionError(f"no precedence for {[s.state for s in stages.values()]}")
