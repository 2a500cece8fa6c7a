"""Which log and which metrics of a cell a person most likely wants, and the ends of logs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orchestrator.api.state import SweepState
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.errors import SEQUENCE, UserError, escaped, nearest
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import ObjectStore
from orchestrator.trackers.base import history, parse_metrics

MAX_TAIL = 2**22
"""Bytes of a log's end that are read at once."""

LINE_BYTES = 200
"""Bytes that a line of a log is expected to have. More are read when the lines are longer."""

MAX_KEPT = 16
"""Metrics files of which the rows are kept."""

MAX_POINTS = 400
"""Points of a curve: more than a terminal has columns, and enough for a page."""


def named_stage(view: SweepState, cell: Cell, name: str) -> StageInstance:
    """Return the stage instance of a cell that a name such as ``prepare[en]`` means.

    Raises:
        UserError: the cell has no such stage.
    """
    gates = (gate.digest for gate in view.gates.cells.get(cell.id, ()))
    found = (view.instances[digest] for digest in (*gates, *cell.stage_digests))
    instances = {instance.name: instance for instance in found}
    if name not in instances:
        raise UserError(f"{cell.id} has no stage {name!r}", allowed=nearest(name, instances))
    return instances[name]


def interesting_stage(view: SweepState, cell: Cell) -> StageInstance:
    """Return the stage whose log the user most likely wants.

    That is a failed stage, else a running, lost or released one, else the last that was started.
    """
    stages = view.stages_of(cell)
    for state in (State.FAILED, State.RUNNING, State.LOST, State.RELEASED):
        for digest, status in stages.items():
            if status.state is state:
                return view.instances[digest]
    tried = [digest for digest, status in stages.items() if status.attempts]
    return view.instances[tried[-1] if tried else cell.stage_digests[-1]]


def end_of(objects: ObjectStore, key: str, limit: int = MAX_TAIL) -> tuple[str, int]:
    """Return the last `limit` bytes of a log as text, and the number of bytes before them."""
    skipped = max(0, objects.size(key) - limit)
    return objects.read_from(key, skipped, limit).decode(errors="replace"), skipped


