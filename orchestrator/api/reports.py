"""The reports of a sweep or of a table: which are written, from which rows, and where."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

from orchestrator.api.report_facts import about, curves
from orchestrator.api.state import Notify, SweepState
from orchestrator.compose.declarations import importable
from orchestrator.errors import InfrastructureError, SweepError, UserError
from orchestrator.registry import FITTING, REPORTS, load, lookup
from orchestrator.reporting import About, Offers, call, wants_facts
from orchestrator.store import layout
from orchestrator.store.opening import as_usual
from orchestrator.store.table import Rows, collect_rows

GENERAL = "general"
"""The report used when no other report fits."""


NUMBERS = "report.json"
"""File of a report that holds its numbers."""


def fitting_report(rows: Rows, facts: About | None, table: Path | None = None) -> str:
    """Return the first report that fits the columns of the rows, else the general one.

    Args:
        rows: result rows.
        facts: about the sweep; None for a table.
        table: the table's file, for the error.

    Raises:
        UserError: no report can read the table.
    """
    for name, fits in FITTING.items():
        if load(fits)(rows, about=facts):
            return name
    if table is not None and not any("cell" in row for row in rows):
        raise UserError(
            f"no report fits the columns of {table}",
            allowed="a table as `collect` writes it, or one with the columns of the study",
            fix="--report study names what that one needs",
        )
    # The rows of every sweep fit the general report.
    return GENERAL


def write_sweep_reports(
    view: SweepState,
    names: Sequence[str],
    place: Path | None,
    *,
    notify: Notify,
    over: Sequence[str] = (),
) -> tuple[list[list[Path]], list[SweepError]]:
    """Write reports of a sweep, and return their files and the errors of those that failed.

    A report that fails does not stop the others.

    Args:
        view: the revision.
        names: of the reports; if empty, the one that fits the columns is written.
        place: folder to write to; None for the sweep's report folder in the store.
        notify: called with lines about reports that were not written.
        over: axes to average over in the general report, in addition to seeds.

    Returns:
        The files of each report, and the errors.
    """
    rows = collect_rows(view.sweep, view.number, view.sweep.cells, view.cells, view.snapshot)
    facts = about(view)
    names = names or (fitting_report(rows, facts),)
    offers = {"about": lambda: facts, "curves": lambda: curves(view), "over": lambda: tuple(over)}
    folder = place or view.ledger.objects.workspace(layout.report(view.sweep.name))
    written: list[list[Path]] = []
    errors: list[SweepError] = []
    for name in names:
        try:
            outside = contextlib.nullcontext() if place is None else as_usual()
            with importable(_import_paths(view)), outside:
                written.append(write_report(name, rows, folder, offers, where=view.title, notify=notify))
        except SweepError as error:
            errors.append(error)
        except Exception as error:  # noqa: BLE001 - reports may be the user's own
            if not isinstance(error, OSError):
                notify(traceback.format_exc().rstrip())
            said = f"the report {name} failed: {type(error).__name__}: {error}"
            errors.append(InfrastructureError(said))
    if place is None:
        view.ledger.objects.upload(layout.report(view.sweep.name))
    return written, errors


def write_report(
    name: str, rows: Rows, folder: Path, offers: Offers, *, where: str, notify: Notify
) -> list[Path]:
    """Write one report and return its files; none if it needs rows and there are none.

    Args:
        name: of the report.
        rows: result rows.
        folder: to write to.
        offers: further arguments that the report may take, computed on demand.
        where: what the rows belong to, for messages.
        notify: called with a line if nothing is written.

    Raises:
        UserError: there is no such report, or it cannot read these rows.
    """
    report = lookup(REPORTS, name, kind="report")
    if not rows and not wants_facts(report):
        notify(f"{where}: no rows yet, so nothing for the report {name}")
        return []
    folder.mkdir(parents=True, exist_ok=True)
    return call(report, rows, folder, offers)


def _import_paths(view: SweepState) -> Sequence[str]:
    """Return the folders of the last launch's stages, from which a user's own report is imported."""
    return next((request.import_paths for request in reversed(view.requests) if request.import_paths), ())


def check_folder(folder: Path | None) -> None:
    """Raise if a folder cannot be created or written, before anything is computed.

    Raises:
        UserError: a file is in the way.
        InfrastructureError: the folder cannot be written.
    """
    if folder is None:
        return
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"{nearest} is no folder", where=f"--out {folder}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InfrastructureError(f"{nearest} cannot be written", where=f"--out {folder}")
