"""How cells become job arrays, and how many tasks a scheduler gets at a time. Pure functions.

An array is a scheduler's unit of submission: tasks with the same resources. Cells are split in three steps::

    cells by resources       a b c d e (1 GPU)          f (4 GPUs)
    tasks of 2 cells         [a b] [c d] [e]            [f]
    arrays of 2 tasks        [[a b] [c d]]  [[e]]       [[f]]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from orchestrator.jobs.judgement import SubmissionState
from orchestrator.jobs.records import Resources
from orchestrator.jobs.states import LIMIT


class JobArray(NamedTuple):
    """Cells that need the same resources, as the tasks of one array.

    Attributes:
        resources: Resources of each task.
        tasks: Cell ids of each task.
        max_running: How many tasks may run at once; None for no limit.
    """

    resources: Resources
    tasks: tuple[tuple[str, ...], ...]
    max_running: int | None = None


def grouped(
    wanted: Iterable[tuple[str, Resources]],
    *,
    cells_per_job: int,
    max_array_size: int,
    max_running: int | None,
    held: int = 0,
    max_jobs: int | None = None,
) -> tuple[list[JobArray], int]:
    """Group cells by resources into arrays.

    Args:
        wanted: Cells in order, each with the resources that it needs.
        cells_per_job: Number of cells that one task works on.
        max_array_size: Maximum number of tasks in one array.
        max_running: Maximum number of tasks that run at once, shared among the arrays; None for no limit.
        held: Number of the sweep's tasks that already wait or run.
        max_jobs: Maximum number of tasks that wait or run at once; None for no limit.

    Returns:
        The arrays, and the number of cells that are not submitted now because of a limit.
    """
    by_resources: dict[Resources, list[str]] = {}
    for cell, resources in wanted:
        by_resources.setdefault(resources, []).append(cell)
    arrays: list[JobArray] = []
    left, behind = max_jobs - held if max_jobs is not None else None, 0
    for resources, cells in by_resources.items():
        tasks = [tuple(cells[start : start + cells_per_job]) for start in range(0, len(cells), cells_per_job)]
        if left is not None:
            # `left` is negative when a user lowered the limit while jobs were waiting.
            behind += sum(map(len, tasks[max(0, left) :]))
            tasks = tasks[: max(0, left)]
            left -= len(tasks)
        arrays += [
            JobArray(resources, tuple(tasks[start : start + max_array_size]))
            for start in range(0, len(tasks), max_array_size)
        ]
    throttled, idle = _throttled(arrays, max_running)
    return throttled, behind + idle


def _throttled(arrays: list[JobArray], max_running: int | None) -> tuple[list[JobArray], int]:
    """Divide `max_running` among arrays in proportion to their tasks, giving each at least one.

    A scheduler limits each array separately, so the limit of the sweep must be divided. With 10 in total,
    arrays of 30, 9 and 1 tasks may run 7, 2 and 1 at once. Beyond `max_running` arrays, the rest gets nothing
    and waits.

    Returns:
        The arrays with their limits, and the number of cells in arrays that got nothing.
    """
    if max_running is None:
        return arrays, 0
    most = max(0, max_running)
    arrays, rest = arrays[:most], arrays[most:]
    total = sum(len(group.tasks) for group in arrays)
    # Rounding down never exceeds the limit; only the minimum of one does.
    shares = [max(1, most * len(group.tasks) // total) for group in arrays]
    while sum(shares) > most:  # take back from the largest what the minimum of one added
        shares[shares.index(max(shares))] -= 1
    throttled = [
        group._replace(max_running=min(share, len(group.tasks)))
        for group, share in zip(arrays, shares, strict=True)
    ]
    return throttled, sum(len(task) for group in rest for task in group.tasks)


def cut(group: JobArray, most: int) -> tuple[JobArray, JobArray]:
    """Split an array in two, the first with at most `most` tasks.

    The two divide `max_running` between them. A second part with a `max_running` of 0 has to wait.
    """
    tasks, running = group.tasks[:most], group.max_running
    if running is None:
        return group._replace(tasks=tasks), group._replace(tasks=group.tasks[most:])
    # The first part is submitted now, so it gets its share first.
    first = min(running, len(tasks))
    return (
        group._replace(tasks=tasks, max_running=first),
        group._replace(tasks=group.tasks[most:], max_running=running - first),
    )


def first_try(filed: Sequence[SubmissionState], most: int) -> tuple[int, bool]:
    """Return how many tasks to submit first, and whether the scheduler was at a limit last time.

    A scheduler that refused a submission for a limit has room for about as many tasks as have ended since.
    Each refusal is recorded in the store, so larger tries would fill it with refusals. Without any end, one
    task is tried, since limits may change.

    Args:
        filed: All submissions, oldest first.
        most: Maximum number of tasks of one submission.
    """
    last = filed[-1] if filed else None
    if last is None or all(over.word != LIMIT for over in last.over.values()):
        return most, False
    ended = sum(
        # Tasks that never became jobs have freed no room.
        at >= last.submission.at and each.over[index].word not in (LIMIT, "REFUSED")
        for each in filed
        for index, at in each.closed_at.items()
    )
    return min(most, max(1, ended)), True
