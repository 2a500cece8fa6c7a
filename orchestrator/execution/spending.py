"""What a worker spends: the record of the time for which it holds its GPUs, and the watch over the budget."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from orchestrator import provenance
from orchestrator.core.evidence import Hold, Spending, budget_hold, over_budget
from orchestrator.core.records import Owner, TimeSpent
from orchestrator.core.settings import SpendingLimit
from orchestrator.errors import InfrastructureError
from orchestrator.execution.assignment import Assignment, Message
from orchestrator.jobs.records import WorkerRecord, spending
from orchestrator.jobs.submissions import WorkerRecords
from orchestrator.provenance import is_gone, process_age_s
from orchestrator.saving import PhaseClock
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger

MAX_UNTIL_SAVED = 20
"""Number of a worker's last attempts whose time to a checkpoint its record holds."""

CHILD = "child"
"""Phase of an attempt in which its child measures the phases."""

RECORD_INTERVAL_S = 10.0
"""Longest pause between two records of a worker, in seconds."""


class HeldTime:
    """The record of the time for which a worker holds its GPUs; see `WorkerRecord`.

    A failure to write it is ignored: the next record holds the same time, and more.

    Args:
        ledger: the store.
        order: the worker's assignment.
        owner: its identity.

    Attributes:
        budget: what the sweep may still spend.
        record: as it was last written.
    """

    def __init__(self, ledger: Ledger, order: Assignment, owner: Owner) -> None:
        self._records = WorkerRecords(ledger, order.sweep)
        self.budget = BudgetWatch(ledger, order, self)
        began = order.job.start_at if order.job is not None else None
        before_s = max(process_age_s(), time.time() - began if began is not None else 0.0)
        self._start_s = time.monotonic() - before_s
        self._interval_s = min(order.settings.policy.lease_s / 3, RECORD_INTERVAL_S)
        self._written_s = 0.0
        self.record = WorkerRecord(
            nonce=new_nonce(),
            owner=owner,
            revision=order.revision,
            num_gpus=order.num_gpus,
            device=order.device,
            began_at=provenance.now(),
        )

    @property
    def seconds(self) -> float:
        """Seconds since the worker's start."""
        return round(time.monotonic() - self._start_s, 3)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the worker from its search for a first stage on to its end."""
        self.write(start_s=self.seconds)
        try:
            yield
        finally:
            self.write(has_ended=True)

    def begins(self, key: str) -> None:
        """Note that the worker has claimed an attempt."""
        self.write(runs=key)

    def ends(self, until_saved_s: float | None) -> None:
        """Note that its attempt has ended.

        Args:
            until_saved_s: seconds from the claim to the first checkpoint or the product; None without both.
        """
        found = self.record.until_saved
        found += () if until_saved_s is None else (round(until_saved_s, 1),)
        self.write(runs="", until_saved=found[-MAX_UNTIL_SAVED:])

    def keepalive(self) -> None:
        """Write the record if that is due."""
        if time.monotonic() - self._written_s >= self._interval_s:
            self.write()

    def write(self, **changes: object) -> None:
        """Write the record with some changes."""
        self._written_s = time.monotonic()
        self.record = replace(self.record, **changes, seconds=self.seconds, at=provenance.now())
        try:
            self._records.put(self.record)
        except (OSError, InfrastructureError):
            self._written_s = 0.0  # tried again at the next opportunity


class AttemptClock:
    """The time of one attempt, from its claim on, by phase.

    The worker measures it, apart from the time in which the child does.

    Args:
        held: of the worker.

    Attributes:
        held: of the worker.
        phases: the worker's part.
    """

    def __init__(self, held: HeldTime) -> None:
        self.held = held
        self.phases = PhaseClock("start")
        self._first_saved_s: float | None = None

    @property
    def seconds(self) -> float:
        """Wall time of the attempt so far."""
        return round(sum(self.phases.times().values()), 3)

    def spent(self, child: Message) -> TimeSpent:
        """Return how the time so far was spent.

        Args:
            child: its last message.
        """
        times = self.phases.times()
        seconds = sum(times.values())
        if child.saved is not None and self._first_saved_s is None:
            self._first_saved_s = seconds
        phases = _merged(times, child)
        step, saved_s = child.saved or (None, 0.0)
        return TimeSpent(
            held_s=self.held.seconds,
            seconds=round(seconds, 3),
            phases={name: round(value, 3) for name, value in phases.items()},
            saved_step=step,
            saved_s=round(saved_s, 3),
        )

    def until_saved_s(self, *, is_done: bool) -> float | None:
        """Return the seconds to the first checkpoint, or to the product; None without both."""
        if self._first_saved_s is not None:
            return self._first_saved_s
        return self.seconds if is_done else None


def _merged(times: Mapping[str, float], child: Message) -> dict[str, float]:
    """Return phases in which the child's own ones take the place of the time that the child ran."""
    phases = dict(times)
    ran_s = phases.pop(CHILD, 0.0)
    measured_s = sum(child.times.values())
    # The child measured until it sent its message, so its sum may exceed what the worker saw. The time since
    # then is added below.
    scale = min(1.0, ran_s / measured_s) if measured_s else 1.0
    for name, seconds in child.times.items():
        phases[name] = phases.get(name, 0.0) + scale * seconds
    rest_s = ran_s - scale * measured_s
    if rest_s > 0:
        name = child.does or "start"
        phases[name] = phases.get(name, 0.0) + rest_s
    return phases


