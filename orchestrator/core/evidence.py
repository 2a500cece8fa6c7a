"""The evidence about a stage, and what its attempts count for. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import NamedTuple

from orchestrator.core.failure import DETERMINISTIC, PASSING, Cause
from orchestrator.core.records import Claim, Done, End, Heartbeat, Retired, StartRecord
from orchestrator.core.settings import Retention, SpendingLimit
from orchestrator.core.sweep import StageInstance
from orchestrator.manifest import File

NOT_KEPT = "not_kept"
"""Reason of a release: inputs were retired, and the earlier version's product was not enough without them."""

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
        discarded: attempts that finished, and whose product or an input of it users discarded.
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
    discarded: frozenset[int] = frozenset()


class Budget(NamedTuple):
    """How often each cause may be retried, and which attempts count.

    Attributes:
        retries: cause to number of retries; a cause that is not listed has none.
        after: attempts up to this number count for no cause, because a rerun or discard came after them.
        after_chance: attempts up to this number count only for deterministic causes: a launch came after.
    """

    retries: Mapping[str, int]
    after: int = 0
    after_chance: int = 0


def causes(evidence: Evidence) -> Iterator[tuple[int, Cause]]:
    """Yield (attempt, cause) for each attempt that failed or was lost, or whose product was damaged.

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
                if attempt.number not in evidence.discarded:  # a discard is nobody's failure
                    yield attempt.number, Cause.STORAGE  # finished, but its product was damaged
            elif attempt.end.why == "superseded" and attempt.number in superseded:
                yield attempt.number, superseded[attempt.number]
        elif attempt.number in superseded:
            yield attempt.number, superseded[attempt.number]
        elif attempt.number == evidence.attempts[-1].number and evidence.liveness is Liveness.GONE:
            yield attempt.number, evidence.liveness_cause


def is_answered(attempt: Attempt, cause: Cause) -> bool:
    """Return whether a further rung of the stage's remedies is left for a failure of an attempt.

    The next attempt then starts with it, see `orchestrator.core.remedies`.

    Args:
        attempt: that failed.
        cause: of its failure.
    """
    rung, num_rungs = attempt.start.remedies.get(cause, (0, 0)) if attempt.start else (0, 0)
    return rung < num_rungs


def spent(evidence: Evidence, budget: Budget) -> tuple[Cause, int] | None:
    """Return the cause whose budget is spent and the number of its attempts, or None.

    Failures of a passing cause count only since the stage got a later checkpoint than ever before. A stage
    that advances will end, however often it is struck.

    The first failure on each rung of a stage's remedies costs nothing if a further rung is left::

        attempt 1   oom_gpu, rung 0 of 2    free
        attempt 2   oom_gpu, rung 1 of 2    free
        attempt 3   oom_gpu, rung 2 of 2    counts: no remedy is left, and the cause stands

    Args:
        evidence: of the stage.
        budget: the retries, and the attempts that count.
    """
    counts: dict[Cause, int] = {}
    tried: set[tuple[Cause, int]] = set()
    failed, reached = dict(causes(evidence)), 0
    for attempt in evidence.attempts:
        if (step := _saved_step(attempt)) > reached:
            reached = step
            counts = {cause: count for cause, count in counts.items() if cause not in PASSING}
        if (cause := failed.get(attempt.number)) is None or cause is Cause.CANCELLED:
            continue  # a cancelled job is no fault of the stage
        boundary = budget.after if cause in DETERMINISTIC else max(budget.after, budget.after_chance)
        if attempt.number <= boundary:
            continue
        rung = attempt.start.remedies.get(cause, (0, 0))[0] if attempt.start else 0
        # Twice on one rung counts, as where settings changed in between: nothing is free for ever.
        if is_answered(attempt, cause) and (cause, rung) not in tried:
            tried.add((cause, rung))
        else:
            counts[cause] = counts.get(cause, 0) + 1
    for cause, count in counts.items():
        if count > budget.retries.get(cause, 0):
            return cause, count
    return None


def _saved_step(attempt: Attempt) -> int:
    """Return the step of the last checkpoint of an attempt, as it recorded; 0 without one."""
    record = attempt.end or attempt.heartbeat
    return (record.spent.saved_step or 0) if record is not None and record.spent is not None else 0


def chosen_before(cell: str, attempts: Iterable[Attempt]) -> int:
    """Return the GPUs that the first claim on behalf of a cell recorded as chosen for it; 0 without one.

    A cell keeps its number, whatever other launches would choose. So two launches at once agree.

    Args:
        cell: its id.
        attempts: at stages of the cell, in the order of its chain.
    """
    claims = (each.claim for each in attempts if each.claim is not None and each.claim.cell == cell)
    return next((claim.chosen_gpus for claim in claims if claim.chosen_gpus), 0)


class Hold(NamedTuple):
    """A reason not to start a stage now, although its records allow it.

    Attributes:
        reason: one line, for people. It names the command that ends a final hold.
        is_final: whether the hold stays until somebody acts. The stage is then `blocked`; else it waits.
        cause, failure: cause and fingerprint of the failures behind it, if there were any.
        pause_s: most seconds from its beginning to its end: infinite where it ends when other stages have
            ended, None where it may never end by itself.
    """

    reason: str
    is_final: bool = True
    cause: Cause | None = None
    failure: str = ""
    pause_s: float | None = None


class Holds(NamedTuple):
    """What is held back in a sweep, by rules that look at more than one stage.

    A held cell starts none of its stages; another cell that shares one of them may. A held stage is started
    for no cell. What is done or runs already is left as it is.

    Attributes:
        cells: id of a cell to its hold.
        stages: digest of a stage to its hold.
        until: time until which they stand if no record changes, in seconds since 1970; None for ever.
        turns: digest of a stage of a name that starts in turns now to its place; 0 if it need not run alone.
    """

    cells: Mapping[str, Hold] = {}
    stages: Mapping[str, Hold] = {}
    until: float | None = None
    turns: Mapping[str, int] = {}

    def lack_of_space(self, patience_s: float = math.inf) -> str:
        """Return why stages wait for space, "" if none does.

        Args:
            patience_s: pauses of at most so many seconds are left out. By default all are, and only a full
                disk counts, for which every stage waits.
        """
        held = (hold for hold in self.stages.values() if hold.cause is Cause.STORAGE and not hold.is_final)
        return next((h.reason for h in held if h.pause_s is None or h.pause_s > patience_s), "")

    def of(self, cell: str, digest: str) -> Hold | None:
        """Return the hold of a stage on behalf of a cell, a final one before others; None if there is none.

        Args:
            cell: its id.
            digest: of the stage.
        """
        found = [hold for hold in (self.cells.get(cell), self.stages.get(digest)) if hold is not None]
        return min(found, key=lambda hold: not hold.is_final, default=None)


NO_HOLDS = Holds()


class Spending(NamedTuple):
    """What a sweep has spent, and what its workers may still spend before they can save.

    Attributes:
        gpu_seconds: held by all of its workers so far.
        running_gpus: GPUs of the workers that run a stage now.
        checkpoint_s: median seconds from the claim of a stage to its first checkpoint, or to its product.
        worker_gpus: most GPUs that one of its workers holds; 1 as long as there is none.
        at: when that was, on the reader's clock, in seconds since 1970.
    """

    gpu_seconds: float
    running_gpus: float
    checkpoint_s: float
    worker_gpus: float = 1.0
    at: float = 0.0


def over_budget(limit: SpendingLimit, spending: Spending, *, now: float) -> str:
    """Return why running stages should save and end, "" while the budget lasts.

    Args:
        limit: the budget.
        spending: what was spent.
        now: the time on this machine's clock, in seconds since 1970.
    """
    if limit.has_ended(now):
        return f"policy.budget.until={limit.until} is past"
    if limit.gpu_hours is not None and spending.gpu_seconds >= 3600 * limit.gpu_hours:
        return f"{spending.gpu_seconds / 3600:.4g} of policy.budget.gpu_hours={limit.gpu_hours:.4g} are spent"
    return ""


def budget_hold(
    limit: SpendingLimit, spending: Spending, *, num_gpus: float, now: float, sweep: str = "SWEEP"
) -> Hold | None:
    """Return the hold of a budget on every stage of a sweep; None if another stage may start.

    A stage starts if it can reach a checkpoint, also when all that run now reach one more. With a budget of
    10 GPU-hours, 3 of them spent, a worker of 4 GPUs, and 0.5 hours to a checkpoint::

        4 GPUs run    3 + (4 + 4) x 0.5 =  7    it starts
       12 GPUs run    3 + (12 + 4) x 0.5 = 11   it waits: fewer may run later

    Args:
        limit: the budget, of the sweep's newest launch.
        spending: what was spent.
        num_gpus: of the worker that would start a stage; a worker without GPUs spends nothing.
        now: the time on this machine's clock, in seconds since 1970.
        sweep: the sweep's name, for the command that raises the budget.
    """
    if not limit.is_set:
        return None
    why = over_budget(limit, spending, now=now)
    if why and limit.has_ended(now):
        return Hold(f"{why}: sweep launch {sweep} policy.budget.until=...")
    if limit.gpu_hours is None or num_gpus == 0:
        return None
    more = f"sweep launch {sweep} policy.budget.gpu_hours=..."
    left_s = 3600 * limit.gpu_hours - spending.gpu_seconds
    used = f"{spending.gpu_seconds / 3600:.4g} of policy.budget.gpu_hours={limit.gpu_hours:.4g} are spent"
    if left_s <= 0 or left_s < num_gpus * spending.checkpoint_s:
        return Hold(f"{used}, too much for a stage to reach a checkpoint: {more}")
    if left_s < (spending.running_gpus + num_gpus) * spending.checkpoint_s:
        return Hold(
            f"{used}, and {spending.running_gpus:g} GPUs run, too much for one more stage: {more}",
            is_final=False,
        )
    return None


def remaining_files(files: Iterable[File], retired: Iterable[Retired]) -> tuple[File, ...]:
    """Return the files that must exist: those that no record retired.

    Args:
        files: of a product.
        retired: the records of its retirements.
    """
    gone = {file.path for record in retired for file in record.files}
    return tuple(file for file in files if file.path not in gone) if gone else tuple(files)


def describe_retired(retired: Iterable[Retired]) -> str:
    """Return a phrase such as ``5 files under policy best``, "" for no records."""
    parts = []
    for record in retired:
        plural = "" if len(record.files) == 1 else "s"
        parts.append(f"{len(record.files)} file{plural} under policy {record.policy}")
    return ", ".join(parts)


def removable_files(product: Done, consumers: Collection[Done], policy: Retention) -> tuple[File, ...]:
    """Return the files of a product that no stage made from it needs any more.

    Each consumer lists in its `Done` record which of the product's files are worth keeping, per policy. A
    file is removable only if every consumer has listed its choice and none of them keeps the file:

        product of train:   model.safetensors, optimizer.pt, log.txt
        evaluate keeps:     model.*
        report keeps:       log.txt
        removable:          optimizer.pt

    A consumer without a choice for this policy keeps everything. So does one that was made from another
    generation of the product, because it may have to run again. Without consumers nothing is removable.

    Args:
        product: the product whose files are considered.
        consumers: the `Done` records of all stages that consume it.
        policy: the retention policy in force.
    """
    if policy == "all" or not consumers:
        return ()
    kept: set[str] = set()
    for consumer in consumers:
        patterns = consumer.retire.get(product.stage, {}).get(policy)
        if patterns is None or consumer.inputs.get(product.digest) != product.generation:
            return ()
        # In these patterns "*" also matches "/", on every platform.
        kept.update(file.path for file in product.files if any(fnmatchcase(file.path, p) for p in patterns))
    return tuple(file for file in product.files if file.path not in kept)
