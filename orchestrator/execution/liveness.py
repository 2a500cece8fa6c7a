"""Signs of life: the heartbeats and fences of an attempt, and the observation of other attempts' owners.

This is rule 4 of the store protocol in docs/design.md. It compares no clocks of different machines.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import NamedTuple

from orchestrator import provenance
from orchestrator.core.evidence import Attempt, Liveness
from orchestrator.core.failure import Cause
from orchestrator.core.records import Heartbeat, Owner
from orchestrator.core.state import StageStatus, State
from orchestrator.core.sweep import StageInstance
from orchestrator.execution.assignment import Assignment, ClaimedAttempt, Message
from orchestrator.execution.spending import AttemptClock
from orchestrator.jobs.records import JobContext, LostWorker
from orchestrator.store import layout
from orchestrator.store.access import error_line, is_transient
from orchestrator.store.evidence import OwnerReport, inspect_owner
from orchestrator.store.ledger import Ledger

MAX_HEARTBEAT_S = 10.0


class HeartbeatWriter:
    """The writer of one attempt's heartbeats.

    Args:
        ledger: the store.
        claimed: the attempt.
        clock: of the attempt's time.

    Attributes:
        clock: of the attempt's time.
        progress: the child's last message.
    """

    def __init__(self, ledger: Ledger, claimed: ClaimedAttempt, clock: AttemptClock) -> None:
        self._ledger = ledger
        self._instance = claimed.instance
        self._number = claimed.number
        # Three heartbeats in a lease: a late one, or one that fails, does not cost the lease.
        self._interval_s = min(claimed.claim.lease_s / 3, MAX_HEARTBEAT_S)
        self._counter = 0
        self._last_s = 0.0
        self.clock = clock
        self.progress = Message(phase="starting")

    def receive(self, message: Message) -> None:
        """Take a message of the child into the next heartbeat.

        A changed phase or process is recorded at once, a step with the next regular heartbeat. Other workers
        on this machine need the process to prove that the child is gone.
        """
        was, self.progress = self.progress, message
        known = was.process, was.phase, was.step is None
        if known != (message.process, message.phase, message.step is None):
            self.write()

    def keepalive(self) -> bool:
        """Record a heartbeat if one is due; return whether it was."""
        if time.monotonic() - self._last_s < self._interval_s:
            return False
        self.write()
        return True

    def write(self) -> None:
        """Record a heartbeat now. A failure is only logged: the next one is due soon."""
        self._counter += 1
        self._last_s = time.monotonic()
        beat = Heartbeat(
            counter=self._counter,
            phase=self.progress.phase,
            step=self.progress.step,
            num_steps=self.progress.num_steps,
            child=self.progress.process,
            at=provenance.now(),
            spent=self.clock.spent(self.progress),
        )
        try:
            self._ledger.put(self._instance, self._number, layout.HEARTBEAT, beat)
        except OSError as error:
            warn(f"heartbeat of {self._instance.name} attempt {self._number} failed: {error}")
        self.clock.held.keepalive()


class Fence:
    """The store's records by which an attempt sees whether what it makes may still count.

    Two workers may both run a stage, because the first was wrongly taken for dead. This is safe: each attempt
    writes only into its own folder, and `done` can be created only once per generation::

        attempt 1: claim .... no heartbeat .... create done: refused, so released (superseded)
        attempt 2:                claim ... create done: its product is the result

    An attempt therefore looks for a successor at each heartbeat, and again when it fails.

    Args:
        ledger: the store.
        claimed: the attempt.
    """

    def __init__(self, ledger: Ledger, claimed: ClaimedAttempt) -> None:
        self._ledger = ledger
        self._instance = claimed.instance
        self._number = claimed.number
        self._generation = claimed.claim.generation
        self._inputs = claimed.input_generations

    def is_pointless(self) -> bool:
        """Return whether a product exists already, or the generation is void."""
        return self._ledger.is_done_or_void(self._instance, self._generation)

    def is_recorded(self) -> bool:
        """Return whether the stage's product is the one of this attempt."""
        done, _ = self._ledger.product(self._instance, self._generation)
        return done is not None and done.attempt == self._number

    def is_superseded(self) -> bool:
        """Return whether a later attempt or a product exists; False while the store does not answer."""
        try:
            return self._ledger.is_claimed(self._instance, self._number + 1) or self.is_pointless()
        except OSError:
            return False

    def retired_input(self) -> str:
        """Return the stage of an input with retired files, "" for none.

        Another sweep may still take a product whose files its own sweep no longer needs.
        """
        return self._ledger.retired_input(self._instance, self._inputs)

    def has_discarded_input(self) -> bool:
        """Return whether an input was discarded meanwhile: what was made from it must not count."""
        return any(
            self._ledger.is_discarded(taken, self._inputs[taken.digest]) for taken in self._instance.inputs
        )


