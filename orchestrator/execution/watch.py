"""Watching the owners of attempts: when one may be called dead (rule 4). Compares no clocks of machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from orchestrator.core.failure import Cause
from orchestrator.core.records import Owner
from orchestrator.core.state import Attempt, Liveness, StageStatus, State
from orchestrator.core.sweep import StageInstance
from orchestrator.execution.assignment import JobContext, LostWorker
from orchestrator.store.evidence import OwnerReport, inspect_owner
from orchestrator.store.patience import is_transient, told

LEAVE_S, UNREADABLE_S = 3.0, 8.0
"""How long a stage is left alone where the error may pass, and how long an idle worker looks again."""


class _Left(NamedTuple):
    status: StageStatus
    since_s: float
    is_passing: bool


class Leaving:
    """What is left alone, and since when nothing else was to be done.

    An idle worker's patience is for one outage: it begins anew when a stage errs that did not before, and
    after `reset`. A stage that errs again and again does not renew it.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: dict[str, _Left] = {}
        self._erred: set[str] = set()  # since the patience began
        self._idle_since_s: float | None = None

    def leave(self, digest: str, error: Exception) -> None:
        """Leave a stage alone, for a while where the error may pass."""
        status = StageStatus(State.UNKNOWN, f"cannot be worked on: {told(error)}")
        self._left[digest] = _Left(status, self._clock(), is_transient(error))
        if digest not in self._erred:
            self._erred.add(digest)
            self._idle_since_s = None

    def reset(self) -> None:
        """Begin the patience anew: a stage was worked on without an error of the store."""
        self._erred.clear()
        self._idle_since_s = None

    def status(self, digest: str) -> StageStatus | None:
        """Return the state of a stage that is left alone, None of any other."""
        left = self._left.get(digest)
        if left is not None and self._may_be_tried(left):
            del self._left[digest]
            return None
        return None if left is None else left.status

    def _may_be_tried(self, left: _Left) -> bool:
        return left.is_passing and self._clock() - left.since_s >= LEAVE_S

    def is_worth_another_look(self, *, is_passing: bool) -> bool:
        """Whether a worker that found nothing else to do should look again.

        Args:
            is_passing: a stage could not be read just now, by an error that may pass.
        """
        now_s = self._clock()
        if not is_passing and not any(left.is_passing for left in self._left.values()):
            self._idle_since_s = None
            return False
        # a look follows, which tries these again, or no cell asks for them any more
        self._left = {digest: left for digest, left in self._left.items() if not self._may_be_tried(left)}
        self._idle_since_s = now_s if self._idle_since_s is None else self._idle_since_s
        return now_s - self._idle_since_s < UNREADABLE_S


MIN_READS = 3
UNREADABLE_LEASE_S = 90.0


class _Sighting(NamedTuple):
    counter: int
    since_s: float
    reads: int
    read_s: float


class Watcher:
    """Remembers heartbeats over time, on this process's own monotonic clock.

    An owner is dead when its counter has not changed over its lease in three reads or more, or when it is
    provably gone: its process vanished from this machine, or it is this very worker before its scheduler
    started it anew.

    Args:
        me: the worker that watches.
        job: the scheduler's job that it runs in, which knows of others that are over.
        clock: seconds, monotonic.
    """

    def __init__(
        self, me: Owner, *, job: JobContext | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._me, self._job, self._clock = me, job, clock
        self._gone = list(job.gone) if job else []
        self._seen: dict[tuple[str, int], _Sighting] = {}

    def __call__(self, node: StageInstance, attempt: Attempt) -> OwnerReport:
        """Judges an attempt that has no `end`."""
        vital = inspect_owner(node, attempt)
        if vital.liveness is Liveness.GONE:
            return vital
        if attempt.claim is not None and self._is_former_self(attempt.claim.owner):
            cause = self._job.before if self._job and self._job.before else Cause.NODE_LOST
            return OwnerReport(
                Liveness.GONE, f"this job's own attempt, before it was started anew ({cause})", cause
            )
        if attempt.claim is not None and (gone := self._known_gone(attempt.claim.owner)):
            return OwnerReport(Liveness.GONE, gone.evidence, gone.cause)
        counter = attempt.heartbeat.counter if attempt.heartbeat else 0
        key, now_s = (node.digest, attempt.number), self._clock()
        seen = self._seen.get(key)
        if seen is None or seen.counter != counter:
            self._seen[key] = _Sighting(counter, now_s, 1, now_s)
            return vital
        self._seen[key] = seen = seen._replace(reads=seen.reads + 1, read_s=now_s)
        lease_s = attempt.claim.lease_s if attempt.claim else UNREADABLE_LEASE_S
        silent_s = now_s - seen.since_s
        if silent_s >= lease_s and seen.reads >= MIN_READS:
            return OwnerReport(
                Liveness.GONE, f"no new heartbeat in {silent_s:.0f} s, its lease is {lease_s:.0f} s"
            )
        return vital

    def suspects(self, *, read_s: float, since_s: float) -> bool:
        """Whether an attempt that is still looked at has shown no life for some time: it may be dead.

        Args:
            read_s: looked at since then, on this watcher's clock, in seconds.
            since_s: without a new heartbeat since then.
        """
        return any(seen.read_s >= read_s and seen.since_s <= since_s for seen in self._seen.values())

    def learn(self, gone: LostWorker) -> None:
        """Takes note of a worker that is known to be gone."""
        self._gone.append(gone)

    def _is_former_self(self, owner: Owner) -> bool:
        me = self._me
        same = (owner.cluster, owner.job, owner.array_index, owner.slot) == (
            me.cluster,
            me.job,
            me.array_index,
            me.slot,
        )
        return bool(me.job) and same and owner.restart_count < me.restart_count

    def _known_gone(self, owner: Owner) -> LostWorker | None:
        for gone in self._gone:
            same = (gone.cluster, gone.job, gone.array_index) == (
                owner.cluster,
                owner.job,
                owner.array_index,
            )
            if same and gone.slot in (None, owner.slot) and owner.restart_count <= gone.restart_count:
                return gone
        return None


def next_lease_s(base_s: float, num_lost: int, *, cap_s: float = 1800.0) -> float:
    """Returns the lease of a new claim: doubled by each lost attempt, up to a cap (rule 4)."""
    return min(cap_s, base_s * 2.0**num_lost)
