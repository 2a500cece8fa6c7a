"""What a simulated sweep has spent, and what follows from its budget, by the rules that workers obey."""

from __future__ import annotations

import bisect
import statistics
from datetime import datetime

from orchestrator.core.evidence import Hold, Spending, budget_hold, over_budget
from orchestrator.core.settings import SpendingLimit


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