class LogTail(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a log.

    Attributes:
        stage: name of the stage instance, such as ``train``.
        attempt: its number; 0 if the stage was never started.
        lines: the last lines.
        is_whole: whether these are all lines of the log.
        is_over: whether the attempt has ended, so that nothing is added any more.
    """

    stage: str
    attempt: int = 0
    lines: tuple[str, ...] = ()
    is_whole: bool = True
    is_over: bool = False


def log_tail(view: SweepState, cell: Cell, stage: str | None = None, lines: int = 200) -> LogTail:
    """Return the end of the log of a stage's last attempt.

    Args:
        view: the sweep state.
        cell: whose stage is meant.
        stage: its name; by default the failed, running or last one.
        lines: the most lines to return.

    Raises:
        UserError: the cell has no such stage.
    """
    instance = named_stage(view, cell, stage) if stage else interesting_stage(view, cell)
    numbers = view.ledger.numbers(instance)
    if not numbers:
        return LogTail(stage=instance.name)
    text, skipped, limit = "", 0, LINE_BYTES * lines
    key = layout.log(instance, numbers[-1])
    while True:
        text, skipped = end_of(view.ledger.objects, key, limit)
        if not skipped or text.count("\n") > lines or limit >= MAX_TAIL:
            break
        limit *= 4
    found = shown_lines(text)
    # The first line of what was read may be the rest of one.
    found = found[1:] if skipped else found
    attempt = view.ledger.attempt(instance, numbers[-1])
    return LogTail(
        stage=instance.name,
        attempt=numbers[-1],
        lines=tuple(found[-lines:]),
        is_whole=not skipped and len(found) <= lines,
        is_over=attempt is None or attempt.end is not None,
    )


def shown_lines(text: str) -> list[str]:
    """Return the lines of a log as a terminal would leave them, without colours.

    Of a progress bar, which goes back to the start of its line, the last state is kept.
    """
    lines = SEQUENCE.sub("", text).split("\n")
    if not lines[-1]:
        lines.pop()
    return [escaped(line.rstrip("\r").rpartition("\r")[2].expandtabs()) for line in lines]


class MetricCurve(msgspec.Struct, frozen=True, kw_only=True):
    """The values of one metric over the steps of a stage.

    Attributes:
        stage: name of the stage instance; "" if no stage of the cell has metrics.
        metric: its name.
        attempt: the newest attempt; points of earlier ones are those that it goes on from.
        points: (step, value), by step; thinned, with the extremes kept.
        num_values: how many values there are.
    """

    stage: str = ""
    metric: str = ""
    attempt: int = 0
    points: tuple[tuple[int, float], ...] = ()
    num_values: int = 0


class MetricsReader:
    """Reads metrics of attempts, of each file only what was added since the last time."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, list[dict[str, Any]]]] = {}

    def rows(self, ledger: Ledger, instance: StageInstance, number: int) -> list[dict[str, Any]]:
        """Return the rows that an attempt has logged so far. They must not be changed."""
        key = layout.metrics(instance, number)
        start, rows = self._known.pop(key, (0, []))
        data = ledger.objects.read_from(key, start)
        # The last line may still be in the making. It is read again.
        whole = data[: data.rfind(b"\n") + 1]
        rows.extend(parse_metrics(whole.decode(errors="replace")))
        self._known[key] = start + len(whole), rows
        while len(self._known) > MAX_KEPT:
            del self._known[next(iter(self._known))]
        return rows

    def history(self, ledger: Ledger, instance: StageInstance) -> tuple[int, list[dict[str, Any]]]:
        """Return a stage's last attempt, 0 for none, and the metrics that lead to it."""
        numbers = ledger.numbers(instance)
        if not numbers:
            return 0, []
        rows_of = functools.partial(self.rows, ledger)
        return numbers[-1], history(ledger, instance, numbers[-1], rows_of=rows_of)


def metrics_of(view: SweepState, cell: Cell, reader: MetricsReader) -> dict[str, tuple[str, ...]]:
    """Return the metrics of a cell: name of a stage to names, the stage of the default curve first."""
    first = interesting_stage(view, cell)
    stages = [first, *(view.instances[d] for d in reversed(cell.stage_digests) if d != first.digest)]
    found: dict[str, tuple[str, ...]] = {}
    order: dict[str, tuple[int, bool, int]] = {}
    for instance in stages:
        _, rows = reader.history(view.ledger, instance)
        if names := _names(rows):
            found[instance.name] = names
            runs = view.stages[instance.digest].state is State.RUNNING
            order[instance.name] = (_rank(names[0]), not runs, -len(rows))
    # A stage with a loss, the one that runs; else the one with the longest curve.
    return {name: found[name] for name in sorted(found, key=order.__getitem__)}


def curve(
    view: SweepState,
    cell: Cell,
    reader: MetricsReader,
    metric: str | None = None,
    stage: str | None = None,
    *,
    max_points: int = MAX_POINTS,
) -> MetricCurve:
    """Return the values of a metric of a cell, as its newest attempt continues the earlier ones.

    Args:
        view: the sweep state.
        cell: the cell.
        reader: keeps what was read.
        metric: its name; by default the loss, else the first.
        stage: name of the stage; by default the first of `metrics_of` that has the metric.
        max_points: the most points to return.

    Raises:
        UserError: the cell has no such stage.
    """
    if stage is None:
        names = metrics_of(view, cell, reader)
        having = [name for name, each in names.items() if metric is None or metric in each]
        if not having:
            return MetricCurve()
        stage = having[0]
    instance = named_stage(view, cell, stage)
    attempt, rows = reader.history(view.ledger, instance)
    chosen = metric or next(iter(_names(rows)), "")
    known = (row for row in rows if "step" in row and is_number(row.get(chosen)))
    points = [(row["step"], float(row[chosen])) for row in known]
    return MetricCurve(
        stage=stage,
        metric=chosen,
        attempt=attempt,
        points=tuple(thinned(points, max_points)),
        num_values=len(points),
    )


def thinned(points: Sequence[tuple[int, float]], limit: int) -> list[tuple[int, float]]:
    """Return at most `limit` points: of each part of the curve the lowest and the highest one, in order.

    A mean would hide the spikes that one looks for.
    """
    if len(points) <= limit:
        return list(points)
    parts = max(1, (limit - 2) // 2)
    found = [points[0]]
    for part in range(parts):
        some = points[1 + part * (len(points) - 2) // parts : 1 + (part + 1) * (len(points) - 2) // parts]
        if some:
            ends = {min(some, key=lambda point: point[1]), max(some, key=lambda point: point[1])}
            found += sorted(ends)
    return [*found, points[-1]]


def _names(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names of the metrics that are numbers, losses first."""
    names = dict.fromkeys(
        name
        for row in rows
        for name, value in row.items()
        if name not in ("step", "time_s") and is_number(value)
    )
    return tuple(sorted(names, key=_rank))


def _rank(name: str) -> int:
    return 0 if name == "loss" else 1 if "loss" in name else 2


def is_number(value: Any) -> bool:
    """Return whether a logged value is a number; infinity and NaN are such, booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
