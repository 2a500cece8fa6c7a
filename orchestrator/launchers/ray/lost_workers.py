"""Which workers of a driver are gone, so that their attempts can be taken over without waiting for a lease.

The three cases differ in how long a worker may still live, and save a checkpoint:

- Its process has ended: it is gone at once.
- Its actor is gone: it may live without it. It is gone with its node, or after the grace time.
- An earlier start of the driver had started it: it is gone after the grace time of this start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from orchestrator.core.failure import Cause
from orchestrator.execution.assignment import LostWorker
from orchestrator.execution.liveness import Watcher
from orchestrator.jobs.records import LostSlot, Submission
from orchestrator.jobs.submissions import Submissions
from orchestrator.launchers.jobs import gone_of
from orchestrator.provenance import without_secrets


class _Doubt(NamedTuple):
    """A worker whose actor is gone, and which may live until a time."""

    slot: int
    node: str
    cause: Cause
    why: str
    until_s: float


class Losses:
    """The workers that one start of a driver has found to be gone; it shares them with its watcher.

    Args:
        submissions: of the sweep.
        submission: the driver's.
        job: its id.
        restart: how often the driver was restarted.
        watcher: judges the attempts of workers.
        grace_s: how long a worker may take to save a checkpoint after its actor or driver is gone.

    Attributes:
        known: the workers that are gone, for the driver's status record.
    """

    def __init__(
        self,
        submissions: Submissions,
        submission: Submission,
        job: str,
        restart: int,
        *,
        watcher: Watcher,
        grace_s: float,
    ) -> None:
        self._submissions, self._cluster, self._job = submissions, submission.cluster, job
        self._restart, self._watcher, self._grace_s = restart, watcher, grace_s
        self._doubts: list[_Doubt] = []
        # earlier starts cannot be observed any more, so their workers get the whole grace time from now on
        self._former_until_s: float | None = time.monotonic() + grace_s
        before = submissions.driver(submission.number)
        self.known: list[LostSlot] = list(before.lost) if before else []
        for lost in self.known:
            self._learn(lost)
        # jobs of other submissions may have held stages of the same cells
        for gone in gone_of(submissions.read(), grace_s=grace_s):
            watcher.learn(gone)

    def add(self, slot: int | None, cause: Cause, why: str, *, restart: int | None = None) -> None:
        """Record that a worker is gone; without a slot, all workers of one start of the driver."""
        restart = self._restart if restart is None else restart
        lost = LostSlot(slot=slot, restart=restart, cause=cause, why=without_secrets(why)[:300])
        self.known.append(lost)
        self._learn(lost)

    def doubt(self, slot: int, node: str, cause: Cause, why: str) -> None:
        """Record that the actor of a worker is gone; the worker itself may still save a checkpoint."""
        self._doubts.append(_Doubt(slot, node, cause, why, time.monotonic() + self._grace_s))

    def settle(self, busy: Collection[int], lives: Callable[[str], bool]) -> None:
        """Decide which doubtful workers are gone by now.

        Args:
            busy: the slots whose attempts have no end.
            lives: whether a node, by its id, is alive.
        """
        now_s = time.monotonic()
        open_doubts = []
        for doubt in self._doubts:
            if doubt.slot not in busy:
                # its attempt has an end, so nothing is left to take over
                continue
            if not lives(doubt.node):
                self.add(doubt.slot, doubt.cause, f"the node of worker {doubt.slot} is gone: {doubt.why}")
            # the node lives, so the worker may have saved a checkpoint; by now its grace time is over
            elif now_s >= doubt.until_s:
                self.add(doubt.slot, doubt.cause, doubt.why)
            else:
                open_doubts.append(doubt)
        self._doubts = open_doubts
        if self._former_until_s is not None and now_s >= self._former_until_s:
            self._former_until_s = None
            self._forget_former()

    def _forget_former(self) -> None:
        """Record all workers of earlier starts as gone; they had the grace time to end."""
        for gone in gone_of(self._submissions.read()):
            self._watcher.learn(gone)
        if self._restart:
            # one record is enough: it matches this restart and all earlier ones
            why = "the driver that had started it was killed"
            self.add(None, Cause.NODE_LOST, why, restart=self._restart - 1)

    def _learn(self, lost: LostSlot) -> None:
        """Pass a loss on to the watcher."""
        self._watcher.learn(
            LostWorker(
                cluster=self._cluster,
                job=self._job,
                slot=lost.slot,
                restart_count=lost.restart,
                cause=lost.cause,
                evidence=lost.why,
            )
        )
