"""The identity of a worker, and the order in which it works on a launch's cells."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from orchestrator.core.records import Owner
from orchestrator.core.sweep import Cell
from orchestrator.errors import InfrastructureError
from orchestrator.execution.assignment import Assignment
from orchestrator.processes import describe


def share(cells: Sequence[Cell], order: Assignment) -> tuple[Cell, ...]:
    """Return the worker's cells, rotated to start at its own share: workers then rarely compete for a stage.

    Example: of 8 cells and 4 workers, worker 2 starts at cell 4, and returns to cell 0 after cell 7.
    """
    if order.cells is not None:
        wanted = set(order.cells)
        cells = [cell for cell in cells if cell.cell in wanted]
    start = len(cells) * order.slot // max(1, order.num_slots) % max(1, len(cells))
    return (*cells[start:], *cells[:start])


def this_owner(order: Assignment, pid: int) -> Owner:
    """Return the identity of the calling worker.

    Args:
        order: its assignment.
        pid: its process id.

    Raises:
        InfrastructureError: the process cannot be described.
    """
    process = describe(pid)
    # Without the start time nobody could prove this worker gone, and each of its claims would block others
    # for a whole lease.
    if process is None:
        raise InfrastructureError(f"cannot read this process's start time (pid {pid})")
    job = order.job
    if job is None:
        return Owner(host=platform.node(), process=process, slot=order.slot)
    return Owner(
        host=job.node or platform.node(),
        process=process,
        cluster=job.cluster,
        job=job.job,
        array_index=job.array_index,
        restart_count=job.restart_count,
        slot=order.slot,
    )
