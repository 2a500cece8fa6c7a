"""Cells at work for one launch or rerun, as a handle to wait for or stop; and cancelling cells."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from orchestrator import provenance
from orchestrator.api.launching import CheckedLaunch, Detached, detach
from orchestrator.api.reconciling import JobPasses, PendingLaunch, is_open, submit_pass
from orchestrator.api.requests import build_request
from orchestrator.api.state import SweepState, current_revision, sealed_view
from orchestrator.api.status import Status, status_of
from orchestrator.core.records import Request
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import InfrastructureError, UserError, counted
from orchestrator.jobs.cells import scheduler_of
from orchestrator.jobs.judgement import Phase, SubmissionState, judge, listing_gap
from orchestrator.jobs.records import JobEnd
from orchestrator.jobs.submissions import Submissions
from orchestrator.jobs.submissions import asker as asker_here
from orchestrator.launchers.base import scheduler
from orchestrator.store.opening import following

POLL_S = 0.2
"""Seconds between polls of a launching process."""

LOOK_S = 2.0
"""Seconds between looks at a store that other processes work in."""


STOP_S = 600.0
"""Seconds that `stop` waits for the launching process, whose workers first save checkpoints."""


_Method = TypeVar("_Method", bound=Callable[..., Any])


def in_store(method: _Method) -> _Method:
    """Run a method with the file modes of the store at `_url`, in the working folder `_folder`.

    The working folder is the one in which the object was made: relative paths of a sweep keep their meaning
    when a notebook changes its folder. A folder that is gone is not entered.
    """

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_there = self._folder.is_dir()
        with following(self._url), contextlib.chdir(self._folder) if is_there else contextlib.nullcontext():
            return method(self, *args, **kwargs)

    return cast("_Method", wrapped)


class Run:
    """A launch or rerun at work: in a process of its own, as jobs of a scheduler, or by ``sweep work``.

    Attributes:
        log: file with the output of the launching process; None without one.
    """

    def __init__(self, checked: CheckedLaunch, view: SweepState, request: Request) -> None:
        self._view, self._request, self._checked = view, request, checked
        self._url, self._folder = view.ledger.objects.url, Path.cwd()
        self._detached: Detached | None = None
        self._passes: JobPasses | None = None
        if checked.limits is None and not checked.settings.is_external:
            self._detached = detach(view, request)
        elif checked.limits is not None:
            asked = [PendingLaunch(request, checked.launcher, checked.limits)]
            self._passes = JobPasses(submit_pass(view, asked, notify=lambda line: None).view, asked)
        self.log = self._detached.log if self._detached else None

    def __repr__(self) -> str:
        return f"<{self._checked.verb} {self._request.number} of {self._view.title}>"

    @in_store
    def status(self) -> Status:
        """Return the current states of this launch's cells."""
        return status_of(self._view.fresh(), self._request.cells)

    def wait(self, timeout_s: float | None = None) -> Status:
        """Wait until nothing is at work for this launch, and return the states of its cells.

        Cells that a limit of the scheduler held back are submitted during the wait, which outlasts an outage
        of the scheduler or the store.

        Args:
            timeout_s: longest wait, in seconds; None for no limit.

        Raises:
            TimeoutError: cells are still at work.
            InfrastructureError: no worker could start.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self._is_at_work():
            pause_s = self._passes.pause_s if self._passes else POLL_S if self._detached else LOOK_S
            if deadline_s is not None:
                pause_s = min(pause_s, deadline_s - time.monotonic())
            if pause_s <= 0:
                raise TimeoutError(f"{self._view.title} is still at work after {timeout_s} s")
            time.sleep(pause_s)
        if self._passes:
            self._passes.finish()
        # Exit code 1 means that cells failed, which their states show.
        if self._detached and self._detached.process.returncode not in (0, 1):
            raise InfrastructureError(
                f"the launch of {self._view.title} ended with exit code {self._detached.process.returncode}",
                where=_last_line(self._detached.log),
            )
        return self.status()

    def stop(self) -> None:
        """Stop the cells of this launch. Running stages save a checkpoint; a later launch continues from it.

        Cells that run as jobs are cancelled as by `Sweep.cancel`: they are not claimed again until the next
        launch or rerun.

        Raises:
            InfrastructureError: the launching process did not end.
        """
        if self._detached is None:
            self._cancel()
            return
        process = self._detached.process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                raise InfrastructureError(
                    f"process {process.pid} did not stop", where=str(self.log)
                ) from None

    @in_store
    def _cancel(self) -> None:
        view = self._view.fresh()
        cancel_cells(view, view.asked_cells(self._request.cells))

    @in_store
    def _is_at_work(self) -> bool:
        """Return whether cells may still run; for jobs, submit what was held back as well."""
        if self._passes is not None:
            self._passes.make(lambda line: None)
            return self._passes.is_open
        if self._detached is None:
            view, wanted = self._view.fresh(), self._request.cells
            cells = view.sweep.cells if wanted is None else [c for c in view.sweep.cells if c.id in wanted]
            return any(is_open(view, cell) for cell in cells)
        return self._detached.process.poll() is None


def start(checked: CheckedLaunch) -> Run:
    """Seal and record a checked launch, and start it."""
    sealed = checked.seal(lambda line: None)
    return Run(checked, sealed, checked.record(sealed, lambda line: None))


def _last_line(log: Path) -> str:
    """Return the last line of a log, which holds the error that ended the process."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


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
            scheduler(*scheduler_of(filed.submission)).cancel(filed.submission, [*names.values()])
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
        request: number of the request; None if nothing was recorded.
    """

    cells: list[Cell]
    num_running: int
    kept: set[str]
    lines: list[str]
    request: int | None = None


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
    number = None
    if cells:
        # The request comes first. A worker that starts while jobs are being cancelled must find it.
        number = view.ledger.add_request(view.sweep.name, build_request(view, "cancel", cells)).number
        lines = cancel_jobs(view, {cell.id for cell in cells})
    return Cancelled(cells, num_running, kept, lines, number)
