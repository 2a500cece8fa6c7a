"""The records that a simulated sweep would have, the states that follow from them, and what it has spent."""

from __future__ import annotations

import bisect
import functools
import statistics
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from orchestrator.core.evidence import (
    NO_HOLDS,
    Attempt,
    Budget,
    Evidence,
    Hold,
    Liveness,
    Spending,
    budget_hold,
    over_budget,
)
from orchestrator.core.failure import Cause
from orchestrator.core.gates import Gates
from orchestrator.core.holding import SweepRecords, attributed, holds_of
from orchestrator.core.identity import uses_of
from orchestrator.core.plan import Claimable, summarize_requests
from orchestrator.core.records import (
    Claim,
    Done,
    End,
    Heartbeat,
    Owner,
    Parent,
    Process,
    Request,
    StartRecord,
    Supersedes,
    TimeSpent,
)
from orchestrator.core.remedies import Remedied, class_of, remedied, rungs_of, with_shipped
from orchestrator.core.settings import Policy, SpendingLimit
from orchestrator.core.state import StageStatus, stage_status
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance
from orchestrator.execution.liveness import next_lease_s
from orchestrator.simulation.cluster import SimulatedDisk


class SimulatedSpending:
    """The time for which GPUs have been held.

    Args:
        limit: the budget.
        start_at: time at which the simulation begins, in seconds since 1970.
        checkpoint_s: seconds to a checkpoint, as long as none was measured.
        sweep: its name.

    Attributes:
        is_limited: whether there is a budget.
        is_stopping: whether running stages were stopped, since it is spent.
    """

    def __init__(self, limit: SpendingLimit, *, start_at: float, checkpoint_s: float, sweep: str) -> None:
        self.is_limited = limit.is_set
        self.is_stopping = False
        self._limit = limit
        self._start_at = start_at
        self._checkpoint_s = checkpoint_s
        self._sweep = sweep
        self._until_saved: list[float] = []
        self._spent = 0.0  # GPU-seconds until the last change
        self._changed_s = 0.0
        self._num_gpus = 0

    def change(self, num_gpus: int, now_s: float) -> None:
        """Note that a job took GPUs, or gave some back.

        Args:
            num_gpus: taken by it; negative for those given back.
            now_s: virtual time.
        """
        self._spent = self._gpu_seconds(now_s)
        self._changed_s = now_s
        self._num_gpus += num_gpus

    def saw_checkpoint(self, seconds: float) -> None:
        """Note how long an attempt took to its first checkpoint, or to its product."""
        if self.is_limited:
            bisect.insort(self._until_saved, seconds)  # a median of sorted values is fast

    def hold(self, num_gpus: int, now_s: float) -> Hold | None:
        """Return the hold on every stage of a job with so many GPUs; None if it may start."""
        if not self.is_limited:
            return None
        at = self._start_at + now_s
        return budget_hold(self._limit, self._now(now_s), num_gpus=num_gpus, now=at, sweep=self._sweep)

    def is_over(self, now_s: float) -> bool:
        """Return whether running stages should save and end."""
        return (
            self.is_limited and over_budget(self._limit, self._now(now_s), now=self._start_at + now_s) != ""
        )

    def end_s(self) -> float | None:
        """Return when the budget will be spent if nothing changes; None without a limit."""
        if not self.is_limited:
            return None
        ends = []
        if self._limit.gpu_hours is not None and self._num_gpus:
            left = max(0.0, 3600 * self._limit.gpu_hours - self._spent)
            ends.append(self._changed_s + left / self._num_gpus + 1e-3)  # past it, however it is rounded
        if self._limit.until is not None:
            ends.append(max(0.0, datetime.fromisoformat(self._limit.until).timestamp() - self._start_at))
        return min(ends, default=None)

    def _gpu_seconds(self, now_s: float) -> float:
        return self._spent + self._num_gpus * (now_s - self._changed_s)

    def _now(self, now_s: float) -> Spending:
        checkpoint_s = statistics.median(self._until_saved) if self._until_saved else self._checkpoint_s
        return Spending(self._gpu_seconds(now_s), self._num_gpus, checkpoint_s)


GONE = "its node was lost"

