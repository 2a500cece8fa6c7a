"""`sweep cancel`: stop cells and keep them from being claimed, until the next launch or rerun of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from orchestrator import provenance
from orchestrator.commands.ask import as_request, ask
from orchestrator.commands.output import counted
from orchestrator.commands.view import (
    View,
    add_store,
    add_sweep,
    current_revision,
    no_overrides,
    open_view,
    scheduler,
    sealed_view,
)
from orchestrator.core.dispatch import Phase, scheduler_of
from orchestrator.core.jobs import Over, Submission
from orchestrator.core.state import State
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.store.submissions import Submissions


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_sweep(parser, only=True, json=False)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Records the cancel; workers see it within seconds and checkpoint first."""
    view = open_view(args.sweep, no_overrides(args.words))
    if not view.sealed:
        raise UserError(f"{view.sweep.name} was never launched here", fix=f"sweep launch {view.sweep.name}")
    cells = [cell for cell in view.select(args.only) if view.cells[cell.cell].state is not State.DONE]
    kept = _of_the_current_revision(view) & {cell.cell for cell in cells}
    cells = [cell for cell in cells if cell.cell not in kept]
    running = sum(view.cells[cell.cell].state is State.RUNNING for cell in cells)
    if kept:
        print(f"{view.title}: {counted(len(kept), 'cell')} go on: the current revision has them too")
        print(f"  to cancel them: sweep cancel {view.sweep.name}{view.hint}")
    if not cells:
        print(f"{view.title}: nothing to cancel" + ("" if kept else ", all these cells are done"))
        return 0
    ask(view, as_request(view, "cancel", cells))
    print(f"{view.title}: cancelled {counted(len(cells), 'cell')}, {running} of them running")
    cancel_jobs(view, {cell.cell for cell in cells})
    return 0


def _of_the_current_revision(view: View) -> set[str]:
    """Cells of the current revision, where another one is meant: a cancel is of a cell, not of a revision."""
    current = current_revision(view.ledger, view.sweep.name)
    if current is None or current == view.number:
        return set()
    return {cell.cell for cell in sealed_view(view.ledger, view.sweep.name, current).sweep.cells}


def cancel_jobs(view: View, cancelled: set[str]) -> None:
    """Cancels the jobs that wait and have no other cell; those that run checkpoint and end by themselves."""
    waiting: list[tuple[Submission, dict[int, str]]] = []
    num_unknown, num_cancelled, problem = 0, 0, view.jobs.problem
    for filed in view.jobs.filed:
        names: dict[int, str] = {}
        for index in filed.open_tasks:
            if not _is_for_nothing_else(view, filed.submission.tasks[index], cancelled):
                continue
            job = view.jobs.job(filed, index)
            num_unknown += job.phase is Phase.UNKNOWN
            if job.phase is Phase.QUEUED:
                names[index] = job.name
        waiting += [(filed.submission, names)] if names else []
    for submission, names in waiting:
        try:
            scheduler(*scheduler_of(submission)).cancel([*names.values()])
        except InfrastructureError as error:
            num_unknown, problem = num_unknown + len(names), error.what
        else:
            num_cancelled += _close(view, submission, names)
    if num_cancelled:
        print(f"  {counted(num_cancelled, 'waiting job')} cancelled")
    if num_unknown:
        why = problem or "the scheduler does not tell of them"
        print(f"  {counted(num_unknown, 'job')} may still wait, and would end at once: {why}")
        print(f"    later: sweep cancel {view.sweep.name}@{view.number}{view.hint}")


def _is_for_nothing_else(view: View, cells: Sequence[str], cancelled: set[str]) -> bool:
    """Whether a job has a cancelled cell, and else only cells that are done or cancelled."""
    states = {cell: view.cells[cell].state for cell in cells if cell in view.cells}
    return bool(cancelled & set(cells)) and all(
        cell in cancelled or states.get(cell) in (State.DONE, State.CANCELLED) for cell in cells
    )


def _close(view: View, submission: Submission, names: dict[int, str]) -> int:
    """Records the tasks that are over indeed, so that a launch may follow at once: one may have started."""
    answer = scheduler(*scheduler_of(submission)).jobs({name.rpartition("_")[0] for name in names.values()})
    over = []
    for index, name in names.items():
        seen = answer.seen.get((name.rpartition("_")[0], index))
        if not answer.problem and (answer.complete if seen is None else seen.over is not None):
            over.append(Over(index=index, word="CANCELLED", detail="by sweep cancel"))
    if over:
        Submissions(view.ledger, view.sweep.name).close(submission.number, over, at=provenance.now())
    return len(over)
