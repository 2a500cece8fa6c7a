"""Workers side by side in one process of this machine, as in a scheduler's job, or by ``sweep work``."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

from orchestrator.jobs.records import REFUSED, RELEASED
from orchestrator.launchers.base import Launch
from orchestrator.launchers.local import LocalLauncher

POLL_S = 0.2


class PoolEnd(NamedTuple):
    """How the workers of a pool ended: the exit code for all of them, and why they refused to work."""

    code: int
    refusal: str


def work_side_by_side(
    pool: LocalLauncher, launch: Callable[[], Launch], watch: Callable[[], None] = lambda: None
) -> PoolEnd:
    """Run a pool of workers until all have ended.

    SIGTERM and SIGINT stop them with a checkpoint, a second SIGINT kills them. SIGUSR1 announces a time
    limit, which workers watch themselves.

    Args:
        pool: not started yet.
        launch: returns what it works on. It is called when stops are handled, as it may read the store.
        watch: called at each poll.
    """
    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGUSR1:
            stops.append(number)
            pool.stop(kill=stops.count(signal.SIGINT) > 1)

    # Stops are passed on, since the workers have sessions of their own.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, stop)
    pool.start(launch())
    while pool.poll() > 0:
        watch()
        time.sleep(POLL_S)
    watch()
    if refusal := pool.refusal():
        return PoolEnd(REFUSED, refusal)
    return PoolEnd(pool.released or (RELEASED if stops else 0), "")
