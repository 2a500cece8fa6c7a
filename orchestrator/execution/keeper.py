"""Which signals reached this process, whoever handles them; processes that it forks take none of that along.

Libraries such as PyTorch Lightning put a handler of their own for SIGTERM in place of ours, leave their loop
early and return as if all were done. Python writes the number of each signal that it handles into its wake-up
pipe (`signal.set_wakeup_fd`), whichever handler then runs. Processes that a stage forks share neither the
pipe nor our handler: SIGTERM ends them, as `multiprocessing.Pool.terminate` relies on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import FrameType

from orchestrator.processes import adopt_orphans, end_adopted

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1  # prctl(2)


def keep_worker() -> None:
    """Return in a forked process, the worker's; wait for its end in this one, and exit as it did.

    The worker adopts the orphans of its attempts, and this process those of the worker: all that is left
    behind ends before this process does. Signals that reach it go on to the worker, which may get one twice.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    keeper = os.getpid()
    adopt_orphans()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    worker = os.fork()
    if worker == 0:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if os.getppid() != keeper:  # it was killed before we asked to hear of it
            os._exit(1)
        adopt_orphans()
        return

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _, status = os.waitpid(worker, 0)
    end_adopted(keeper, ())
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError, ValueError):  # the handler of SIGKILL cannot be set, nor need it be
            signal.signal(-code, signal.SIG_DFL)
        os.kill(keeper, -code)
    os._exit(code if code >= 0 else 128 - code)


def serve() -> None:
    """Have a fork server adopt what its killed workers leave behind; its launcher ends that."""
    adopt_orphans()
    warnings.filterwarnings("ignore", message="forkserver: waitpid")  # it collects the adopted ones too


HINT_S = 2.0
"""How long the end of what was stopped may precede the news of the stop, where a stop is likely."""


class ReceivedSignals:
    """Remembers the signals that this process received from now on; made in its main thread.

    Args:
        on_term: called at SIGTERM, as long as no library puts a handler of its own in the place of ours.
    """

    def __init__(self, on_term: Callable[[], None]) -> None:
        self._on_term = on_term
        self._reader, writer = os.pipe()
        for handle in (self._reader, writer):
            os.set_blocking(handle, False)
        self._numbers: set[int] = set()
        self._masks = threading.local()
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._handle)
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._unblock, after_in_child=self._share_nothing
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._numbers.add(number)  # a library such as asyncio may have taken the pipe away
        self._on_term()

    def __contains__(self, number: object) -> bool:
        """Whether a signal was received."""
        try:
            while data := os.read(self._reader, 4096):
                self._numbers.update(data)
        except BlockingIOError:
            pass
        return number in self._numbers

    def _before_fork(self) -> None:
        """Block SIGTERM until the child has its default: one that came before would be lost there."""
        self._masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def _share_nothing(self) -> None:
        with contextlib.suppress(ValueError):  # not in the main interpreter
            signal.set_wakeup_fd(-1)
            if signal.getsignal(signal.SIGTERM) == self._handle:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._unblock()


def await_news(is_asked: Callable[[], object], patience_s: float = HINT_S) -> bool:
    """Give a signal that went to all processes of a job the time to arrive here too.

    Args:
        is_asked: returns whether a stop is known.
        patience_s: seconds to wait for it.

    Returns:
        Whether it is known now.
    """
    end_s = time.monotonic() + patience_s
    while not is_asked() and time.monotonic() < end_s:
        time.sleep(0.02)
    return bool(is_asked())
