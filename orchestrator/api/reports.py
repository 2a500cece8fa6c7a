"""The reports of a sweep or of a table: which are written, where, and the facts that they receive."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator import provenance
from orchestrator.api.spent import held_facts
from orchestrator.api.state import Notify, SweepState
from orchestrator.core.records import Request, StartRecord
from orchestrator.core.state import State
from orchestrator.core.sweep import StageInstance
from orchestrator.core.tree import changed_keys
from orchestrator.errors import InfrastructureError, SweepError, UserError
from orchestrator.registry import FITTING, GENERAL, GRID, REPORTS, importable, load, lookup
from orchestrator.reporting import (
    About,
    AttemptFacts,
    CellFacts,
    Curve,
    LaunchFacts,
    Offers,
    RetryFacts,
    call,
    wants_facts,
)
from orchestrator.results import evenly
from orchestrator.store import layout
from orchestrator.store.opening import as_usual
from orchestrator.store.table import Rows, collect_rows
from orchestrator.trackers.base import history


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
    """
    # What a stopped cell returned is of a shorter run than that of the cells that went on.
    compared = [cell for cell in view.sweep.cells if view.cells[cell.id].state is not State.STOPPED]
    rows = collect_rows(view.sweep, view.number, compared, view.cells, view.reader)
    facts = about(view)
    names = names or (fitting_report(rows, facts),)
    offers = {"about": lambda: facts, "curves": lambda: curves(view), "over": lambda: tuple(over)}
    offers["grid"] = lambda: load(GRID)(view)
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
            problem = f"the report {name} failed: {type(error).__name__}: {error}"
            errors.append(InfrastructureError(problem))
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
        UserError: there is no such report, it cannot read these rows, or it returns no list of its files.
    """
    report = lookup(REPORTS, name, kind="report")
    if not rows and not wants_facts(report):
        notify(f"{where}: no rows yet, so nothing for the report {name}")
        return []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output has the names of the files, or JSON
            written = call(report, rows, folder, offers)
    except SystemExit as end:
        raise UserError(f"the report {name} exits with {end.code!r}", allowed="it returns its files") from end
    if not isinstance(written, list | tuple) or not all(Path(path).exists() for path in written):
        raise UserError(
            f"the report {name} returned {written!r}", allowed="a list of the files that it wrote"
        )
    return [Path(path) for path in written]


def _import_paths(view: SweepState) -> Sequence[str]:
    """Return the folders of the last launch's stages, from which a user's own report is imported."""
    return next((request.import_paths for request in reversed(view.requests) if request.import_paths), ())


def check_folder(folder: Path | None) -> None:
    """Raise if a folder cannot be created or written, before anything is computed.

    Raises:
        UserError: a file is in the way, or the folder cannot be written.
    """
    if folder is None:
        return
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"{nearest} is no folder", where=f"--out {folder}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{nearest} cannot be written", where=str(folder), fix="--out DIR")


MAX_POINTS = 200
"""Points of one curve. A figure as wide as a page cannot show more."""

_NO_METRIC = frozenset({"step", "time_s"})
"""Fields of a line of metrics that are not metrics."""


def _cells_by_stage(view: SweepState) -> dict[str, list[str]]:
    """Return, by digest of a stage instance, the cells that share it."""
    sharing: dict[str, list[str]] = {}
    for cell in view.sweep.cells:
        for digest in cell.stage_digests:
            sharing.setdefault(digest, []).append(cell.id)
    return sharing


def curves(view: SweepState) -> tuple[Curve, ...]:
    """Return the metrics that the stage instances of a revision logged, each shared instance once."""
    found = []
    for digest, cells in _cells_by_stage(view).items():
        done = view.reader.evidence(digest).done
        # The attempt that made the product, else the last one: its history holds what it resumed from.
        number = done.attempt if done is not None else view.stages[digest].attempts
        if not number:
            continue
        instance = view.sweep.stages[digest]
        points = _points(history(view.ledger, instance, number))
        if points:
            found.append(Curve(stage=instance.name, cells=tuple(cells), points=points))
    return tuple(found)


def _points(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return metric to its points (step, value), evenly thinned to `MAX_POINTS`."""
    found: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(lines, start=1):
        step = line.get("step", number)  # a command may log no step; lines are counted instead
        for name, value in line.items():
            if name not in _NO_METRIC and isinstance(value, bool | int | float) and math.isfinite(value):
                found.setdefault(name, []).append((step, float(value)))
    return {name: tuple(evenly(sorted(points), MAX_POINTS)) for name, points in found.items()}


