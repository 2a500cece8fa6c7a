"""The tables that `sweep query` offers: their columns, and their rows from the states of sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from orchestrator.api.state import SweepState
from orchestrator.api.status import retries_of
from orchestrator.core.evidence import Attempt, remaining_files
from orchestrator.core.records import Done
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance
from orchestrator.store import layout
from orchestrator.store.table import Rows, flat, typed
from orchestrator.trackers.base import parse_metrics

PREDICTIONS = "predictions.parquet"
"""File of a product that becomes rows of the table `predictions`."""


class Column(NamedTuple):
    """A column of a table: its name, its type in SQL, and its meaning with its unit."""

    name: str
    type: str
    means: str


def _columns(text: str) -> tuple[Column, ...]:
    return tuple(Column(*line.split(maxsplit=2)) for line in text.splitlines() if line.strip())


_WHICH = """
sweep VARCHAR name of the sweep
revision INTEGER its number
cell VARCHAR id of the cell
"""
_STAGE = """
stage VARCHAR such as train, or prepare[en]
digest VARCHAR identity of the stage instance; cells may share it
"""

TABLES: Final[Mapping[str, tuple[Column, ...]]] = {
    "cells": _columns(
        f"""{_WHICH}
state VARCHAR done, running, queued, failed, lost, blocked, released, cancelled, pending or unknown
cause VARCHAR of a failure
reason VARCHAR for the state
attempts INTEGER number of attempts of its stages
retries INTEGER how often its stages were started again
seconds DOUBLE wall time of the last attempts of its stages, in seconds"""
    ),
    "stages": _columns(
        f"""{_WHICH}{_STAGE}
state VARCHAR as in cells
cause VARCHAR of a failure
reason VARCHAR for the state
attempts INTEGER number of attempts
generation INTEGER of the product that counts
seconds DOUBLE wall time of the last attempt, in seconds"""
    ),
    "attempts": _columns(
        f"""{_STAGE}
attempt INTEGER its number, from 1
sweep VARCHAR for which it was claimed
cell VARCHAR for which it was claimed
host VARCHAR machine of the worker
job VARCHAR the scheduler's id
generation INTEGER of the product that it may make
outcome VARCHAR succeeded, failed or released; null without an end
cause VARCHAR of a failure
why VARCHAR of a release
exception VARCHAR class of the exception
message VARCHAR one line
seconds DOUBLE wall time, in seconds
claimed_at TIMESTAMP UTC
ended_at TIMESTAMP UTC
resumed_attempt INTEGER whose checkpoint it began with
resumed_step INTEGER step of that checkpoint
supersedes INTEGER earlier attempt that was lost"""
    ),
    "metrics": _columns(
        f"""{_STAGE}
attempt INTEGER its number
step INTEGER from 1
time_s DOUBLE seconds since the stage began
metric VARCHAR name
value DOUBLE in the unit of the metric; texts are left out"""
    ),
    "results": _columns(
        f"""{_WHICH}
stage VARCHAR that returned the row
attempts INTEGER of the cell
seconds DOUBLE wall time of the stage, in seconds
code VARCHAR version of the code that made the product"""
    ),
    "predictions": _columns(f"{_WHICH}{_STAGE}"),
    "failures": _columns(
        f"""{_WHICH}{_STAGE}
attempt INTEGER that failed last
failure VARCHAR fingerprint, equal for failures that look alike
cause VARCHAR such as oom_gpu
exception VARCHAR class of the exception
message VARCHAR one line
host VARCHAR machine of the worker"""
    ),
    "jobs": _columns(
        """