class BudgetWatch:
    """What the sweep has spent, as this worker sees it, and what follows for it.

    Another worker counts as running until its process is gone, or its record has stood still for a lease on
    this worker's clock. A worker that may not claim leaves: one that waits spends without computing.

    Args:
        ledger: the store.
        order: this worker's assignment.
        held: its own time.
    """

    def __init__(self, ledger: Ledger, order: Assignment, held: HeldTime) -> None:
        self._records = WorkerRecords(ledger, order.sweep)
        self._order = order
        self._held = held
        self._seen: dict[str, tuple[float, float]] = {}  # nonce to held seconds, and since when they stand
        self._others: list[WorkerRecord] = []
        self._read_s = 0.0

    def hold(self, limit: SpendingLimit) -> Hold | None:
        """Return the hold on every stage, as seen before a claim.

        Raises:
            OSError, InfrastructureError: the store did not answer.
        """
        if not limit.is_set:
            return None
        return budget_hold(
            limit,
            self._spending(at_most_s=0.0),
            num_gpus=self._order.num_gpus,
            now=time.time(),
            sweep=self._order.sweep,
        )

    def is_over(self, limit: SpendingLimit, *, at_most_s: float) -> bool:
        """Return whether a running stage should save and end.

        Args:
            limit: the budget.
            at_most_s: greatest age of what is known of other workers, in seconds.

        Raises:
            OSError, InfrastructureError: the store did not answer.
        """
        if not self._order.num_gpus:  # it spends time, but no GPU-hours
            limit = SpendingLimit(until=limit.until)
        return limit.is_set and over_budget(limit, self._spending(at_most_s=at_most_s), now=time.time()) != ""

    def _spending(self, *, at_most_s: float) -> Spending:
        now_s = time.monotonic()
        if now_s - self._read_s >= at_most_s:
            mine = self._held.record.nonce
            self._others = [record for record in self._records.read() if record.nonce != mine]
            self._read_s = now_s
        lease_s = self._order.settings.policy.lease_s
        running = []
        for record in self._others:
            seconds, since_s = self._seen.get(record.nonce, (-1.0, now_s))
            if seconds != record.seconds:
                since_s = now_s
            self._seen[record.nonce] = record.seconds, since_s
            is_still = now_s - since_s >= lease_s
            if record.is_running and not is_still and is_gone(record.owner.process) is not True:
                running.append(record)
        own = replace(self._held.record, seconds=self._held.seconds)
        checkpoint_s = self._order.settings.policy.checkpoint_interval_s
        return spending([*self._others, own], running, checkpoint_s=checkpoint_s)