CODE = "simulated"
"""Digest of the code that runs the cells."""


class Saved(NamedTuple):
    """The newest checkpoint of a stage.

    Attributes:
        attempt: that saved it.
        seconds: of work that it holds, from the start of the stage.
    """

    attempt: int
    seconds: float


def owner_on(node: int, job: int) -> Owner:
    """Return the identity of the worker of a simulated job."""
    process = Process(boot_id="", namespace="", pid=job, start="")
    return Owner(host=f"node{node}", process=process, cluster="simulated", job=str(job))


class SimulatedRemedies:
    """The remedies with which attempts start, by the failures of their classes.

    Args:
        sweep: whose stages declare remedies.

    Attributes:
        num_applied: number of attempts that started with one.
    """

    def __init__(self, sweep: ComposedSweep) -> None:
        self._specs = {name: with_shipped(spec) for name, spec in sweep.specs.items()}
        self._failed: dict[str, dict[str, None]] = {}
        self.num_applied = 0

    def start(self, claimable: Claimable, evidence: Callable[[str], Evidence]) -> Remedied:
        """Return what the next attempt of a stage starts with.

        Args:
            claimable: the stage, and the cell on whose behalf it runs.
            evidence: returns the evidence about a stage by digest.
        """
        cell, instance = claimable
        spec = self._specs.get(instance.stage)
        if spec is None or not spec.remedies:
            return Remedied({})
        uses = uses_of(spec, cell.config)
        # Stages without a failure never raise the rung beyond that of those with one.
        failed = self._failed.get(class_of(spec, instance, cell.config), ())
        chosen = remedied(spec, uses, rungs_of(spec, uses, [(evidence(digest), 0) for digest in failed]))
        self.num_applied += any(rung > 0 for rung, _ in chosen.rungs.values())
        return chosen

    def note_failure(self, instance: StageInstance, cell: Cell) -> None:
        """Note that an attempt of a stage with remedies failed."""
        alike = class_of(self._specs[instance.stage], instance, cell.config)
        self._failed.setdefault(alike, {})[instance.digest] = None


