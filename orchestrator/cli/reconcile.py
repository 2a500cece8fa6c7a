"""`sweep reconcile`: settle what was given to a scheduler and submit what nobody holds; needs no daemon."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.api.drift import finish_retention
from orchestrator.api.settling import lines_of as unsettled
from orchestrator.api.settling import reconcile_jobs
from orchestrator.api.state import SweepState, add_store, add_sweep, no_overrides, open_view
from orchestrator.api.submission import Dispatch, SubmitResult, lines_of
from orchestrator.cli.attached import make_launcher, print_failures, print_progress
from orchestrator.cli.output import counted
from orchestrator.cli.report import write_reports
from orchestrator.core.records import Request
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.entry import outlive_the_reader
from orchestrator.errors import InfrastructureError, SweepError, UserError
from orchestrator.launchers.base import Launcher, Limits, Submitter
from orchestrator.launchers.jobs import settings_of
from orchestrator.store.patience import told
from orchestrator.trackers.mirror import mirroring

WAIT_S = 2.0
MAX_WAIT_S = 30.0
HOLD_S = 600.0
"""A scheduler that took no more is tried again after so long, or when a job has ended."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_sweep(parser, json=False)
    parser.add_argument("--dry-run", action="store_true", help="only print what would be submitted")
    add_wait(parser)
    add_store(parser)


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Adds the wish to stay."""
    parser.add_argument(
        "--wait",
        action="store_true",
        help="stay, and submit again what is left, until all cells have ended; Ctrl-C leaves the jobs alone",
    )


def run(args: argparse.Namespace) -> int:
    """Makes one pass, or as many as it takes."""
    outlive_the_reader()
    view = open_view(args.sweep, no_overrides(args.words))
    view.check()
    asked = requests_of(view)
    if args.dry_run:
        given = SubmitResult()
        for each in asked:
            given.add(Dispatch(view, *each).dry_run(after=len(given.scripts)))
        return print_scripts(given)
    return submit_all(view, asked, wait=args.wait)


class PendingLaunch(NamedTuple):
    """A request for jobs, the launcher that its settings make, and what its scheduler says of itself."""

    request: Request
    submitter: Submitter
    limits: Limits


def requests_of(view: SweepState) -> list[PendingLaunch]:
    """Returns the requests whose settings and code count for cells of the revision, or that have open jobs.

    A sweep may have jobs of several schedulers: those that do not answer are told, and left for later.

    Raises:
        UserError: nothing was launched as jobs, or the cluster cannot be found from here.
        InfrastructureError: no scheduler answers.
    """
    started = [r for r in view.requests if r.settings is not None and r.revision == view.number]
    if not started:
        raise UserError(f"{view.title} was never launched here", fix=f"sweep launch {view.sweep.name}")
    numbers = {view.wishes.asked.get(cell.cell) for cell in view.sweep.cells}
    numbers |= {each.submission.request for each in view.jobs.filed if each.open_tasks}  # to be settled
    asked: list[PendingLaunch] = []
    silent: list[SweepError] = []
    for request in started:
        submitter = make_launcher(settings_of(request), len(view.sweep.cells))
        if not isinstance(submitter, Submitter) or not (request.number in numbers or request is started[-1]):
            continue
        try:
            asked.append(PendingLaunch(request, submitter, submitter.limits()))
        except SweepError as error:  # such as a cluster that is found on its own machines alone
            silent.append(error)
    if silent and not asked:
        raise silent[-1]
    for problem in silent:
        print(f"  left for later: {problem.what}")
    if not asked:
        raise UserError(
            f"{view.title} was last launched with a launcher that has no jobs",
            where=f"launcher={settings_of(started[-1]).launcher['name']}",
            fix=f"sweep launch {view.sweep.name} launcher=slurm{view.hint}, or launcher=ray",
        )
    return asked


def limits_of(launcher: Launcher | Submitter, args: argparse.Namespace) -> Limits | None:
    """Asks a launcher's scheduler for its limits, before anything is recorded; None for one that has none.

    Raises:
        UserError: a dry run of a launcher that submits nothing.
        InfrastructureError: the scheduler does not answer.
    """
    if isinstance(launcher, Submitter):
        return launcher.limits(dry_run=args.dry_run)
    if args.dry_run:
        raise UserError("this launcher submits nothing", fix=f"sweep plan {args.sweep}")
    return None


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


def print_lines(lines: Sequence[str]) -> None:
    """Prints lines for somebody who may be watching."""
    for line in lines:
        print(line, flush=True)


def summary(counts: Counter[State]) -> str:
    """Returns ``3 done, 2 queued``."""
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


_OPEN = frozenset({State.RUNNING, State.QUEUED, State.UNKNOWN, State.PENDING, State.RELEASED, State.LOST})


def _can_never_start(view: SweepState, cell: Cell) -> bool:
    job = view.jobs.of_cell(cell.cell)
    return job is not None and job.seen is not None and bool(job.seen.stuck)


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
    finish_retention(view, view.policy)
    counts = Counter(view.cells[cell.cell].state for cell in cells)
    print(f"{view.title}: {counted(len(cells), 'cell')}: {summary(counts)}")
    print_failures(view, cells)
    if any(view.cells[cell.cell].state is State.DONE for cell in view.sweep.cells):
        write_reports(view)
    return 0 if counts[State.DONE] == len(cells) else 1
