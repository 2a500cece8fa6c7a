"""Which signals reached this process, whoever handles them.

Libraries such as PyTorch Lightning put a handler of their own for SIGTERM in place of ours, leave their loop
early and return as if all were done. Python writes the number of each signal that it handles into its wake-up
pipe (`signal.set_wakeup_fd`), whichever handler then runs. Processes that a stage forks do not share the
pipe: a pool that ends its workers by SIGTERM says nothing about this process.
"""

from __future__ import annotations

import contextlib
import os
import signal


class ReceivedSignals:
    """Remembers the signals that this process received from now on; made in its main thread."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        for handle in (self._reader, writer):
            os.set_blocking(handle, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_share_nothing)
        self._numbers: set[int] = set()

    def note(self, number: int) -> None:
        """Remembers one that our handler saw: a library such as asyncio may have taken the pipe away."""
        self._numbers.add(number)

    def __contains__(self, number: object) -> bool:
        """Whether a signal was received."""
        try:
            while data := os.read(self._reader, 4096):
                self._numbers.update(data)
        except BlockingIOError:
            pass
        return number in self._numbers


def _share_nothing() -> None:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.set_wakeup_fd(-1)
