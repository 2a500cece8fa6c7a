"""How fast a sweep goes: the GPUs of its workers, tokens a second, and when it will be done."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from orchestrator.api.logs import end_of, is_number
from orchestrator.api.state import SweepState
from orchestrator.core.schedule import PlannedStage, lower_bound_hours
from orchestrator.core.state import FINAL, State
from orchestrator.core.sweep import Cell
from orchestrator.jobs.judgement import Phase
from orchestrator.jobs.records import WorkerRecord
from orchestrator.jobs.submissions import WorkerRecords
from orchestrator.provenance import is_gone
from orchestrator.store import layout
from orchestrator.trackers.base import parse_metrics

TAIL_BYTES = 4096
"""Bytes of a metrics file's end in which the newest speed is looked for."""

SPEEDS = ("tokens_per_second", "tokens_per_s")
"""Metrics that are a speed in tokens a second."""

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs of a sweep's workers.

    Attributes:
        in_use: held by workers that run a stage now.
        held: held by workers that live, whether they run a stage or wait.
        asked: `held`, and those of jobs that wait in a queue.
        hours: GPU-hours that all workers have held so far, in all revisions; see ``sweep status --spent``.
        num_workers: workers that live.
    """

    in_use: float = 0.0
    held: float = 0.0
    asked: float = 0.0
    hours: float = 0.0
    num_workers: int = 0


def gpus_of(view: SweepState, workers: WorkerRecords, running: Sequence[str]) -> Gpus:
    """Return the GPUs of a sweep's workers.

    Args:
        view: the sweep state.
        workers: reads their records.
        running: digests of the stages that run now.
    """
    records = workers.read()
    at_work = {layout.payload(view.instances[d], view.stages[d].attempts) for d in running}
    alive = [record for record in records if record.runs in at_work or _lives(view, record)]
    held = sum(record.num_gpus for record in alive)
    waiting = sum(
        filed.submission.resources.num_nodes * filed.submission.resources.gpus_per_node
        for filed in view.jobs.filed
        for index in filed.open_tasks
        if view.jobs.job(filed, index).phase is Phase.QUEUED
    )
    return Gpus(
        in_use=sum(record.num_gpus for record in alive if record.runs in at_work),
        held=held,
        asked=held + waiting,
        hours=sum(record.num_gpus * record.seconds for record in records) / HOUR_S,
        num_workers=len(alive),
    )


def _lives(view: SweepState, record: WorkerRecord) -> bool:
    """Return whether a worker between two stages seems to live, from what one look can show."""
    if record.has_ended or record.runs or is_gone(record.owner.process) is True:
        return False
    return view.jobs.fate(record.owner) is None


def speed_of(view: SweepState, running: Sequence[str]) -> float | None:
    """Return the sum of the last speeds that running stages logged, in tokens a second; None without any.

    In a bucket nothing is read: each stage would cost requests at each look.

    Args:
        view: the sweep state.
        running: digests of the stages that run now.
    """
    objects, speeds = view.ledger.objects, []
    for digest in running if objects.shared_folder("") else ():
        key = layout.metrics(view.instances[digest], view.stages[digest].attempts)
        end, _ = end_of(objects, key, TAIL_BYTES)
        found = [row[name] for row in parse_metrics(end) for name in SPEEDS if is_number(row.get(name))]
        speeds += [float(speed) for speed in found if 0 < speed < math.inf][-1:]
    return sum(speeds) if speeds else None


def eta_s(
    view: SweepState, cells: Sequence[Cell], alike: Sequence[str], running: Sequence[str]
) -> float | None:
    """Return the seconds until no cell has anything left to do, if as many stages run as now.

    It is the larger of two bounds: the longest chain of stages, and all that is left divided by the stages
    that run now. A stage takes as long as the median of the finished ones of its name, those in the same
    column of the grid first; a running one goes on at its own speed.

    Args:
        view: the sweep state.
        cells: whose end is wanted.
        alike: axes; cells that agree on them take about as long as each other.
        running: digests of the stages that run now.

    Returns:
        None where nothing runs, and where no stage of some name has been measured yet.
    """
    open_cells = [cell for cell in cells if view.cells[cell.id].state not in FINAL | {State.UNKNOWN}]
    if not open_cells:
        return 0.0
    if not running:
        return None
    left = {digest: _pace(view, digest) for digest in running}
    known = _measured(view, alike, left)
    work: dict[str, PlannedStage] = {}
    for cell in open_cells:
        column = tuple(cell.axes.get(axis, "") for axis in alike)
        for digest in view.chain(cell):
            status, stage = view.stages[digest], view.instances[digest].stage
            if digest in work or status.state is State.DONE:
                continue
            seconds = known.get((stage, column), known.get((stage, None)))
            if (pace := left.get(digest)) is not None:
                seconds = pace[1]
            if seconds is None:
                return None
            inputs = tuple(taken.digest for taken in view.instances[digest].inputs)
            work[digest] = PlannedStage(seconds / HOUR_S, 1, inputs)
    return lower_bound_hours(work, len(running)) * HOUR_S


def duration(seconds: float) -> str:
    """Return a duration in at most two units, such as ``2 h 10 min``."""
    whole = round(max(0.0, seconds))
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"
    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"


def _measured(
    view: SweepState, alike: Sequence[str], left: Mapping[str, tuple[float, float] | None]
) -> dict[tuple[str, tuple[str, ...] | None], float]:
    """Return the median seconds of a stage by its name and column, and by its name alone (None)."""
    found: dict[tuple[str, tuple[str, ...] | None], dict[str, float]] = defaultdict(dict)
    guessed: dict[tuple[str, tuple[str, ...] | None], dict[str, float]] = defaultdict(dict)
    for cell in view.sweep.cells:
        column = tuple(cell.axes.get(axis, "") for axis in alike)
        for digest in cell.stage_digests:
            status, stage, pace = view.stages[digest], view.instances[digest].stage, left.get(digest)
            if status.state is State.DONE and status.seconds is not None:
                found[stage, column][digest] = found[stage, None][digest] = status.seconds
            elif pace is not None:
                guessed[stage, column][digest] = guessed[stage, None][digest] = pace[0]
    # As long as none of a kind is done, the running ones show how long it takes.
    return {key: statistics.median(each.values()) for key, each in (guessed | found).items()}


def _pace(view: SweepState, digest: str) -> tuple[float, float] | None:
    """Return how long a running stage takes in all, and the seconds that are left; None if unknown."""
    last = view.reader.evidence(digest).attempts[-1]
    beat, claim = last.heartbeat, last.claim
    if beat is None or claim is None or beat.step is None or not beat.num_steps:
        return None
    first = last.start.parent.step if last.start is not None and last.start.parent is not None else 0
    seconds = beat.spent.seconds if beat.spent is not None else _between_s(claim.at, beat.at)
    if beat.step <= first or seconds <= 0:
        return None
    each = seconds / (beat.step - first)
    return each * beat.num_steps, each * max(0, beat.num_steps - beat.step)


def _between_s(since: str, until: str) -> float:
    """Return the seconds between two times of one writer, 0 if they cannot be read."""
    try:
        return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()
    except ValueError:
        return 0.0