PACKAGES = ("accelerate", "numpy", "polysweep", "scipy", "statsmodels", "torch", "transformers", "vllm")
"""Packages whose versions a report shows. The record of a launch holds those of all packages."""


def about(view: SweepState) -> About:
    """Return the facts about a revision.

    Attempts are read only for stages that took more than one, because each read costs requests in a bucket.
    """
    retries = tuple(
        _retry(view, view.sweep.stages[digest], tuple(cells))
        for digest, cells in _cells_by_stage(view).items()
        if view.stages[digest].attempts > 1
    )
    requests = [request for request in view.requests if request.verb in ("launch", "rerun")]
    return About(
        sweep=view.sweep.name,
        revision=view.number,
        sealed=view.sealed,
        description=view.sweep.description,
        stages=tuple(view.sweep.specs),
        cells=tuple(_cells(view)),
        retries=retries,
        launches=tuple(_launch(request) for request in requests if request.revision == view.number),
        hosts=tuple(sorted(_hosts(view))),
        held=held_facts(view) if view.sealed else (),
        made_at=provenance.now(),
        notes=tuple(view.problems),
    )


def _cells(view: SweepState) -> Iterator[CellFacts]:
    """Yield the facts about each cell."""
    for cell in view.sweep.cells:
        status = view.cells[cell.id]
        yield CellFacts(
            cell=cell.id,
            axes=cell.axes,
            columns=cell.columns,
            config=cell.config,
            state=str(status.state),
            cause=str(status.cause or ""),
            reason=status.reason,
            num_attempts=status.attempts,
        )


def _retry(view: SweepState, instance: StageInstance, cells: tuple[str, ...]) -> RetryFacts:
    """Return the facts about a stage that took more than one attempt."""
    attempts = view.attempts(instance)
    # A lost attempt cannot record its own end. The attempt that replaced it records the evidence in its
    # claim.
    superseded = {
        later.claim.supersedes.attempt: later.claim.supersedes
        for later in attempts
        if later.claim is not None and later.claim.supersedes is not None
    }
    facts, before = [], None
    for attempt in attempts:
        lost = superseded.get(attempt.number)
        outcome, why, message = "open", "", attempt.problem
        if attempt.end is not None:
            outcome, message = attempt.end.outcome, attempt.end.message
            why = str(attempt.end.cause or attempt.end.why)
        elif lost is not None:
            outcome, why, message = "lost", str(lost.cause), lost.evidence
        changed = _changed(before, attempt.start)
        facts.append(
            AttemptFacts(number=attempt.number, outcome=outcome, why=why, message=message, changed=changed)
        )
        before = attempt.start or before
    return RetryFacts(stage=instance.name, cells=cells, attempts=tuple(facts))


def _changed(before: StartRecord | None, now: StartRecord | None) -> dict[str, tuple[Any, Any]]:
    """Return the settings that changed since the attempt before, as a remedy for its failure."""
    if before is None or now is None:
        return {}
    found = changed_keys(before.uses, now.uses)
    return {key: (_plain(old), _plain(new)) for key, (old, new) in found.items()}


def _plain(value: Any) -> Any:
    """Return a value that a report can show; None for any other."""
    return value if isinstance(value, str | int | float | bool | list | None) else None


def _hosts(view: SweepState) -> set[str]:
    """Return the machines that made the products."""
    hosts, keys = set(), []
    for digest, status in view.stages.items():
        done = view.reader.evidence(digest).done
        if status.state is State.DONE and done is not None:
            instance = view.instances[digest]
            keys.append(layout.attempt(instance, done.attempt, layout.START))
    # One bulk read instead of one request for each stage.
    ledger = view.ledger.having_read(keys)
    for key in keys:
        start, _ = ledger.read(key, StartRecord)
        if start is not None and (host := start.provenance.get("host")):
            hosts.add(str(host))
    return hosts


def _launch(request: Request) -> LaunchFacts:
    """Return the facts about a launch or rerun."""
    known = request.provenance
    git, packages = known.get("git") or {}, known.get("packages") or {}
    commit = str(git.get("commit", ""))[:12] + ("+" if git.get("dirty") else "")
    return LaunchFacts(
        number=request.number,
        verb=request.verb,
        command=str(known.get("command", "")),
        by=request.by,
        at=request.at,
        code=" ".join(filter(None, (commit, str(known.get("polysweep", ""))))),
        packages={name: str(packages[name]) for name in PACKAGES if name in packages},
        python=str(known.get("python", "")),
    )
