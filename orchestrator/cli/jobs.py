"""What is printed while the cells of a sweep are given to a scheduler, and the loop of `--wait`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.api.drift import finish_retention
from orchestrator.api.launching import PendingLaunch
from orchestrator.api.settling import lines_of as unsettled
from orchestrator.api.settling import reconcile_jobs
from orchestrator.api.state import SweepState
from orchestrator.api.submission import Dispatch, SubmitResult, lines_of
from orchestrator.cli.ending import print_failures, print_progress, write_reports
from orchestrator.cli.output import print_lines
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.store.patience import told
from orchestrator.text import counted
from orchestrator.trackers.mirror import mirroring

WAIT_S = 2.0


MAX_WAIT_S = 30.0


HOLD_S = 600.0
"""A scheduler that took no more is tried again after so long, or when a job has ended."""


def print_scripts(given: SubmitResult, notes: Sequence[str] = ()) -> int:
    """Prints what would be submitted, word for word."""
    for note in notes:
        print(f"# note: {note}")
    for submission, text in given.scripts:
        print(f"# submission {submission.number}: {counted(len(submission.tasks), 'task')}")
        for index, cells in enumerate(submission.tasks):
            print(f"#   {index}: {' '.join(cells)}")
        print(text)
    print(
        f"# {counted(len(given.scripts), 'submission')}; {counted(given.num_held, 'cell')} have a job already"
    )
    if given.behind:
        print(f"# {counted(given.behind, 'cell')} would be held back by {given.limit}")
    return 0


def submit_all(view: SweepState, asked: Sequence[PendingLaunch], *, wait: bool) -> int:
    """Settles, submits what nobody holds and says so; with `wait` stays until nothing is left to do.

    Returns:
        0 when everything was submitted and may start, or with `wait` when all cells are done; else 1.
    """
    with mirroring(view.ledger, view.sweep.name, asked[-1].request):
        done = _pass(view, asked)
        view = done.view
        print_lines(done.lines)
        if wait:
            return _stay(view, asked)
    counts = Counter(view.cells[cell.cell].state for cell in view.sweep.cells)
    print(f"{view.title}: {counted(len(view.sweep.cells), 'cell')}: {summary(counts)}")
    print_failures(view, list(view.sweep.cells))
    if counts[State.DONE]:
        write_reports(view)
    print(f"  sweep status {view.sweep.name}{view.hint}")
    return 1 if counts[State.FAILED] or view.jobs.stuck() else 0


class _Pass(NamedTuple):
    """What one pass did, and what it says of that."""

    view: SweepState
    given: SubmitResult
    lines: list[str]


def _pass(view: SweepState, asked: Sequence[PendingLaunch], *, hold: str = "") -> _Pass:
    """Settles and submits; with `hold`, a limit, submits only if a job was found over."""
    settled = reconcile_jobs(view.fresh(), [each.submitter for each in asked])
    view, given = settled.view, SubmitResult()
    for each in asked:
        dispatch = Dispatch(view, *each)
        try:
            given.add(dispatch.run(hold="" if settled.closed else hold))
        except SweepError:  # what was submitted before it is
            given.add(SubmitResult(submitted=dispatch.given.submitted))
            print_lines(lines_of(view, given))
            raise
        view = dispatch.view
    return _Pass(view, given, [*lines_of(view, given), *unsettled(view, settled)])


def summary(counts: Counter[State]) -> str:
    """Returns ``3 done, 2 queued``."""
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def _stay(view: SweepState, asked: Sequence[PendingLaunch]) -> int:
    numbers = {each.request.number for each in asked}
    cells = [cell for cell in view.sweep.cells if view.wishes.asked.get(cell.cell) in numbers]
    pause_s, last, said = WAIT_S, "", [""]
    hold, hold_until_s = "", 0.0
    while any(view.cells[cell.cell].state in _OPEN and not _can_never_start(view, cell) for cell in cells):
        last = print_progress(view, cells, last)
        time.sleep(pause_s)
        start_s = time.monotonic()
        try:
            done = _pass(view, asked, hold=hold if start_s < hold_until_s else "")
        except (InfrastructureError, OSError) as error:  # a scheduler, or a store, that is away comes back
            print(f"  {told(error)}; trying again", flush=True)
            pause_s, view = MAX_WAIT_S, view.fresh()
            continue
        if done.given.limit != hold or done.given.submitted:
            hold, hold_until_s = done.given.limit, start_s + HOLD_S
        view = done.view
        if done.lines != said:
            print_lines(said := done.lines)
        pause_s = min(MAX_WAIT_S, max(WAIT_S, 20 * (time.monotonic() - start_s)))
    print_lines(finish_retention(view, view.policy))
    counts = Counter(view.cells[cell.cell].state for cell in cells)
    print(f"{view.title}: {counted(len(cells), 'cell')}: {summary(counts)}")
    print_failures(view, cells)
    if any(view.cells[cell.cell].state is State.DONE for cell in view.sweep.cells):
        write_reports(view)
    return 0 if counts[State.DONE] == len(cells) else 1


_OPEN = frozenset({State.RUNNING, State.QUEUED, State.UNKNOWN, State.PENDING, State.RELEASED, State.LOST})


def _can_never_start(view: SweepState, cell: Cell) -> bool:
    job = view.jobs.of_cell(cell.cell)
    return job is not None and job.seen is not None and bool(job.seen.stuck)
