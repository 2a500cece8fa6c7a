"""A sweep as a value, for programs and notebooks: everything that the command does. Nothing here prints.

Each call reads the store again, so it may be used while workers run. A launch runs in a process of its own;
it goes on after the program that started it has ended.
"""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from orchestrator.api.cancelling import cancel_cells
from orchestrator.api.explanation import explain, explanation_lines
from orchestrator.api.launching import (
    CheckedLaunch,
    Detached,
    PendingLaunch,
    check_launch,
    detach,
    failed_cells,
    is_open,
    submit_pass,
)
from orchestrator.api.planning import Plan, engine_of, hardware_of, planned
from orchestrator.api.reports import write_sweep_reports
from orchestrator.api.state import SweepState, open_view, rows_of, store_url
from orchestrator.compose.axes import grammar
from orchestrator.core.records import Request
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.store.opening import following
from orchestrator.store.table import arrow_table

if TYPE_CHECKING:
    import pandas
    import pyarrow

POLL_S, SUBMIT_POLL_S = 0.2, 2.0
"""Seconds between polls of a launching process, and between passes that submit jobs."""
STOP_S = 600.0
"""Seconds that `stop` waits for the launching process, whose workers first save checkpoints."""


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _in_store(method: _Method) -> _Method:
    """Run a method of an object with a `_url`, with the file modes of that store."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        with following(self._url):
            return method(self, *args, **kwargs)

    return cast("_Method", wrapped)


class CellView:
    """One cell and its state at the time of the look-up.

    Attributes:
        id: such as ``tiny-qwen3.math.en-1a2b3c4d``.
        axes: axis to label.
        config: the resolved config.
        state: of the cell.
        cause: of its failure, one of the causes in docs/design.md; "" if it has not failed.
        reason: for the state, in a few words.
        num_retries: how often stages of the cell were started again.
    """

    def __init__(self, view: SweepState, cell: Cell) -> None:
        status = view.cells[cell.cell]
        self._view, self._cell = view, cell
        self.id, self.axes, self.config = cell.cell, dict(cell.axes), cell.config
        self.state, self.cause, self.reason = status.state, str(status.cause or ""), status.reason
        self.num_retries = sum(max(0, stage.attempts - 1) for stage in status.stages.values())

    def why(self) -> str:
        """Return the evidence for the state as text. Files of products are read and verified."""
        return "\n".join(explanation_lines(explain(self._view, self._cell)))

    def __repr__(self) -> str:
        return f"<{self.id}: {self.state}>"


class Cells(Mapping[str, CellView]):
    """The cells of a sweep by id. The beginning of an id, or a selector, works too if it matches one cell."""

    def __init__(self, view: SweepState, cells: Sequence[Cell]) -> None:
        self._view, self._cells = view, {cell.cell: cell for cell in cells}

    def __getitem__(self, word: str) -> CellView:
        """Return a cell.

        Raises:
            UserError: the word matches no cell, or several.
        """
        return CellView(self._view, self._cells.get(word) or self._view.cell(word))

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __contains__(self, word: object) -> bool:
        return word in self._cells

    def __len__(self) -> int:
        return len(self._cells)


class Status(NamedTuple):
    """The states of a sweep's cells at one moment.

    Attributes:
        counts: state to number of cells; states without cells are left out.
        cells: the cells themselves.
        problems: records in the store that could not be read.
    """

    counts: dict[str, int]
    cells: Cells
    problems: list[str]

    def to_frame(self) -> pandas.DataFrame:
        """Return a table with one row for each cell."""
        import pandas

        return pandas.DataFrame(
            {**c.axes, "cell": c.id, "state": str(c.state), "retries": c.num_retries, "reason": c.reason}
            for c in self.cells.values()
        )


class Run:
    """A launch or rerun at work: in a process of its own, or as jobs of a scheduler.

    Attributes:
        log: file with the output of the launching process; None for jobs.
    """

    def __init__(self, checked: CheckedLaunch, view: SweepState, request: Request) -> None:
        self._view, self._request, self._checked = view, request, checked
        self._url = view.ledger.objects.url
        self._detached: Detached | None = None
        if checked.limits is None:
            self._detached = detach(view, request)
        else:
            self._asked = [PendingLaunch(request, checked.launcher, checked.limits)]
            submit_pass(view, self._asked, notify=lambda line: None)
        self.log = self._detached.log if self._detached else None

    @_in_store
    def status(self) -> Status:
        """Return the current states of this launch's cells."""
        return _status(self._view.fresh(), self._request.cells)

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

    @_in_store
    def stop(self) -> None:
        """Stop the cells of this launch. Running stages save a checkpoint; a later launch continues from it.

        Cells that run as jobs are cancelled as by `Sweep.cancel`: they are not claimed again until the next
        launch or rerun.

        Raises:
            InfrastructureError: the launching process did not end.
        """
        if self._detached is None:
            view = self._view.fresh()
            wanted = self._request.cells
            cancel_cells(view, [c for c in view.sweep.cells if wanted is None or c.cell in wanted])
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

    @_in_store
    def _is_at_work(self) -> bool:
        """Return whether cells may still run; for jobs, submit what was held back as well."""
        if self._detached is not None:
            return self._detached.process.poll() is None
        view = submit_pass(self._view, self._asked, notify=lambda line: None).view
        wanted = self._request.cells
        return any(is_open(view, c) for c in view.sweep.cells if wanted is None or c.cell in wanted)