sweep VARCHAR name of the sweep
revision INTEGER its number
submission INTEGER number of the submission
request INTEGER number of the launch or rerun
index INTEGER of the job in the submission
job VARCHAR the scheduler's name for it
launcher VARCHAR slurm or ray
cluster VARCHAR name or address
phase VARCHAR queued, running, over or unknown
reason VARCHAR for the phase
word VARCHAR the scheduler's word for the end
cause VARCHAR of a bad end
detail VARCHAR about the end
node VARCHAR on which it ran
seconds DOUBLE wall time of its last start, in seconds
cells VARCHAR ids, joined by commas
submitted_at TIMESTAMP UTC
ended_at TIMESTAMP UTC"""
    ),
}
"""Table to its fixed columns. `cells` and `results` have one more for each axis, `results` also the sweep's
`columns` and what the stages returned, and `predictions` those of the files.
"""

ENGINE: Final = frozenset(column.name for column in TABLES["results"])


def axis_columns(sweep: ComposedSweep, taken: Sequence[str] = ()) -> dict[str, str]:
    """Return the axes of a sweep with their columns: ``<axis>_axis`` where a fixed column has the name.

    Args:
        sweep: the sweep.
        taken: fixed columns of the table.
    """
    axes = dict.fromkeys(axis for cell in sweep.cells for axis in cell.axes)
    return {axis: f"{axis}_axis" if axis in taken else axis for axis in axes}


def axis_values(names: Mapping[str, str], cell: Cell) -> dict[str, Any]:
    """Return the columns of a cell's axes with their values, numbers as numbers.

    Args:
        names: from `axis_columns`, which looks at all cells and so is called once.
        cell: the cell.
    """
    return {names[axis]: typed(cell, axis, label) for axis, label in cell.axes.items()}


def cell_rows(view: SweepState) -> Iterator[dict[str, Any]]:
    """Yield the rows of `cells`."""
    names = axis_columns(view.sweep, [column.name for column in TABLES["cells"]])
    for cell in view.sweep.cells:
        status = view.cells[cell.id]
        yield {
            "sweep": view.sweep.name,
            "revision": view.number,
            "cell": cell.id,
            **axis_values(names, cell),
            "state": str(status.state),
            "cause": _text(status.cause),
            "reason": status.reason,
            "attempts": status.attempts,
            "retries": retries_of(status),
            "seconds": sum(stage.seconds or 0.0 for stage in status.stages.values()),
        }


def stage_rows(view: SweepState) -> Iterator[dict[str, Any]]:
    """Yield the rows of `stages`."""
    for cell in view.sweep.cells:
        for digest, status in view.stages_of(cell).items():
            evidence = view.reader.evidence(digest)
            yield {
                **_which(view, cell, view.instances[digest]),
                "state": str(status.state),
                "cause": _text(status.cause),
                "reason": status.reason,
                "attempts": status.attempts,
                "generation": evidence.generation if evidence.done else None,
                "seconds": status.seconds,
            }


def failure_rows(view: SweepState) -> Iterator[dict[str, Any]]:
    """Yield the rows of `failures`."""
    for cell in view.sweep.cells:
        for instance, print_ in view.failures(cell):
            last = view.reader.evidence(instance.digest).attempts[-1]
            yield {
                **_which(view, cell, instance),
                "attempt": last.number,
                "failure": print_.digest,
                "cause": print_.cause,
                "exception": print_.exception,
                "message": last.end.message if last.end else "",
                "host": last.claim.owner.host if last.claim else "",
            }


def attempt_rows(attempts: Mapping[str, tuple[StageInstance, Sequence[Attempt]]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of `attempts`.

    Args:
        attempts: digest to a stage instance and its attempts.
    """
    for instance, each in attempts.values():
        for attempt in each:
            claim, end, start = attempt.claim, attempt.end, attempt.start
            parent = start.parent if start else None
            yield {
                "stage": instance.name,
                "digest": instance.digest,
                "attempt": attempt.number,
                "sweep": claim.sweep if claim else None,
                "cell": claim.cell if claim else None,
                "host": claim.owner.host if claim else None,
                "job": claim.owner.job if claim else None,
                "generation": claim.generation if claim else None,
                "outcome": end.outcome if end else None,
                "cause": _text(end.cause) if end else None,
                "why": end.why if end else None,
                "exception": end.exception if end else None,
                "message": end.message if end else None,
                "seconds": end.seconds if end else None,
                "claimed_at": _time(claim.at) if claim else None,
                "ended_at": _time(end.at) if end else None,
                "resumed_attempt": parent.attempt if parent else None,
                "resumed_step": parent.step if parent else None,
                "supersedes": claim.supersedes.attempt if claim and claim.supersedes else None,
            }


