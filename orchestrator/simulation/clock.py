"""The virtual clock of a simulation, with its queue of events."""

from __future__ import annotations

import heapq
from collections.abc import Callable

_DIGITS = 6
"""Times are rounded to microseconds, so that equal ones are equal however they were added up."""


class Clock:
    """A clock that jumps from event to event.

    Attributes:
        now_s: seconds since the simulation began.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_planned = 0

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Plan an event. Of several at one time, the one that was planned first comes first."""
        self._num_planned += 1
        heapq.heappush(self._events, (round(self.now_s + seconds, _DIGITS), self._num_planned, event))

    def run_due(self) -> bool:
        """Run the next event of this very moment; return False if there is none."""
        if not self._events or self._events[0][0] > self.now_s:
            return False
        heapq.heappop(self._events)[2]()
        return True

    def next_s(self) -> float | None:
        """Return when the next event comes; None if none is planned."""
        return self._events[0][0] if self._events else None

    def advance(self, to_s: float) -> None:
        """Move on to a later time, at most that of the next event."""
        self.now_s = max(self.now_s, to_s)