LEAVE_S, UNREADABLE_S = 3.0, 8.0
"""Seconds that a stage with a transient error is left alone, and seconds that an idle worker keeps trying."""


class _Left(NamedTuple):
    """A stage that is left alone: its status, since when, and whether its error may pass."""

    status: StageStatus
    since_s: float
    is_passing: bool


class Leaving:
    """The stages that this worker leaves alone after errors of the store, and its patience with them.

    When nothing else is left to do, the worker waits up to `UNREADABLE_S` for the errors to pass. This
    patience starts again when another stage fails, and after `reset`. A stage that fails repeatedly does not
    extend it, or the worker would never end.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = lambda: time.monotonic()) -> None:
        self._clock = clock
        self._left: dict[str, _Left] = {}
        self._erred: set[str] = set()  # stages that failed since the patience started
        self._idle_since_s: float | None = None
        self._paused_until_s = -UNREADABLE_S

    def leave(self, digest: str, error: Exception) -> None:
        """Leave a stage alone: for `LEAVE_S` if the error may pass, else for good."""
        status = StageStatus(State.UNKNOWN, f"cannot be worked on: {error_line(error)}")
        self._left[digest] = _Left(status, self._clock(), is_transient(error))
        if digest not in self._erred:
            self._erred.add(digest)
            self._idle_since_s = None

    def back_off(self, digest: str, seconds: float, why: str) -> None:
        """Leave a stage alone for some time, after which this worker tries it again; others may at once."""
        now_s = self._clock()
        self._left[digest] = _Left(StageStatus(State.UNKNOWN, why), now_s + seconds - LEAVE_S, True)
        self._paused_until_s = max(self._paused_until_s, now_s + seconds)

    def reset(self) -> None:
        """Start the patience again, after a stage ran without an error of the store."""
        self._erred.clear()
        self._idle_since_s = None

    def status(self, digest: str) -> StageStatus | None:
        """Return the state of a stage that is left alone; None for any other."""
        left = self._left.get(digest)
        if left is not None and self._may_be_tried(left):
            del self._left[digest]
            return None
        return None if left is None else left.status

    def _may_be_tried(self, left: _Left) -> bool:
        return left.is_passing and self._clock() - left.since_s >= LEAVE_S

    def is_worth_another_look(self, *, is_passing: bool) -> bool:
        """Whether a worker that found nothing else to do should scan again.

        Args:
            is_passing: whether a stage could not be read just now because of an error that may pass.
        """
        now_s = self._clock()
        if not is_passing and not any(left.is_passing for left in self._left.values()):
            self._idle_since_s = None
            return False
        # Stages whose pause is over are forgotten: the next scan tries them, if a cell still needs them.
        self._left = {digest: left for digest, left in self._left.items() if not self._may_be_tried(left)}
        self._idle_since_s = now_s if self._idle_since_s is None else self._idle_since_s
        return now_s - max(self._idle_since_s, self._paused_until_s) < UNREADABLE_S


MIN_READS = 3
UNREADABLE_LEASE_S = 90.0


class _Sighting(NamedTuple):
    """The observation of one owner: its counter, since when it is unchanged, number of reads, last read."""

    counter: int
    since_s: float
    reads: int
    read_s: float


class Watcher:
    """Heartbeats over time, on this process's own monotonic clock, and the verdict on their owners.

    An owner is dead when its counter did not change during its lease, in three reads or more. Several reads
    matter: one late read, after this process was suspended, would otherwise condemn a healthy owner. No lease
    is needed when the owner is provably gone: its process vanished from this machine, its job is known to be
    over, or it is this very worker before its scheduler restarted it::

        read at 0 s: counter 7;  at 50 s: 7;  at 95 s: 7    lease 90 s, 3 reads without a change: dead
        read at 0 s: counter 7;  at 95 s: 7                 2 reads only: wait for one more

    Args:
        me: the worker that watches.
        job: the scheduler's job that it runs in, with earlier jobs that are over.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        me: Owner,
        *,
        job: JobContext | None = None,
        clock: Callable[[], float] = lambda: time.monotonic(),
    ) -> None:
        self._me, self._job, self._clock = me, job, clock
        self._gone = list(job.gone) if job else []
        self._seen: dict[tuple[str, int], _Sighting] = {}

    def __call__(self, instance: StageInstance, attempt: Attempt) -> OwnerReport:
        """Judge an attempt that has no `end`."""
        vital = inspect_owner(instance, attempt)
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
        key, now_s = (instance.digest, attempt.number), self._clock()
        seen = self._seen.get(key)
        # The counter alone is compared: a heartbeat's own time comes from another machine's clock.
        if seen is None or seen.counter != counter:
            self._seen[key] = _Sighting(counter, now_s, 1, now_s)
            return vital
        self._seen[key] = seen = seen._replace(reads=seen.reads + 1, read_s=now_s)
        # An unreadable claim has no known lease; it must not hold the stage for ever either.
        lease_s = attempt.claim.lease_s if attempt.claim else UNREADABLE_LEASE_S
        silent_s = now_s - seen.since_s
        if silent_s >= lease_s and seen.reads >= MIN_READS:
            return OwnerReport(
                Liveness.GONE, f"no new heartbeat in {silent_s:.0f} s, its lease is {lease_s:.0f} s"
            )
        return vital

    def suspects(self, *, read_s: float, since_s: float) -> bool:
        """Whether an attempt under observation may be dead: it has shown no sign of life for some time.

        Args:
            read_s: count attempts that were read at this time or later, in seconds on this watcher's clock.
            since_s: and that have had no new heartbeat since this time.
        """
        return any(seen.read_s >= read_s and seen.since_s <= since_s for seen in self._seen.values())

    def learn(self, gone: LostWorker) -> None:
        """Record a worker that is known to be gone."""
        self._gone.append(gone)

    def _is_former_self(self, owner: Owner) -> bool:
        """Whether the owner is this very worker, before its scheduler restarted the job.

        A worker with a number is one of a driver's. They outlive it, and the driver judges those of its
        earlier starts.
        """
        me = self._me
        same = (owner.cluster, owner.job, owner.array_index, owner.slot) == (
            me.cluster,
            me.job,
            me.array_index,
            0,
        )
        return bool(me.job) and not me.slot and same and owner.restart_count < me.restart_count

    def _known_gone(self, owner: Owner) -> LostWorker | None:
        """Return the record of a lost worker that covers this owner; None without one."""
        for gone in self._gone:
            same = (gone.cluster, gone.job, gone.array_index) == (owner.cluster, owner.job, owner.array_index)
            # A later start of the same job may be alive, so the record covers none after its own.
            if same and gone.slot in (None, owner.slot) and owner.restart_count <= gone.restart_count:
                return gone
        return None


