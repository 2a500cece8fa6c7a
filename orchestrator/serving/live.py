"""The newest look at a sweep, renewed by a thread while somebody has the page open."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from orchestrator.errors import SweepError, one_line, words_of

T = TypeVar("T")

SILENT_S = 5.0
"""After so many seconds without an answer, a page states that the store is silent."""


class Look(NamedTuple, Generic[T]):
    """One look at the store, and whether the store has answered since.

    Attributes:
        value: what was read; None if nothing was read yet.
        at_s: when reading began, in seconds since the epoch.
        number: 1 for the first look, one more for each later one.
        took_s: how long reading took, in seconds.
        problem: why the last attempt to look failed; "" if it did not.
        is_silent: whether the store has not answered since this look.
        is_late: whether the wait ended before the look that was waited for, so this is an earlier one.
    """

    value: T | None
    at_s: float
    number: int
    took_s: float = 0.0
    problem: str = ""
    is_silent: bool = False
    is_late: bool = False

    @property
    def age_s(self) -> float:
        """Seconds since reading began."""
        return max(0.0, time.time() - self.at_s)


class Live(Generic[T]):
    """Looks at a store from one thread, on demand, so that a store that hangs delays no page for long.

    A folder on a network file system may block a read for minutes. Requests therefore never read the state
    themselves: they wait for the thread for a moment, and then use its last look. Many viewers cost as much
    as one, and without a viewer nothing is read.

    Args:
        look: reads the state.
        pause_s: shortest time between two looks that were not demanded to be fresh, in seconds.
    """

    def __init__(self, look: Callable[[], T], pause_s: float = 1.0) -> None:
        self._look = look
        self._pause_s = pause_s
        self._condition = threading.Condition()
        self._wanted = 0
        self._answered = 0
        self._begun_s: float | None = None
        self._last: Look[T] = Look(None, time.time(), 0)
        threading.Thread(target=self._run, name="looking", daemon=True).start()

    def get(self, *, max_age_s: float = 0.0, wait_s: float = 0.6) -> Look[T]:
        """Return a look that is young enough, or after a wait the last one.

        Args:
            max_age_s: greatest age of an earlier look that suffices; 0 for one that begins after this call,
                infinite for the last one as it is.
            wait_s: longest time to wait for a new one, in seconds.
        """
        with self._condition:
            last, in_time = self._last, True
            if last.value is None or last.problem or max_age_s <= 0 or last.age_s > max_age_s:
                # A look that is under way may have read before a change that the viewer knows of.
                self._wanted = max(self._wanted, self._answered + (2 if self._begun_s else 1))
                ticket = self._wanted
                self._condition.notify_all()
                in_time = self._condition.wait_for(lambda: self._answered >= ticket, wait_s)
            begun_s, last = self._begun_s, self._last
        # A first look at a large sweep takes longer. A renewal that takes so long has met a silent store.
        late = begun_s is not None and time.monotonic() - begun_s > SILENT_S and last.value is not None
        return last._replace(is_silent=late or bool(last.problem), is_late=not in_time)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._wanted > self._answered)
                self._begun_s = time.monotonic()
            at_s = time.time()
            try:
                value = self._look()
                found = Look(value, at_s, self._last.number + 1, time.time() - at_s)
            except Exception as error:  # noqa: BLE001 - the page shows it, and the next look may succeed
                what = error.what if isinstance(error, SweepError) else words_of(error)
                found = self._last._replace(problem=one_line(what) or type(error).__name__)
            with self._condition:
                self._last = found
                self._answered += 1
                self._begun_s = None
                self._condition.notify_all()
            if found.problem:
                time.sleep(self._pause_s)
