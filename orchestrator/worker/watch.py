"""Watching the owners of attempts: when one may be called dead (rule 4). Compares no clocks of machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from orchestrator.core.failure import Cause
from orchestrator.core.records import Owner
from orchestrator.core.state import Attempt, Liveness
from orchestrator.core.sweep import Node
from orchestrator.store.evidence import Vital, glance
from orchestrator.worker.order import Gone, Job

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
        self, me: Owner, *, job: Job | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._me, self._job, self._clock = me, job, clock
        self._gone = list(job.gone) if job else []
        self._seen: dict[tuple[str, int], _Sighting] = {}

    def __call__(self, node: Node, attempt: Attempt) -> Vital:
        """Judges an attempt that has no `end`."""
        vital = glance(node, attempt)
        if vital.liveness is Liveness.GONE:
            return vital
        if attempt.claim is not None and self._is_former_self(attempt.claim.owner):
            cause = self._job.before if self._job and self._job.before else Cause.NODE_LOST
            return Vital(
                Liveness.GONE, f"this job's own attempt, before it was started anew ({cause})", cause
            )
        if attempt.claim is not None and (gone := self._known_gone(attempt.claim.owner)):
            return Vital(Liveness.GONE, gone.evidence, gone.cause)
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
            return Vital(Liveness.GONE, f"no new heartbeat in {silent_s:.0f} s, its lease is {lease_s:.0f} s")
        return vital

    def suspects(self, *, read_s: float, since_s: float) -> bool:
        """Whether an attempt that is still looked at has shown no life for some time: it may be dead.

        Args:
            read_s: looked at since then, on this watcher's clock, in seconds.
            since_s: without a new heartbeat since then.
        """
        return any(seen.read_s >= read_s and seen.since_s <= since_s for seen in self._seen.values())

    def learn(self, gone: Gone) -> None:
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

    def _known_gone(self, owner: Owner) -> Gone | None:
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
