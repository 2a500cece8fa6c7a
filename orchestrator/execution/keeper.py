"""Signals that this process received, and the keeper process that outlives its worker.

Libraries such as PyTorch Lightning replace our SIGTERM handler, leave their loop early and return as if they
were done. Python writes the number of every signal that it handles into its wake-up pipe
(`signal.set_wakeup_fd`), whichever handler runs. A read of that pipe therefore shows every signal.

Processes that a stage forks share neither the pipe nor our handler: SIGTERM ends them.
`multiprocessing.Pool.terminate` relies on that.
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
    """Fork the worker and return in it; in this process wait for its end, and exit with its status.

    The worker adopts the orphans of its attempts, and this process adopts those of the worker. Everything
    that is left behind is killed before this process ends. This process forwards its signals to the worker,
    which may therefore receive one twice.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    keeper = os.getpid()
    adopt_orphans()
    # A signal between the fork and the new handlers would kill this process and leave the worker behind.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    worker = os.fork()
    if worker == 0:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if os.getppid() != keeper:  # the keeper was killed before prctl could register for its death
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
    # A worker that died of a signal: die of the same one, so that the parent process sees the true cause.
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(keeper, -code)
    os._exit(code if code >= 0 else 128 - code)


def serve() -> None:
    """Make a fork server adopt the processes that killed workers leave behind; the launcher ends them."""
    adopt_orphans()
    # The fork server warns of each child that it did not fork, and adopted orphans are such children.
    warnings.filterwarnings("ignore", message="forkserver: waitpid")


HINT_S = 2.0
"""Seconds to wait, after something ended, for news of the stop that probably caused it."""


class ReceivedSignals:
    """The set of signals that this process received since this object was made, in its main thread.

    Args:
        on_term: called at SIGTERM, unless a library replaced our handler.
        is_announced: whether a stop is known from another source, such as the worker's pipe. A library such
            as asyncio replaces our pipe, and our handler for a time. Where the pipe was replaced, this
            decides whether SIGTERM was received: rather is finished work released than unfinished work done.
    """

    def __init__(self, on_term: Callable[[], None], is_announced: Callable[[], bool] | None = None) -> None:
        self._on_term = on_term
        self._is_announced = is_announced
        self._reader, self._writer = os.pipe()
        for handle in (self._reader, self._writer):
            os.set_blocking(handle, False)
        self._numbers: set[int] = set()
        self._masks = threading.local()
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._handle)
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._unblock, after_in_child=self._share_nothing
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._numbers.add(number)  # in case a library such as asyncio replaced the wake-up pipe
        self._on_term()

    def __contains__(self, number: object) -> bool:
        """Whether a signal was received."""
        try:
            while data := os.read(self._reader, 4096):
                self._numbers.update(data)
        except BlockingIOError:
            pass
        may_be_lost = number == signal.SIGTERM and number not in self._numbers
        if may_be_lost and self._is_announced and self._take_back_wakeup() and await_news(self._is_announced):
            self._numbers.add(signal.SIGTERM)
        return number in self._numbers

    def _take_back_wakeup(self) -> bool:
        """Make our pipe the wake-up pipe again, and return whether another one had replaced it."""
        return signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False) != self._writer

    def _before_fork(self) -> None:
        """Block SIGTERM until the forked child has the default handler.

        A SIGTERM between the fork and that moment would run our handler in the child and be lost there::

            block -> fork -> child: default handler -> unblock -> a pending SIGTERM ends the child
        """
        self._masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def _share_nothing(self) -> None:
        """Give a forked child no part of this object: no pipe, and the default handler."""
        with contextlib.suppress(ValueError):  # not in the main interpreter
            signal.set_wakeup_fd(-1)
            if signal.getsignal(signal.SIGTERM) == self._handle:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._unblock()


def await_news(is_asked: Callable[[], object], patience_s: float = HINT_S) -> bool:
    """Wait for the news of a stop that all processes of a job receive, but not at the same moment.

    Args:
        is_asked: returns whether a stop was requested.
        patience_s: seconds to wait for it.

    Returns:
        Whether it was requested.
    """
    end_s = time.monotonic() + patience_s
    while not is_asked() and time.monotonic() < end_s:
        time.sleep(0.02)
    return bool(is_asked())