def metric_rows(instance: StageInstance, number: int, data: bytes) -> Rows:
    """Return the rows of `metrics` of one attempt.

    Args:
        instance: the stage instance.
        number: of the attempt.
        data: its metrics file.
    """
    rows = []
    for line in parse_metrics(data.decode(errors="replace")):
        named = {"stage": instance.name, "digest": instance.digest, "attempt": number}
        named |= {"step": line.get("step"), "time_s": _number(line.get("time_s"))}
        for metric, value in line.items():
            if metric not in ("step", "time_s") and _number(value) is not None:
                rows.append({**named, "metric": metric, "value": float(value)})
    return rows


def job_rows(view: SweepState) -> Iterator[dict[str, Any]]:
    """Yield the rows of `jobs`."""
    for filed in view.jobs.filed:
        submission = filed.submission
        for index, cells in enumerate(submission.tasks):
            found, over = view.jobs.job(filed, index), filed.over.get(index)
            over = over or found.over
            yield {
                "sweep": view.sweep.name,
                "revision": submission.revision,
                "submission": submission.number,
                "request": submission.request,
                "index": index,
                "job": found.name,
                "launcher": submission.launcher,
                "cluster": submission.cluster,
                "phase": str(found.phase),
                "reason": found.reason,
                "word": over.word if over else None,
                "cause": _text(over.cause) if over else None,
                "detail": over.detail if over else None,
                "node": over.node if over else None,
                "seconds": over.seconds if over else None,
                "cells": ",".join(cells),
                "submitted_at": _time(submission.at),
                "ended_at": _time(filed.closed_at.get(index, "")),
            }


def products(view: SweepState) -> Iterator[tuple[Cell, StageInstance, Done]]:
    """Yield each product that counts, once for each cell that it belongs to."""
    for cell in view.sweep.cells:
        for digest in cell.stage_digests:
            done = view.reader.evidence(digest).done
            if done is not None:
                yield cell, view.sweep.stages[digest], done


def result_rows(
    view: SweepState, names: Mapping[str, str], cell: Cell, instance: StageInstance, done: Done
) -> Callable[[], Rows]:
    """Return a function that returns the rows of `results` of a product, but for `attempts`, which changes.

    A value under the name of an axis, or of a column of the engine, gets the suffix ``_row``. One under the
    name of one of the sweep's `columns` replaces the configured value, as in `sweep collect`.

    Args:
        view: the sweep state.
        names: axis to column.
        cell: to which the product belongs.
        instance: the stage instance.
        done: its product.
    """

    def make() -> Rows:
        axes = axis_values(names, cell)
        columns = {name: flat(value) for name, value in cell.columns.items() if name not in ENGINE}
        engine = {
            "sweep": view.sweep.name,
            "revision": view.number,
            "stage": instance.name,
            "seconds": done.seconds,
            "code": done.code,
        }
        rows = []
        for returned in done.rows:
            row = {"cell": cell.id, **columns, **axes, **engine}
            for name, value in returned.items():
                if name in ENGINE or name in axes:
                    name = f"{name}_row"
                    while name in returned:
                        name = f"{name}_row"
                row[name] = value
            rows.append(row)
        return rows

    return make


def prediction_files(view: SweepState) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the files of predictions on this machine, once for each cell, with its columns.

    Those in a bucket are downloaded to the cache.
    """
    for cell, instance, done in products(view):
        files = remaining_files(done.files, view.reader.evidence(instance.digest).retired)
        mine = [file for file in files if file.path.rpartition("/")[2] == PREDICTIONS]
        if mine:
            folder = view.ledger.objects.fetch(layout.output(instance, done.attempt), mine, content=False)
            yield from ((_which(view, cell, instance), str(folder / file.path)) for file in mine)


def _which(view: SweepState, cell: Cell, instance: StageInstance) -> dict[str, Any]:
    return {
        "sweep": view.sweep.name,
        "revision": view.number,
        "cell": cell.id,
        "stage": instance.name,
        "digest": instance.digest,
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _time(at: str) -> datetime | None:
    """Return a record's time in UTC, without a zone; None if it cannot be read."""
    try:
        return datetime.fromisoformat(at).astimezone(UTC).replace(tzinfo=None)
    except ValueError:
        return None