class Sweep:
    """A sweep: composed from a file, or a revision in a store. Create one with `compose` or `open`."""

    def __init__(self, look_up: Callable[[Sequence[str]], _Found], store: str) -> None:
        self._look_up, self._url = look_up, store
        with following(store):
            self._first = look_up(())

    @classmethod
    def compose(
        cls, source: str | Path, *overrides: str, store: str | Path | None = None, name: str | None = None
    ) -> Sweep:
        """Compose a sweep from its file.

        Args:
            source: a name, or a path to a YAML file; ``NAME@2`` is a sealed revision.
            overrides: in Hydra's grammar, as on the command line: ``"model=a,b"``, ``"lr=1e-4"``.
            store: where its results go; see `Store`.
            name: another name, which keeps this variant apart.

        Raises:
            UserError: the file or an override is wrong.
        """
        url = store_url(None if store is None else str(store))

        def look_up(more: Sequence[str]) -> _Found:
            words = (*overrides, *more)
            view, composition = planned(str(source), [*words, f"store.url={url}"], name)
            return _Found(view, composition, words)

        return cls(look_up, url)

    @classmethod
    def open(cls, reference: str, store: str | Path | None = None) -> Sweep:
        """Open a sweep in a store.

        Args:
            reference: ``smoke`` for the revision that was launched last, or ``smoke@2``.
            store: see `Store`.

        Raises:
            UserError: the store has no such sweep.
        """
        url = store_url(None if store is None else str(store))
        with following(url):
            view = open_view(reference, url)
        if not view.sealed:
            raise UserError(f"{reference} was never launched in {url}", fix=f"Sweep.compose({reference!r})")
        name = f"{view.sweep.name}@{view.number}"

        def look_up(more: Sequence[str]) -> _Found:
            return _Found(open_view(name, url), None, tuple(more))

        return cls(look_up, url)

    @property
    def name(self) -> str:
        """Its name in the store."""
        return self._first.view.sweep.name

    @property
    @_in_store
    def revision(self) -> int:
        """The number of its revision; if it was not launched yet, the number that it would get."""
        return self._look_up(()).view.number

    @_in_store
    def plan(
        self,
        *only: str,
        device: str | None = None,
        mfu: float | None = None,
        max_gpus: int | None = None,
    ) -> Plan:
        """Return what a launch would do with each cell, and what it would cost.

        Args:
            only: selectors of cells, such as ``"model=a state=failed"``.
            device: what cells are assumed to run on, such as ``"h200"``.
            mfu: model FLOPs utilisation, between 0 and 1, in place of the guess by model size.
            max_gpus: most GPUs for one cell.

        Raises:
            UserError: a selector or an option is wrong.
        """
        view, composition, words = self._look_up(())
        settings, import_paths = engine_of(view, composition, () if composition else words)
        hardware = hardware_of(settings.hardware, device=device, mfu=mfu, max_gpus=max_gpus)
        return Plan(
            view, view.select(only), settings, hardware, import_paths, prefetch=f"sweep prefetch {self.name}"
        )

    @_in_store
    def launch(self, *overrides: str, only: str | Sequence[str] = (), **launcher: Any) -> Run:
        """Run all that is not done, and return at once.

        Args:
            overrides: of run settings, such as ``"policy.grace_s=60"``; for a composed sweep of its config
                too.
            only: selectors of the cells to run.
            launcher: ``launcher="slurm"`` names one; any other keyword is a setting of it: ``workers=2``
                is ``launcher.workers=2``.

        Raises:
            UserError: the sweep, its settings or the cluster are wrong; nothing was recorded.
            InfrastructureError: the store or the scheduler does not answer.
        """
        view, composition, words = self._look_up([*overrides, *_launcher_words(launcher)])
        selectors = _selectors(only)
        settings, import_paths = engine_of(view, composition, () if composition else words)
        checked = check_launch(
            "launch",
            view,
            view.select(selectors),
            settings=settings,
            import_paths=import_paths,
            composition=composition,
            overrides=words,
            names_cells=bool(selectors),
            prefetch=f"sweep prefetch {self.name}",
        )
        return _start(checked)

    @_in_store
    def rerun(self, *only: str, overrides: Sequence[str] = (), **launcher: Any) -> Run | None:
        """Run failed or selected cells again, and return at once. Earlier attempts are kept.

        Args:
            only: selectors, such as ``"state=failed"``; without one, all cells that failed, lost their worker
                or are blocked.
            overrides: of run settings, applied to those of the last launch.
            launcher: as for `launch`.

        Returns:
            None if no such cell is left to run.

        Raises:
            UserError: the sweep was never launched, or as for `launch`.
            InfrastructureError: the store or the scheduler does not answer.
        """
        view = self._sealed()
        settings, import_paths = engine_of(view, None, [*overrides, *_launcher_words(launcher)])
        chosen = view.select(only) if only else failed_cells(view)
        cells = [cell for cell in chosen if view.cells[cell.cell].state is not State.DONE]
        if not cells:
            return None
        checked = check_launch("rerun", view, cells, settings=settings, import_paths=import_paths)
        return _start(checked)

    @_in_store
    def cancel(self, *only: str) -> list[str]:
        """Stop cells, and keep them from being claimed until the next launch or rerun of them.

        Args:
            only: selectors; all cells without one.

        Returns:
            The ids of the cells that were cancelled.

        Raises:
            UserError: the sweep was never launched.
        """
        view = self._sealed()
        return [cell.cell for cell in cancel_cells(view, view.select(only)).cells]

    @_in_store
    def status(self, *only: str) -> Status:
        """Return the current states of the cells.

        Args:
            only: selectors; all cells without one.
        """
        view = self._look_up(()).view
        return _status(view, tuple(cell.cell for cell in view.select(only)))

    @property
    @_in_store
    def cells(self) -> Cells:
        """The cells by id, with their current states."""
        view = self._look_up(()).view
        return Cells(view, view.sweep.cells)

    @_in_store
    def rows(self, *only: str) -> pyarrow.Table:
        """Return the result rows of finished stages, one for each row that a stage returned.

        Args:
            only: selectors; all cells without one.

        Returns:
            The columns of ``sweep collect``: cell, axes, sweep, revision, stage, attempts, seconds, code,
                then what
            the stages returned.
        """
        return arrow_table(rows_of(self._look_up(()).view, list(only)))

    @_in_store
    def report(self, *names: str, out: str | Path | None = None, over: Sequence[str] = ()) -> list[Path]:
        """Write the sweep's reports and return their files.

        Args:
            names: of the reports; by default those that the sweep names, else the one that fits its columns.
            out: folder; by default the sweep's report folder in the store.
            over: axes to average over in the general report, in addition to seeds.

        Raises:
            SweepError: a report failed.
        """
        view = self._sealed() if out is None else self._look_up(()).view
        place = None if out is None else Path(out).absolute()
        written, errors = write_sweep_reports(
            view, names or view.sweep.report, place, notify=lambda line: None, over=over
        )
        if errors:
            raise errors[0]
        return [path for files in written for path in files]

    def _sealed(self) -> SweepState:
        """Return the sweep state, or raise if the sweep was never launched."""
        view = self._look_up(()).view
        if not view.sealed:
            raise UserError(f"{self.name} was never launched in {self._url}", fix="sweep.launch()")
        return view

    def __repr__(self) -> str:
        return f"<sweep {self._first.view.title}: {len(self._first.view.sweep.cells)} cells>"


