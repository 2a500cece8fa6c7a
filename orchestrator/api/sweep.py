"""A sweep as a value, for programs and notebooks: everything that the command does. Nothing here prints.

Each call reads the store again, so it may be used while workers run. A launch runs in a process of its own;
it goes on after the program that started it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.api.launching import CheckedLaunch, composed_or_sealed, failed_cells, run_settings_of
from orchestrator.api.planning import Plan, hardware_of
from orchestrator.api.query import query_of
from orchestrator.api.reports import write_sweep_reports
from orchestrator.api.rows import ResultRows
from orchestrator.api.run import Run, cancel_cells, in_store, start
from orchestrator.api.state import SweepState, open_view
from orchestrator.api.status import Cells, Status, rows_of, status_of
from orchestrator.compose.axes import grammar
from orchestrator.core.state import State
from orchestrator.errors import UserError
from orchestrator.store.ledger import open_ledger
from orchestrator.store.opening import following, store_url

if TYPE_CHECKING:
    import pyarrow


class Sweep:
    """A sweep: composed from a file, or a revision in a store. Create one with `compose` or `open`.

    Relative paths, of its file or in overrides, are relative to the working folder in which it was created.
    """

    def __init__(self, look_up: Callable[[Sequence[str]], _Found], store: str) -> None:
        self._look_up, self._url = look_up, store
        with following(store):
            self._folder = Path.cwd()
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
        url = _url_of(store)
        file = _path_of(source, like="a name, or a path to a YAML file")

        def look_up(more: Sequence[str]) -> _Found:
            words = _texts((*overrides, *more))
            view, composition = composed_or_sealed(file, [*words, f"store.url={url}"], name)
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
        url = _url_of(store)
        with following(url):
            view = open_view(_path_of(reference, like="the name of a sweep"), url)
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
    @in_store
    def revision(self) -> int:
        """The number of its revision; if it was not launched yet, the number that it would get."""
        return self._look_up(()).view.number

    @in_store
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
        settings, import_paths = run_settings_of(view, composition, () if composition else words)
        hardware = hardware_of(settings.hardware, device=device, mfu=mfu, max_gpus=max_gpus)
        return Plan(
            view,
            view.select(_texts(only)),
            settings,
            hardware,
            import_paths,
            prefetch=f"sweep prefetch {self.name}",
        )

    @in_store
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
        selectors = _several(only)
        settings, import_paths = run_settings_of(view, composition, () if composition else words)
        checked = CheckedLaunch(
            verb="launch",
            view=view,
            cells=view.select(selectors),
            settings=settings,
            import_paths=import_paths,
            composition=composition,
            overrides=words,
            names_cells=bool(selectors),
            prefetch=f"sweep prefetch {self.name}",
        )
        return start(checked)

    @in_store
    def rerun(self, *only: str, overrides: str | Sequence[str] = (), **launcher: Any) -> Run | None:
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
        settings, import_paths = run_settings_of(
            view, None, [*_several(overrides), *_launcher_words(launcher)]
        )
        chosen = view.select(_texts(only)) if only else failed_cells(view)
        cells = [cell for cell in chosen if view.cells[cell.id].state is not State.DONE]
        if not cells:
            return None
        checked = CheckedLaunch(
            verb="rerun", view=view, cells=cells, settings=settings, import_paths=import_paths
        )
        return start(checked)

    @in_store
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
        return [cell.id for cell in cancel_cells(view, view.select(_texts(only))).cells]

    @in_store
    def status(self, *only: str) -> Status:
        """Return the current states of the cells.

        Args:
            only: selectors; all cells without one.
        """
        view = self._look_up(()).view
        return status_of(view, tuple(cell.id for cell in view.select(_texts(only))))

    @property
    @in_store
    def cells(self) -> Cells:
        """The cells by id, with their current states."""
        view = self._look_up(()).view
        return Cells(view, view.sweep.cells)

    @in_store
    def rows(self, *only: str) -> ResultRows:
        """Return the result rows of finished stages, one for each row that a stage returned.

        Args:
            only: selectors; all cells without one.

        Returns:
            The columns of ``sweep collect``: cell, axes, sweep, revision, stage, attempts, seconds, code,
            then what the stages returned. It is used as an Arrow table; ``to_xarray`` makes arrays.
        """
        view = self._look_up(()).view
        view.check_decisions()
        return ResultRows(rows_of(view, list(_texts(only))), view.select(only))

    def report(
        self, *names: str, out: str | Path | None = None, over: str | Sequence[str] = ()
    ) -> list[Path]:
        """Write the sweep's reports and return their files.

        Args:
            names: of the reports; by default those that the sweep names, else the one that fits its columns.
            out: folder; by default the sweep's report folder in the store.
            over: axes to average over in the general report, in addition to seeds.

        Raises:
            SweepError: a report failed.
        """
        # The caller's path, so it is relative to the caller's folder.
        return self._report(names, None if out is None else Path(out).absolute(), _several(over))

    @in_store
    def _report(self, names: Sequence[str], place: Path | None, over: Sequence[str]) -> list[Path]:
        view = self._sealed() if place is None else self._look_up(()).view
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
        # A composed sweep changes with its file, and with each launch.
        first = self._first
        return f"<sweep {first.view.title if first.composition is None else f'{self.name} in {self._url}'}>"


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


def _launcher_words(options: Mapping[str, Any]) -> list[str]:
    """Return keyword arguments as overrides of the launcher."""
    keys = {name: name if name == "launcher" else f"launcher.{name}" for name in options}
    return [f"{keys[name]}={grammar(value)}" for name, value in options.items()]


def _several(texts: str | Sequence[str]) -> list[str]:
    """Return one text or several as a list."""
    return [texts] if isinstance(texts, str) else list(_texts(texts))


def _texts(words: Sequence[str]) -> Sequence[str]:
    """Return overrides or selectors, or raise `UserError` if one is no text, such as a list of them."""
    for word in words:
        if not isinstance(word, str):
            raise UserError(f"{word!r} is no text", allowed='"KEY=VALUE", each an argument of its own')
    return words


def _path_of(place: str | Path, *, like: str) -> str:
    """Return a path or a name as text, or raise `UserError` if it is neither."""
    if not isinstance(place, str | Path):
        raise UserError(f"{place!r} is of type {type(place).__name__}", allowed=like)
    return str(place)


def _url_of(store: str | Path | None) -> str:
    """Return the URL of a store that a caller names; None stands for SWEEP_STORE, or the folder ``runs``."""
    return store_url(None if store is None else _path_of(store, like="a store is a path or a URL"))


class Store:
    """A store of sweeps: a folder or a bucket.

    Args:
        url: a path, ``s3://...`` or ``gs://...``. Without it, SWEEP_STORE is used, else the folder ``runs``.

    Raises:
        UserError: the place exists and is not a store.
        InfrastructureError: the store does not answer.
    """

    def __init__(self, url: str | Path | None = None) -> None:
        place = _url_of(url)
        with following(place):
            self._ledger = open_ledger(place)

    @property
    def url(self) -> str:
        """Where the store is: an absolute path, or the URL of a bucket."""
        return self._ledger.objects.url

    def sweeps(self) -> list[str]:
        """Return the names of the sweeps that were launched here, sorted."""
        return sorted(self._ledger.sweeps())

    def open(self, sweep: str) -> Sweep:
        """Return a sweep of the store.

        Args:
            sweep: ``smoke`` for the revision that was launched last, or ``smoke@2`` for revision 2.

        Raises:
            UserError: the store has no such sweep.
        """
        return Sweep.open(sweep, store=self.url)

    def query(self, sql: str, sweeps: str | Sequence[str] = ()) -> pyarrow.Table:
        """Run SQL over the cells, stages, attempts, metrics, results, predictions, failures and jobs.

        Args:
            sql: one SELECT in DuckDB's dialect; ``sweep help query`` lists the tables and their columns.
            sweeps: names, each with ``@k`` for a revision or ``@*`` for all; by default every sweep, at the
                revision that was launched last.

        Returns:
            An Arrow table.

        Raises:
            UserError: the SQL is wrong, a sweep is not here, or DuckDB is not installed.
        """
        with following(self.url):
            return query_of(self._ledger, sql, _several(sweeps))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"
