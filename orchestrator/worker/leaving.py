"""Stages that a worker leaves alone because the store errs for them, while it goes on with others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from orchestrator.core.state import StageStatus, State
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
