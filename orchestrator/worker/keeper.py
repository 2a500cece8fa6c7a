"""The process above a worker: it adopts what a killed worker leaves behind, and ends it.

A fork server imports this module for `serve`'s sake alone; a scheduler's job calls `keep_worker`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import warnings
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