class Idleness:
    """How long a worker has found nothing to claim while others work, or while the store has no space.

    Args:
        watcher: the worker's watcher.
        order: the worker's assignment.
    """

    def __init__(self, watcher: Watcher, order: Assignment) -> None:
        self._watcher = watcher
        self._most_s = order.max_idle_s
        self._in_job = order.job is not None
        self._outage_s = order.settings.store.outage_s
        self._since_s: float | None = None
        self._scan_s = 0.0

    def start_scan(self) -> None:
        """Note the start of a scan."""
        self._scan_s = time.monotonic()

    def end(self) -> None:
        """Note that the worker found a stage to claim."""
        self._since_s = None

    def why_leave(self, lacks_space: Callable[[float], str]) -> str:
        """Return why the worker may leave, after a scan that found nothing to claim; "" if it stays.

        Args:
            lacks_space: returns why stages wait for space, "" if none does or only for a pause of at most so
                many seconds.
        """
        now_s = time.monotonic()
        self._since_s = now_s if self._since_s is None else self._since_s
        idle_s = now_s - self._since_s
        # A scheduler's job would hold its GPUs: another one is submitted when there is space again. Only
        # short pauses are waited for. Workers without a job wait for all that end by themselves.
        patience_s = math.inf
        if self._in_job:
            patience_s = self._outage_s if self._most_s is None else self._most_s
        if (self._in_job or idle_s >= self._outage_s) and (reason := lacks_space(patience_s)):
            return reason
        # An attempt that may be dead keeps this worker here. Each successor would start watching from zero,
        # and none would watch for a whole lease.
        is_long = self._most_s is not None and idle_s >= self._most_s
        if not is_long or self._watcher.suspects(read_s=self._scan_s, since_s=self._since_s):
            return ""
        return "nothing to claim while others work"


def next_lease_s(base_s: float, num_lost: int, *, cap_s: float = 1800.0) -> float:
    """Return the lease of a new claim, in seconds.

    Each lost attempt doubles it up to the cap: if leases expire because machines are slow, a longer one ends
    the mutual takeovers.

    Args:
        base_s: lease of the first claim.
        num_lost: how many attempts were lost.
        cap_s: longest lease.
    """
    return min(cap_s, base_s * 2.0**num_lost)


def warn(line: str) -> None:
    """Print a line to the worker's log about a problem that stops nothing."""
    with contextlib.suppress(OSError):  # the log may lie on a full disk
        print(line, flush=True)
