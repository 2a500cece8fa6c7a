"""The records that a simulated sweep would have in its store, and the states that follow from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from orchestrator.core.evidence import Attempt, Budget, Evidence, Liveness
from orchestrator.core.failure import Cause
from orchestrator.core.plan import Claimable
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
from orchestrator.core.state import StageStatus, stage_status
from orchestrator.execution.liveness import next_lease_s

GONE = "its node was lost"


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


class SimulatedRecords:
    """The evidence about each stage, as a store would hold it.

    Args:
        sweep: its name.
        unfinished: digests of the stages that are to run. All others are done.
        retries: cause to number of retries, from the policy.
        lease_s: of a stage's first claim.
    """

    def __init__(
        self, sweep: str, unfinished: Collection[str], retries: Mapping[str, int], *, lease_s: float
    ) -> None:
        self._sweep = sweep
        self._budget = Budget(retries)
        self._lease_s = lease_s
        self._before = Evidence(done=_done("", 0))
        self._evidence: dict[str, Evidence] = dict.fromkeys(unfinished, Evidence())
        self.saved: dict[str, Saved] = {}

    def evidence(self, digest: str) -> Evidence:
        """Return what the store would hold about a stage."""
        return self._evidence.get(digest, self._before)

    def status(self, digest: str) -> StageStatus:
        """Return the state of a stage, as a worker would derive it."""
        return stage_status(self.evidence(digest), self._budget)

    def claim(self, claimable: Claimable, owner: Owner) -> int:
        """Record the next attempt at a stage; return its number."""
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
            lease_s=next_lease_s(self._lease_s, num_lost),
            generation=1,
            sweep=self._sweep,
            cell=claimable.cell.id,
            supersedes=supersedes,
        )
        saved = self.saved.get(digest)
        parent = None if saved is None else Parent(attempt=saved.attempt, step=round(saved.seconds))
        start = StartRecord(parent=parent, uses={}, provenance={})
        number = len(attempts) + 1
        self._evidence[digest] = evidence._replace(
            attempts=(*attempts, Attempt(number, claim, start)), liveness=Liveness.ALIVE
        )
        return number

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
            spent=spent,
        )
        self._replace_last(digest, last._replace(end=end))
        if outcome == "succeeded":
            done = _done(digest, last.number, spent.seconds)
            self._evidence[digest] = self.evidence(digest)._replace(done=done)

    def _replace_last(self, digest: str, attempt: Attempt) -> None:
        evidence = self.evidence(digest)
        self._evidence[digest] = evidence._replace(attempts=(*evidence.attempts[:-1], attempt))


def _done(digest: str, attempt: int, seconds: float = 0.0) -> Done:
    return Done(
        nonce="", stage="", digest=digest, generation=1, attempt=attempt, files=(), rows=(), seconds=seconds
    )
