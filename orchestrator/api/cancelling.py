"""Cancelling cells: the request that keeps them from being claimed, and the jobs that it makes useless."""

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
    """Return the ids of the current revision's cells; none if `view` is the current revision.

    A cancel applies to a cell, not to a revision. Without this check, a user who cancels an old revision
    would stop cells that the current one has in common with it.
    """
    current = current_revision(view.ledger, view.sweep.name)
    if current is None or current == view.number:
        return set()
    return {cell.id for cell in sealed_view(view.ledger, view.sweep.name, current).sweep.cells}


def cancel_jobs(view: SweepState, cancelled: set[str]) -> list[str]:
    """Cancel waiting jobs whose cells are all cancelled or done.

    Running jobs are not cancelled here: their workers read the request, save a checkpoint and end.

    Args:
        view: the sweep state before the cancel.
        cancelled: ids of the cancelled cells.

    Returns:
        Lines on the jobs that were cancelled, and on those whose state is unknown.
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
        # The cancel is recorded already. A job that starts later reads it and ends at once.
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
    """Return whether a job has a cancelled cell, and otherwise only cells that are done or cancelled."""
    states = {cell: view.cells[cell].state for cell in cells if cell in view.cells}
    return bool(cancelled & set(cells)) and all(
        cell in cancelled or states.get(cell) in (State.DONE, State.CANCELLED) for cell in cells
    )


def _close(view: SweepState, filed: SubmissionState, names: dict[int, str]) -> int:
    """Record the cancelled tasks that are over, and return their number.

    With their end recorded, a new launch may submit the cells at once. A task may have started just before
    the cancel, so the scheduler is queried again first.

    Args:
        view: the sweep state.
        filed: the submission.
        names: index of a task to the job's name.
    """
    submission, asker = filed.submission, asker_here()
    answer = scheduler(*scheduler_of(submission)).jobs({name.rpartition("_")[0] for name in names.values()})
    found = {index: judge(filed, index, answer, asker) for index in names}
    # The scheduler has accepted the cancel. Its accounting lags behind, so only its current list is used.
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
    """The result of a cancel.

    Attributes:
        cells: that were cancelled.
        num_running: how many of them were running; they save a checkpoint and stop within seconds.
        kept: ids of cells that go on, because the current revision has them too.
        lines: about their jobs, for people.
    """

    cells: list[Cell]
    num_running: int
    kept: set[str]
    lines: list[str]


def cancel_cells(view: SweepState, chosen: Sequence[Cell]) -> Cancelled:
    """Record that cells must not be claimed until the next launch or rerun of them, and cancel their jobs.

    Args:
        view: a revision that was launched.
        chosen: cells of the revision; those that are done stay as they are.

    Raises:
        UserError: the sweep was never launched.
    """
    if not view.sealed:
        raise UserError(f"{view.sweep.name} was never launched here", fix=f"sweep launch {view.sweep.name}")
    cells = [cell for cell in chosen if view.cells[cell.id].state is not State.DONE]
    kept = cells_of_the_current_revision(view) & {cell.id for cell in cells}
    cells = [cell for cell in cells if cell.id not in kept]
    num_running = sum(view.cells[cell.id].state is State.RUNNING for cell in cells)
    lines: list[str] = []
    if cells:
        # The request comes first. A worker that starts while jobs are being cancelled must find it.
        submit_request(view, build_request(view, "cancel", cells))
        lines = cancel_jobs(view, {cell.id for cell in cells})
    return Cancelled(cells, num_running, kept, lines)