class SimulatedRecords:
    """The evidence about each stage, as a store would hold it after one launch of all cells.

    Args:
        sweep: with the gates of the launch.
        cells: that are to run.
        unfinished: digests of the stages that are to run. All others are done.
        policy: of the launch.
        disk: on which the store lies.
        gates: of the launch.

    Attributes:
        disk: as given.
        saved: digest of a stage to its newest checkpoint.
        remedies: with which attempts start.
        holds: what is held back by rules that look at more than one stage.
    """

    def __init__(
        self,
        sweep: ComposedSweep,
        cells: Sequence[Cell],
        unfinished: Collection[str],
        policy: Policy,
        disk: SimulatedDisk,
        gates: Gates,
    ) -> None:
        self._gates = gates
        self._sweep = sweep
        self.disk = disk
        self._policy = policy
        self._evidence: dict[str, Evidence] = dict.fromkeys(unfinished, Evidence())
        self._begun: dict[str, None] = {}
        self._cells: dict[str, Cell] = {}  # for which stages were claimed last
        names = [cell.id for cell in cells]
        launch = Request(nonce="", number=1, verb="launch", revision=1, cells=tuple(names))
        self._requests = summarize_requests([launch], names)
        self._codes = dict.fromkeys(names, CODE)
        self.saved: dict[str, Saved] = {}
        self.remedies = SimulatedRemedies(sweep)
        self.holds = NO_HOLDS
        self.decide_holds()

    def evidence(self, digest: str) -> Evidence:
        """Return what the store would hold about a stage."""
        return self._evidence.get(digest, _DONE_BEFORE)

    def status(self, digest: str) -> StageStatus:
        """Return the state of a stage, as a worker would derive it."""
        return stage_status(self.evidence(digest), Budget(self._policy.retries))

    def decide_holds(self) -> None:
        """Evaluate the rules that look at more than one stage."""
        self.holds = holds_of(self._all())

    def attributed(self, digests: Collection[str]) -> Collection[str]:
        """Return those of some failed stages whose failures come from what their cells have in common."""
        return attributed(self._all(), digests)

    def _all(self) -> SweepRecords:
        return SweepRecords(
            sweep=self._sweep,
            evidence=self.evidence,
            status=functools.cache(self.status),
            unfinished=list(self._begun),
            requests=self._requests,
            policy=self._policy,
            codes=self._codes,
            gates=self._gates,
            space=self.disk.space,
            now=self.disk.now_s,
        )

    def claim(self, claimable: Claimable, owner: Owner) -> StartRecord:
        """Record the next attempt at a stage, and return from what it starts."""
        digest, evidence = claimable.instance.digest, self.evidence(claimable.instance.digest)
        attempts = evidence.attempts
        supersedes = None
        if attempts and attempts[-1].end is None:
            supersedes = Supersedes(
                attempt=attempts[-1].number, evidence=evidence.liveness_reason, cause=evidence.liveness_cause
            )
        num_lost = sum(attempt.end is None for attempt in attempts)
        claim = Claim(
            nonce="",
            owner=owner,
            lease_s=next_lease_s(self._policy.lease_s, num_lost),
            generation=1,
            sweep=self._sweep.name,
            cell=claimable.cell.id,
            supersedes=supersedes,
        )
        saved = self.saved.get(digest)
        parent = None if saved is None else Parent(attempt=saved.attempt, step=round(saved.seconds))
        chosen = self.remedies.start(claimable, self.evidence)
        start = StartRecord(
            parent=parent,
            uses=chosen.uses,
            provenance={"code": CODE},
            remedies=chosen.rungs,
            before=chosen.before,
        )
        self._begun[digest] = None
        self._cells[digest] = claimable.cell
        attempt = Attempt(len(attempts) + 1, claim, start)
        self._evidence[digest] = evidence._replace(attempts=(*attempts, attempt), liveness=Liveness.ALIVE)
        return start

    def beat(self, digest: str, spent: TimeSpent) -> float:
        """Record the last sign of life of a running attempt; return after how many seconds it is dead."""
        last = self.evidence(digest).attempts[-1]
        assert last.claim is not None
        self._replace_last(digest, last._replace(heartbeat=Heartbeat(counter=1, phase="", spent=spent)))
        return last.claim.lease_s

    def lose(self, digest: str) -> None:
        """Have observers see that the owner of the last attempt is gone."""
        self._evidence[digest] = self.evidence(digest)._replace(
            liveness=Liveness.GONE, liveness_reason=GONE, liveness_cause=Cause.NODE_LOST
        )

    def end(
        self,
        digest: str,
        outcome: Literal["succeeded", "failed", "released"],
        spent: TimeSpent,
        *,
        cause: Cause | None = None,
        why: str = "",
        message: str = "",
    ) -> None:
        """Record how a running attempt ended, and the product of one that succeeded."""
        last = self.evidence(digest).attempts[-1]
        end = End(
            nonce="",
            outcome=outcome,
            cause=cause,
            why=why,
            message=message,
            seconds=spent.seconds,
            at=datetime.fromtimestamp(self.disk.now_s, UTC).isoformat() if cause is Cause.STORAGE else "",
            spent=spent,
        )
        self._replace_last(digest, last._replace(end=end))
        if outcome == "failed" and last.start is not None and last.start.remedies:
            self.remedies.note_failure(self._sweep.stages[digest], self._cells[digest])
        if outcome == "succeeded":
            del self._begun[digest]
            done = _done(digest, last.number, spent.seconds)
            self._evidence[digest] = self.evidence(digest)._replace(done=done)

    def _replace_last(self, digest: str, attempt: Attempt) -> None:
        evidence = self.evidence(digest)
        self._evidence[digest] = evidence._replace(attempts=(*evidence.attempts[:-1], attempt))


def _done(digest: str, attempt: int, seconds: float = 0.0) -> Done:
    return Done(
        nonce="",
        stage="",
        digest=digest,
        generation=1,
        attempt=attempt,
        files=(),
        rows=({"is_simulated": True},) if digest else (),
        seconds=seconds,
        code=f"simulated.{CODE[:8]}" if digest else "",
    )


_DONE_BEFORE = Evidence(done=_done("", 0))
"""Of a stage that the sweep does not have to run."""
