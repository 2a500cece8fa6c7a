"""The reports of a sweep or of a table: which ones, from which rows, and where they are written."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from orchestrator.api.report_facts import about, curves
from orchestrator.api.state import Notify, SweepState
from orchestrator.errors import InfrastructureError, SweepError, UserError
from orchestrator.registry import FITTING, REPORTS, load, lookup
from orchestrator.reporting import About, Offers, call, wants_facts
from orchestrator.store import layout
from orchestrator.store.opening import as_usual
from orchestrator.store.table import Rows, collect_rows

GENERAL = "general"
"""The report of what no other report fits."""


NUMBERS = "report.json"


def fitting_report(rows: Rows, facts: About | None, table: Path | None = None) -> str:
    """Return the first report whose columns are there, the general one where none fits."""
    for name, fits in FITTING.items():
        if load(fits)(rows, about=facts):
            return name
    if table is not None and not any("cell" in row for row in rows):
        raise UserError(
            f"no report fits the columns of {table}",
            allowed="a table as `collect` writes it, or one with the columns of the study",
            fix="--report study names what that one needs",
        )
    return GENERAL


def write_sweep_reports(
    view: SweepState,
    names: Sequence[str],
    place: Path | None,
    *,
    notify: Notify,
    over: Sequence[str] = (),
) -> tuple[list[list[Path]], list[SweepError]]:
    """Write some reports of a sweep, else the one that fits; return their files, and the errors of others."""
    rows = collect_rows(view.sweep, view.number, view.sweep.cells, view.cells, view.snapshot)
    facts = about(view)
    names = names or (fitting_report(rows, facts),)
    offers = {"about": lambda: facts, "curves": lambda: curves(view), "over": lambda: tuple(over)}
    folder = place or view.ledger.objects.workspace(layout.report(view.sweep.name))
    _make_importable(view)
    written: list[list[Path]] = []
    errors: list[SweepError] = []
    for name in names:
        try:
            with contextlib.nullcontext() if place is None else as_usual():
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
    """Write one report and return its files; none where it needs rows and there are none.

    Raises:
        UserError: there is no such report, or it cannot read these rows.
    """
    report = lookup(REPORTS, name, kind="report")
    if not rows and not wants_facts(report):
        notify(f"{where}: no rows yet, so nothing for the report {name}")
        return []
    return call(report, rows, folder, offers)


def _make_importable(view: SweepState) -> None:
    """Lets a report of the user's own be found where the last launch found the stages."""
    folders = next((request.import_paths for request in reversed(view.requests) if request.import_paths), ())
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]


def check_folder(folder: Path | None) -> None:
    """Refuses what can be no folder before anything is computed, rather than after.

    Raises:
        UserError: a file is in the way.
        InfrastructureError: nothing can be written there.
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
