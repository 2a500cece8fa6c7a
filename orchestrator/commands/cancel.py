"""`sweep cancel`: stop cells and keep them from being claimed, until the next launch or rerun of them."""

from __future__ import annotations

import argparse

from orchestrator import provenance
from orchestrator.commands.ask import ask
from orchestrator.commands.output import counted
from orchestrator.commands.view import View, add_store, add_sweep, no_overrides, open_view, scheduler
from orchestrator.core.dispatch import Phase
from orchestrator.core.jobs import Over
from orchestrator.core.state import State
from orchestrator.errors import UserError
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
    running = sum(view.cells[cell.cell].state is State.RUNNING for cell in cells)
    if not cells:
        print(f"{view.title}: nothing to cancel, all these cells are done")
        return 0
    ask(view, "cancel", cells)
    print(f"{view.title}: cancelled {counted(len(cells), 'cell')}, {running} of them running")
    cancel_jobs(view, {cell.cell for cell in cells})
    return 0


def cancel_jobs(view: View, cancelled: set[str]) -> None:
    """Cancels the jobs that wait and have no other cell; those that run checkpoint and end by themselves.

    Raises:
        InfrastructureError: the scheduler did not do it; the cells are cancelled all the same.
    """
    waiting: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for filed in view.jobs.filed:
        for index in filed.open_tasks:
            job = view.jobs.job(filed, index)
            alone = all(
                cell in cancelled or view.cells[cell].state is State.DONE
                for cell in filed.submission.tasks[index]
                if cell in view.cells
            )
            if alone and job.phase is Phase.QUEUED:
                key = (filed.submission.launcher, filed.submission.number)
                waiting.setdefault(key, []).append((index, job.name))
    for (launcher, number), tasks in waiting.items():
        scheduler(launcher).cancel([name for _, name in tasks])
        over = [Over(index=index, word="CANCELLED", detail="by sweep cancel") for index, _ in tasks]
        Submissions(view.ledger, view.sweep.name).close(number, over, at=provenance.now())
    if waiting:
        print(f"  {counted(sum(map(len, waiting.values())), 'waiting job')} cancelled")
