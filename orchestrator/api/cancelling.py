"""Cancelling cells: the request that keeps them from being claimed, and the jobs that would only find it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator import provenance
from orchestrator.api.requests import build_request, submit_request
from orchestrator.api.state import SweepState, current_revision, scheduler, sealed_view
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.jobs.judgement import Phase, SubmissionState, judge, listing_gap
from orchestrator.jobs.records import JobEnd
from orchestrator.jobs.states import scheduler_of
from orchestrator.jobs.submissions import Submissions
from orchestrator.jobs.submissions import asker as asker_here
from orchestrator.text import counted


def cells_of_the_current_revision(view: SweepState) -> set[str]:
    """Cells of the current revision, where another one is meant: a cancel is of a cell, not of a revision."""
    current = current_revision(view.ledger, view.sweep.name)
    if current is None or current == view.number:
        return set()
    return {cell.cell for cell in sealed_view(view.ledger, view.sweep.name, current).sweep.cells}


def cancel_jobs(view: SweepState, cancelled: set[str]) -> list[str]:
    """Cancel the jobs that wait and have no other cell; those that run save a checkpoint and end.

    Returns:
        Lines on what was cancelled, and on what is not known.
    """
    lines: list[str] = []
    waiting: list[tuple[SubmissionState, dict[int, str]]] = []
    num_unknown, num_cancelled, num_left, problem = 0, 0, 0, view.jobs.problem
    for filed in view.jobs.filed:
        names: dict[int, str] = {}
        for index in filed.open_tasks:
            if not _is_for_nothing_else(view, filed.submission.tasks[index], cancelled):
                continue
            job = view.jobs.job(filed, index)
            num_unknown += job.phase is Phase.UNKNOWN
            if job.phase is Phase.QUEUED:
                names[index] = job.name
        waiting += [(filed, names)] if names else []
    for filed, names in waiting:
        try:
            scheduler(*scheduler_of(filed.submission)).cancel([*names.values()])
        except InfrastructureError as error:
            num_unknown, problem = num_unknown + len(names), error.what
        else:
            closed = _close(view, filed, names)
            num_cancelled, num_left = num_cancelled + closed, num_left + len(names) - closed
    if num_cancelled:
        lines.append(f"{counted(num_cancelled, 'waiting job')} cancelled")
    if num_left:
        lines.append(f"{counted(num_left, 'job')} not over yet: one that has just started ends by itself")
    if num_unknown:
        why = problem or "the scheduler does not tell of them"
        lines.append(f"{counted(num_unknown, 'job')} may still wait, and would end at once: {why}")
        lines.append(f"  later: sweep cancel {view.sweep.name}@{view.number}{view.hint}")
    return lines


def _is_for_nothing_else(view: SweepState, cells: Sequence[str], cancelled: set[str]) -> bool:
    """Whether a job has a cancelled cell, and else only cells that are done or cancelled."""
    states = {cell: view.cells[cell].state for cell in cells if cell in view.cells}
    return bool(cancelled & set(cells)) and all(
        cell in cancelled or states.get(cell) in (State.DONE, State.CANCELLED) for cell in cells
    )


def _close(view: SweepState, filed: SubmissionState, names: dict[int, str]) -> int:
    """Record the tasks that are over indeed, so that a launch may follow at once: one may have started."""
    submission, asker = filed.submission, asker_here()
    answer = scheduler(*scheduler_of(submission)).jobs({name.rpartition("_")[0] for name in names.values()})
    found = {index: judge(filed, index, answer, asker) for index in names}
    # the scheduler took the cancel: its own list counts, whatever its accounts still say
    listed = {index for index, each in found.items() if each.seen is not None and each.seen.listed}
    is_complete = not answer.problem and not listing_gap(submission, answer, asker)
    over = [
        JobEnd(index=index, word="CANCELLED", detail="by sweep cancel")
        for index, each in found.items()
        if each.over is not None or (is_complete and index not in listed)
    ]
    if over:
        Submissions(view.ledger, view.sweep.name).close(submission.number, over, at=provenance.now())
    return len(over)


class Cancelled(NamedTuple):
    """What a cancel did.

    Attributes:
        cells: that are cancelled.
        num_running: how many of them ran; they save a checkpoint and stop within seconds.
        kept: ids of cells that go on because the current revision has them too.
        lines: on their jobs, for people.
    """

    cells: list[Cell]
    num_running: int
    kept: set[str]
    lines: list[str]


def cancel_cells(view: SweepState, chosen: Sequence[Cell]) -> Cancelled:
    """Record that cells are not to be claimed until the next launch or rerun of them; cancel their jobs.

    Args:
        view: a revision that was launched.
        chosen: cells of it; those that are done stay as they are.

    Raises:
        UserError: the sweep was never launched.
    """
    if not view.sealed:
        raise UserError(f"{view.sweep.name} was never launched here", fix=f"sweep launch {view.sweep.name}")
    cells = [cell for cell in chosen if view.cells[cell.cell].state is not State.DONE]
    kept = cells_of_the_current_revision(view) & {cell.cell for cell in cells}
    cells = [cell for cell in cells if cell.cell not in kept]
    num_running = sum(view.cells[cell.cell].state is State.RUNNING for cell in cells)
    lines: list[str] = []
    if cells:
        submit_request(view, build_request(view, "cancel", cells))
        lines = cancel_jobs(view, {cell.cell for cell in cells})
    return Cancelled(cells, num_running, kept, lines)
