"""How cells become arrays of jobs, and how many of these to give to a scheduler at a time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from orchestrator.jobs.judgement import SubmissionState
from orchestrator.jobs.records import Resources
from orchestrator.jobs.states import LIMIT


class JobArray(NamedTuple):
    """Cells that ask for the same, as the tasks of one array."""

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
    """Groups cells by resources into arrays; returns them and how many cells stay behind.

    Args:
        wanted: cells in order, with what each asks for.
        cells_per_job: how many cells a task works on.
        max_array_size: most tasks an array may have.
        max_running: most tasks that may run at once, shared out among the arrays; None for no limit.
        held: tasks of the sweep that wait or run already.
        max_jobs: most tasks that may wait or run at once; None for no limit.
    """
    by_resources: dict[Resources, list[str]] = {}
    for cell, resources in wanted:
        by_resources.setdefault(resources, []).append(cell)
    arrays: list[JobArray] = []
    left, behind = max_jobs - held if max_jobs is not None else None, 0
    for resources, cells in by_resources.items():
        tasks = [tuple(cells[start : start + cells_per_job]) for start in range(0, len(cells), cells_per_job)]
        if left is not None:
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
    """Shares the throttle out in proportion, one at least; returns also how many cells got no share."""
    if max_running is None:
        return arrays, 0
    most = max(0, max_running)
    arrays, rest = arrays[:most], arrays[most:]
    total = sum(len(group.tasks) for group in arrays)
    shares = [max(1, most * len(group.tasks) // total) for group in arrays]
    while sum(shares) > most:  # those that were rounded up took it from the largest
        shares[shares.index(max(shares))] -= 1
    throttled = [
        group._replace(max_running=min(share, len(group.tasks)))
        for group, share in zip(arrays, shares, strict=True)
    ]
    return throttled, sum(len(task) for group in rest for task in group.tasks)


def cut(group: JobArray, most: int) -> tuple[JobArray, JobArray]:
    """Cuts an array in two, of which the first has so many tasks at most; they share its throttle."""
    tasks, running = group.tasks[:most], group.max_running
    if running is None:
        return group._replace(tasks=tasks), group._replace(tasks=group.tasks[most:])
    first = min(running, len(tasks))
    return (
        group._replace(tasks=tasks, max_running=first),
        group._replace(tasks=group.tasks[most:], max_running=running - first),
    )


def first_try(filed: Sequence[SubmissionState], most: int) -> tuple[int, bool]:
    """Returns how many tasks to give to the scheduler first, and whether it is at its limit.

    Where it last refused for a limit it can take, as far as we know, as many as have ended since; to ask for
    more each time would fill the store with refusals. One more is tried.

    Args:
        filed: all submissions, oldest first.
        most: tasks of one submission.
    """
    last = filed[-1] if filed else None
    if last is None or all(over.word != LIMIT for over in last.over.values()):
        return most, False
    ended = sum(
        at >= last.submission.at and each.over[index].word not in (LIMIT, "REFUSED")
        for each in filed
        for index, at in each.closed_at.items()
    )
    return min(most, max(1, ended)), True
