"""`sweep launch`, `rerun` and `reconcile`: check, record the request, and run what is not done."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from orchestrator.api.launching import CheckedLaunch, failed_cells, make_launcher, run_settings_of
from orchestrator.api.reconciling import NOTICES_S, WAIT_S, PendingLaunch, notifier_of
from orchestrator.api.state import Notify, SweepState, open_view
from orchestrator.api.submission import Dispatch, SubmitResult
from orchestrator.cli.attached import Launched, follow
from orchestrator.cli.output import (
    LongStep,
    add_store,
    add_sweep,
    add_wait,
    indented,
    no_overrides,
    print_json,
    print_table,
)
from orchestrator.cli.progress import add_composing, again, composed, print_remarks, submit_all
from orchestrator.core.settings import Policy, split_store
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.entry import ReaderLeft, for_people, need_output, outlive_the_reader
from orchestrator.errors import SchedulerUnavailable, SweepError, UserError, counted, escaped, one_line
from orchestrator.jobs.submissions import Submissions, settings_of
from orchestrator.launchers.base import Submitter
from orchestrator.registry import load

T = TypeVar("T")

PATIENCE_S = 300.0
"""Seconds for which ``launch --wait`` waits for a scheduler that does not answer its checks; ours."""


def configure_launch(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_composing(parser)
    parser.add_argument("--json", action="store_true", help="print JSON alone, at the end")
    parser.add_argument(
        "--dry-run", action="store_true", help="only print what would be submitted (Slurm, Ray)"
    )
    stays = parser.add_mutually_exclusive_group()
    add_wait(stays)
    stays.add_argument(
        "--detach", action="store_true", help="return at once; the launch goes on without a terminal"
    )


def run_launch(args: argparse.Namespace) -> int:
    """Check, seal and launch a sweep; follow it to its end unless it runs as jobs or detached."""
    return _run(args, _launch)


_NEXT_DECISION = "orchestrator.api.waiting:next_decision"  # Loaded by name: few launches print JSON.


def _run(args: argparse.Namespace, launch: Callable[[argparse.Namespace], Launched]) -> int:
    """Launch or rerun; with ``--json``, print what came of it as the only thing on standard output."""
    outlive_the_reader()
    with for_people(as_json=args.json):
        found = launch(args)
    if args.json:
        print_launched(found)
    return found.code


def print_launched(found: Launched) -> None:
    """Print what came of a launch as JSON.

    Raises:
        OSError: standard output cannot be written. A reader that left is no error: the cells have run.
    """
    need_output()
    with contextlib.suppress(ReaderLeft):
        print_json(_launched_json(found))
        sys.stdout.flush()


def _launched_json(found: Launched) -> dict[str, Any]:
    """Return what a launch or rerun recorded and submitted, for scripts."""
    request, name = found.request, found.view.sweep.name
    view = found.view if request is None else found.view.fresh()
    # Decisions may have added cells meanwhile.
    cells = view.asked_cells(found.cells if request is None else request.cells)
    states = Counter(view.cells[cell.id].state for cell in cells)
    jobs = [
        {"submission": each.number, "job": "", "cells": each.tasks, "script": text}
        for each, text in found.scripts
    ]
    for filed in Submissions(view.ledger, name).read() if request is not None else ():
        if request is not None and filed.submission.request == request.number:
            job = filed.accepted.job if filed.accepted is not None else ""
            jobs.append({"submission": filed.submission.number, "job": job, "cells": filed.submission.tasks})
    return {
        "sweep": name,
        "revision": view.number,
        "verb": found.verb,
        "request": None if request is None else request.number,
        "launcher": found.settings.launcher["name"],
        "cells": [cell.id for cell in cells],
        "jobs": jobs,
        "process": None if found.detached is None else found.detached.process.pid,
        "log": "" if found.detached is None else str(found.detached.log),
        "counts": {str(state): number for state, number in states.items()},
        "decision": load(_NEXT_DECISION)(view),
        "exit_code": found.code,
    }


def _launch(args: argparse.Namespace) -> Launched:
    with LongStep("composing") as step:
        view, composition = composed(args, step)
    view.check()
    cells = view.select(args.only)
    settings, import_paths = run_settings_of(view, composition, split_store(args.overrides)[1])
    # All checks come before the first write, so a refused launch leaves no trace in the store.
    with LongStep("checking the launch"):
        checked = _patiently(
            lambda: CheckedLaunch(
                verb="launch",
                view=view,
                cells=cells,
                settings=settings,
                import_paths=import_paths,
                composition=composition,
                overrides=args.overrides,
                names_cells=bool(args.only),
                dry_run=args.dry_run,
                prefetch=again("prefetch", args),
            ),
            wait=args.wait,
        )
    notes = checked.limits.notes if checked.limits else ()
    if args.dry_run:
        given = checked.dispatch().dry_run()
        _print_scripts(given, notes)
        return Launched(0, view, [cell.id for cell in cells], "launch", settings, scripts=given.scripts)
    # From here on, the store is changed.
    sealed = _patiently(lambda: checked.seal(print), wait=args.wait)
    print(f"{sealed.title}: {escaped(sealed.sweep.description)}")
    for note in notes:
        print(f"  note: {note}")
    print_remarks(sealed, cells, composition, import_paths)
    num_done = sum(view.cells[cell.id].state is State.DONE for cell in cells)
    print(f"  {counted(len(cells), 'cell')}, {num_done} of them done; store {sealed.ledger.objects.url}")
    return follow(checked, sealed, wait=args.wait, is_detached=args.detach, as_json=args.json)


def _patiently(act: Callable[[], T], *, wait: bool) -> T:
    """Run an operation. With `wait`, try again for `PATIENCE_S` while a scheduler does not answer.

    A controller that restarts is back in minutes, and whoever waits for a sweep can wait for that.
    """
    until_s, is_printed = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            return act()
        except SchedulerUnavailable as error:
            if not wait or time.monotonic() > until_s:
                raise
            if not is_printed:
                print(f"  {error.what}; trying again for {PATIENCE_S:.0f} s", flush=True)
            is_printed = True
        time.sleep(WAIT_S)


def configure_rerun(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, only=True)
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="of the engine, such as launcher.workers=4",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would run")
    parser.add_argument("--yes", action="store_true", help="do not ask on a terminal")
    stays = parser.add_mutually_exclusive_group()
    stays.add_argument("--detach", action="store_true", help="return at once")
    add_wait(stays)


def run_rerun(args: argparse.Namespace) -> int:
    """Print which cells will run again, confirm on a terminal, and run them."""
    return _run(args, _rerun)


def _rerun(args: argparse.Namespace) -> Launched:
    url, rest = split_store(args.overrides)
    view = open_view(args.sweep, url)
    if not view.sealed:
        raise UserError(f"{view.sweep.name} was never launched here", fix=f"sweep launch {view.sweep.name}")
    view.check()
    settings, import_paths = run_settings_of(view, None, rest)
    chosen = view.select(args.only) if args.only else failed_cells(view)
    # A done cell stays done; `sweep discard` makes it run again.
    cells = [cell for cell in chosen if view.cells[cell.id].state is not State.DONE]
    if not cells:
        done = f"{counted(len(chosen), 'cell')} named, all done" if args.only else "no failed cells"
        print(f"{view.title}: {done}, nothing to rerun")
        open_states = (State.PENDING, State.RELEASED, State.LOST)
        if waiting := sum(view.cells[cell.id].state in open_states for cell in view.sweep.cells):
            go_on = f"sweep launch {view.sweep.name}{view.hint}"
            print(f"  {counted(waiting, 'cell')} neither failed nor ended: {go_on} goes on")
    left = Launched(0, view, [cell.id for cell in cells], "rerun", settings)
    if not cells:
        return left
    if args.dry_run:
        _print_rerun(view, cells, settings.policy)
        return left
    fix = f"sweep prefetch {view.sweep.name}@{view.number}{view.hint}"
    # The checks come before the question, so that a user does not confirm what is then refused.
    checked = _patiently(
        lambda: CheckedLaunch(
            verb="rerun", view=view, cells=cells, settings=settings, import_paths=import_paths, prefetch=fix
        ),
        wait=args.wait,
    )
    _print_rerun(view, cells, settings.policy)
    if (
        not args.yes
        and sys.stdin.isatty()
        and input("rerun them? [y/N] ").strip().lower() not in ("y", "yes")
    ):
        print("nothing was started")
        return left
    sealed = _patiently(lambda: checked.seal(print), wait=args.wait)
    return follow(checked, sealed, wait=args.wait, is_detached=args.detach, as_json=args.json)


def _print_rerun(view: SweepState, cells: list[Cell], policy: Policy) -> None:
    """Print the cells to run again, each with the stages that are not done, and what holds for them."""
    print(f"{view.title}: rerun {counted(len(cells), 'cell')}; what is done stays, checkpoints are used")
    rows = []
    for cell in cells:
        status = view.cells[cell.id]
        stages = [
            view.sweep.stages[d].name
            for d, s in status.stages.items()
            if s.state not in (State.DONE, State.RUNNING)
        ]
        rows.append((cell.id, status.state, status.attempts, " ".join(stages), one_line(status.reason, 80)))
    print_table(("cell", "state", "attempts", "stages to run", "reason"), rows)
    usual, budget = Policy(), policy.budget
    values = {"rehearse": policy.rehearse, "breaker": policy.breaker}
    kept = [f"policy.{k}={str(v).lower()}" for k, v in values.items() if v != getattr(usual, k)]
    kept += [
        f"policy.budget.{k}={v}" for k in ("gpu_hours", "until") if (v := getattr(budget, k)) is not None
    ]
    if kept:
        print(f"  with {' '.join(kept)}; KEY=VALUE changes what the last launch set")


def configure_reconcile(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, json=False)
    parser.add_argument("--dry-run", action="store_true", help="only print what would be submitted")
    add_wait(parser)
    add_store(parser)


def run_reconcile(args: argparse.Namespace) -> int:
    """Make one pass, or with ``--wait`` as many as it takes."""
    outlive_the_reader()
    view = open_view(args.sweep, no_overrides(args.words))
    view.check()
    if not args.dry_run and _has_only_notices(view):
        print(f"{view.title} was launched without jobs; notices that are due are sent")
        notifier_of(view, next(r for r in reversed(view.requests) if r.settings), indented).finish(NOTICES_S)
        return 0
    asked = _patiently(lambda: _requests_of(view, indented), wait=args.wait)
    if args.dry_run:
        given = SubmitResult()
        for each in asked:
            # Each request continues the numbers of the one before, as in a real pass.
            given.add(Dispatch(view, *each).dry_run(after=len(given.scripts)))
        return _print_scripts(given)
    return submit_all(view, asked, wait=args.wait)


def _requests_of(view: SweepState, notify: Notify) -> list[PendingLaunch]:
    """Return the requests that matter for jobs of a revision.

    A request matters if its settings and code apply to a cell, or if it has open jobs. The newest launch or
    rerun always does. A sweep may have jobs of several schedulers; those that do not answer are reported and
    skipped.

    Args:
        view: the sweep state.
        notify: called with a line for each skipped scheduler.

    Raises:
        UserError: nothing was launched as jobs, or the cluster cannot be found from this machine.
        InfrastructureError: no scheduler answers.
    """
    started = [r for r in view.requests if r.settings is not None and r.revision == view.number]
    if not started:
        raise UserError(f"{view.title} was never launched here", fix=f"sweep launch {view.sweep.name}")
    numbers = {view.request_summary.asked.get(cell.id) for cell in view.sweep.cells}
    # Jobs of earlier requests may still be open. Their ends must be recorded too.
    numbers |= {each.submission.request for each in view.jobs.filed if each.open_tasks}
    asked: list[PendingLaunch] = []
    silent: list[SweepError] = []
    for request in started:
        submitter = make_launcher(settings_of(request), len(view.sweep.cells))
        if not isinstance(submitter, Submitter) or not (request.number in numbers or request is started[-1]):
            continue
        try:
            asked.append(PendingLaunch(request, submitter, submitter.limits()))
        except SweepError as error:  # such as a cluster that is only reachable from its own machines
            silent.append(error)
    if silent and not asked:
        raise silent[-1]
    for problem in silent:
        notify(f"left for later: {problem.what}")
    if not asked:
        last = settings_of(started[-1])
        jobs = f"sweep launch {view.sweep.name} launcher=slurm{view.hint}, or launcher=ray"
        raise UserError(
            f"{view.title} was last launched with a launcher that has no jobs",
            where=f"launcher={last.launcher['name']}",
            fix=f"sweep work {view.sweep.name}{view.hint}" if last.is_external else jobs,
        )
    return asked


def _has_only_notices(view: SweepState) -> bool:
    """Return whether a sweep has no jobs to reconcile, but its newest launch names who gets notices."""
    started = [r for r in view.requests if r.settings is not None and r.revision == view.number]
    if not started or not settings_of(started[-1]).notify.channels or view.jobs.filed:
        return False
    return not isinstance(make_launcher(settings_of(started[-1]), len(view.sweep.cells)), Submitter)


def _print_scripts(given: SubmitResult, notes: Sequence[str] = ()) -> int:
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
        f"# {counted(len(given.scripts), 'submission')}; {counted(given.num_held, 'cell')} with a job already"
    )
    if given.behind:
        print(f"# {counted(given.behind, 'cell')} would be held back by {given.limit}")
    return 0
