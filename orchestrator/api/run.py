"""Cells at work for one launch or rerun, as a handle to wait for or stop."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from orchestrator.api.cancelling import cancel_cells
from orchestrator.api.launching import CheckedLaunch, Detached, PendingLaunch, detach, is_open, submit_pass
from orchestrator.api.state import SweepState
from orchestrator.api.status import Status, status_of
from orchestrator.core.records import Request
from orchestrator.errors import InfrastructureError
from orchestrator.store.opening import following

POLL_S, SUBMIT_POLL_S = 0.2, 2.0
"""Seconds between polls of a launching process, and between passes that submit jobs."""


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
    """A launch or rerun at work: in a process of its own, or as jobs of a scheduler.

    Attributes:
        log: file with the output of the launching process; None for jobs.
    """

    def __init__(self, checked: CheckedLaunch, view: SweepState, request: Request) -> None:
        self._view, self._request, self._checked = view, request, checked
        self._url, self._folder = view.ledger.objects.url, Path.cwd()
        self._detached: Detached | None = None
        if checked.limits is None:
            self._detached = detach(view, request)
        else:
            self._asked = [PendingLaunch(request, checked.launcher, checked.limits)]
            submit_pass(view, self._asked, notify=lambda line: None)
        self.log = self._detached.log if self._detached else None

    @in_store
    def status(self) -> Status:
        """Return the current states of this launch's cells."""
        return status_of(self._view.fresh(), self._request.cells)

    def wait(self, timeout_s: float | None = None) -> Status:
        """Wait until nothing is at work for this launch, and return the states of its cells.

        Cells that a limit of the scheduler held back are submitted during the wait.

        Args:
            timeout_s: longest wait, in seconds; None for no limit.

        Raises:
            TimeoutError: cells are still at work.
            InfrastructureError: no worker could start.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self._is_at_work():
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise TimeoutError(f"{self._view.title} is still at work after {timeout_s} s")
            time.sleep(POLL_S if self._detached else SUBMIT_POLL_S)
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
        view, wanted = self._view.fresh(), self._request.cells
        cancel_cells(view, [c for c in view.sweep.cells if wanted is None or c.id in wanted])

    @in_store
    def _is_at_work(self) -> bool:
        """Return whether cells may still run; for jobs, submit what was held back as well."""
        if self._detached is not None:
            return self._detached.process.poll() is None
        view = submit_pass(self._view, self._asked, notify=lambda line: None).view
        wanted = self._request.cells
        return any(is_open(view, c) for c in view.sweep.cells if wanted is None or c.id in wanted)


def start(checked: CheckedLaunch) -> Run:
    """Seal and record a checked launch, and start it."""
    sealed = checked.seal(lambda line: None)
    return Run(checked, sealed, checked.record(sealed, lambda line: None))


def _last_line(log: Path) -> str:
    """Return the last line of a log, which holds the error that ended the process."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
