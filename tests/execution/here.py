"""The real worker in the test's own process, over a store that the test prepared; its children are real."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from orchestrator.core.records import Owner, Revision
from orchestrator.execution.assignment import Assignment, this_owner
from orchestrator.execution.loop import Worker
from orchestrator.execution.supervision import ForkedChildren
from orchestrator.store.ledger import Ledger

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "orchestrator.execution.child", "tests.execution.stages"])


class Worked(NamedTuple):
    """How a worker ended."""

    code: int
    lines: list[str]


def work(
    ledger: Ledger,
    revision: Revision,
    order: Assignment,
    *,
    owner: Owner | None = None,
    stop_asked: Callable[[], str] = lambda: "",
    **_: Any,
) -> Worked:
    """Runs a worker until nothing is left for it."""
    lines: list[str] = []
    worker = Worker(
        ledger=ledger,
        revision=revision,
        order=order,
        owner=owner or this_owner(order, os.getpid()),
        children=ForkedChildren(FORKS),
        stop_asked=stop_asked,
        log=lines.append,
    )
    return Worked(worker.run(), lines)
