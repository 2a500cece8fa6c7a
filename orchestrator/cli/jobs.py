"""Output while cells are submitted to a scheduler, and the loop of ``--wait``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from orchestrator.api.drift import finish_retention
from orchestrator.api.launching import PendingLaunch, is_open, submit_pass
from orchestrator.api.state import SweepState
from orchestrator.api.submission import SubmitResult
from orchestrator.cli.ending import print_failures, print_progress, write_reports
from orchestrator.cli.output import print_lines
from orchestrator.core.state import State
from orchestrator.errors import DamagedRecord, InfrastructureError
from orchestrator.store.access import told
from orchestrator.text import counted
from orchestrator.trackers.mirror import mirroring

WAIT_S = 2.0
"""Shortest pause between two passes of ``--wait``, in seconds."""


MAX_WAIT_S = 30.0
"""Longest pause between two passes, in seconds."""


HOLD_S = 600.0
"""Seconds before a full scheduler is tried again. It is tried earlier if a job has ended."""


def print_scripts(given: SubmitResult, notes: Sequence[str] = ()) -> int:
    """Print the scripts that would be submitted, word for word, and return 0.

    Args:
        given: the result of a dry run.
        notes: remarks about the scheduler's limits.
    """
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
    """Record jobs that ended, submit cells that no job holds, and print both.

    Args:
        view: the revision.
        asked: the requests whose cells are submitted.
        wait: whether to repeat this until all cells have ended.

    Returns:
        0 if everything was submitted and can start; with `wait`, 0 if all cells are done. Else 1.

    Raises:
        UserError: a cell fits nowhere, or the scheduler refuses the job for good.
        InfrastructureError: the scheduler does not answer.
    """
    with mirroring(view.ledger, view.sweep.name, asked[-1].request):
        done = submit_pass(view, asked, notify=print)
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


def summary(counts: Counter[State]) -> str:
    """Return the number of cells in each state, such as ``3 done, 2 queued``."""
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def _stay(view: SweepState, asked: Sequence[PendingLaunch]) -> int:
    """Submit and report until no cell of the requests can go on, and return the exit code.

    A scheduler that is at its limit is not tried at every pass, because each refusal is recorded in the
    store. The limit holds for `HOLD_S`, or until a job of the sweep ends.
    """
    numbers = {each.request.number for each in asked}
    # A later launch may have taken over some cells. It decides about them, not this one.
    cells = [cell for cell in view.sweep.cells if view.wishes.asked.get(cell.cell) in numbers]
    pause_s, last, said, problem = WAIT_S, "", [""], ""
    hold, hold_until_s = "", 0.0
    while any(is_open(view, cell) for cell in cells):
        last = print_progress(view, cells, last)
        time.sleep(pause_s)
        start_s = time.monotonic()
        try:
            done = submit_pass(view, asked, notify=print, hold=hold if start_s < hold_until_s else "")
        except DamagedRecord:
            raise
        # An outage of the scheduler or of the store may pass, so go on.
        except (InfrastructureError, OSError) as error:
            if (line := f"  {told(error)}; trying again") != problem:
                print(line, flush=True)
            problem, pause_s, view = line, MAX_WAIT_S, view.fresh()
            continue
        problem = ""
        # Restart the hold only for a new limit or after a successful submission, so that it does expire.
        if done.given.limit != hold or done.given.submitted:
            hold, hold_until_s = done.given.limit, start_s + HOLD_S
        view = done.view
        if done.lines != said:
            print_lines(said := done.lines)
        # A pass over a large sweep is slow. The pause grows with it, so that passes take at most 5 % of the
        # time.
        pause_s = min(MAX_WAIT_S, max(WAIT_S, 20 * (time.monotonic() - start_s)))
    print_lines(finish_retention(view, view.policy))
    counts = Counter(view.cells[cell.cell].state for cell in cells)
    print(f"{view.title}: {counted(len(cells), 'cell')}: {summary(counts)}")
    print_failures(view, cells)
    if any(view.cells[cell.cell].state is State.DONE for cell in view.sweep.cells):
        write_reports(view)
    return 0 if counts[State.DONE] == len(cells) else 1