class _Found(NamedTuple):
    """A sweep that was looked up.

    Attributes:
        view: its state.
        composition: what was composed; None for a sealed revision.
        words: the overrides.
    """

    view: SweepState
    composition: Any
    words: Sequence[str]


def _start(checked: CheckedLaunch) -> Run:
    """Seal and record a checked launch, and start it."""
    sealed = checked.seal(lambda line: None)
    return Run(checked, sealed, checked.record(sealed, lambda line: None))


def _status(view: SweepState, wanted: Sequence[str] | None) -> Status:
    """Return the states of the wanted cells; of all cells for None."""
    cells = [cell for cell in view.sweep.cells if wanted is None or cell.cell in set(wanted)]
    counts: dict[str, int] = {}
    for cell in cells:
        state = str(view.cells[cell.cell].state)
        counts[state] = counts.get(state, 0) + 1
    return Status(counts, Cells(view, cells), view.warnings())


def _launcher_words(options: Mapping[str, Any]) -> list[str]:
    """Return keyword arguments as overrides of the launcher."""
    keys = {name: name if name == "launcher" else f"launcher.{name}" for name in options}
    return [f"{keys[name]}={grammar(value)}" for name, value in options.items()]


def _selectors(only: str | Sequence[str]) -> list[str]:
    """Return one or several selectors as a list."""
    return [only] if isinstance(only, str) else list(only)


def _last_line(log: Path) -> str:
    """Return the last line of a log, which holds the error that ended the process."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
