"""Trackers inside a stage's process: opening them, the store's own tracker, and reading its metrics back."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.core.records import StartRecord
from orchestrator.core.sweep import StageInstance
from orchestrator.registry import MIRRORS, TRACKERS, lookup
from orchestrator.stage import Tracker
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger

logger = logging.getLogger(__name__)


class Tracked(NamedTuple):
    """One attempt of one stage, as its trackers see it.

    Attributes:
        folder: the attempt's own folder.
        sweep, cell: on whose behalf the attempt runs.
        name: the stage, such as ``train`` or ``prepare[en]``.
        attempt: its number.
        config: the cell's resolved config.
        settings: the `tracker` section of the config.
    """

    folder: Path
    sweep: str
    cell: str
    name: str
    attempt: int
    config: dict[str, Any]
    settings: dict[str, Any]


_FAILURES = (Exception, SystemExit)
"""What a tracker may raise without harm: some libraries exit where they cannot log in."""


def open_trackers(names: Sequence[str], tracked: Tracked) -> list[Tracker]:
    """Open trackers by name, the store's first. One that fails, then or later, costs the stage nothing."""
    trackers: list[Tracker] = []
    for name in dict.fromkeys(("store", *names)):
        if name in MIRRORS:  # it runs in a process of the launch
            continue
        try:
            trackers.append(_Harmless(name, lookup(TRACKERS, name, kind="tracker")(tracked)))
        except _FAILURES:
            logger.exception("tracker %s cannot be used", name)
    return trackers


class _Harmless:
    """A tracker whose errors go to the attempt's log, the first of them with its traceback.

    No metric is worth the loss of an attempt, and a tracker may be any object of a user's.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker = tracker
        self._num_failed = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step."""
        with self._keeping_on(f"to record step {step}"):
            self._tracker.log(step, metrics)

    def close(self) -> None:
        """Flush what is buffered."""
        with self._keeping_on("to end"):
            self._tracker.close()
        if self._num_failed > 1:
            logger.error("tracker %s failed %d times", self._name, self._num_failed)

    @contextlib.contextmanager
    def _keeping_on(self, what: str) -> Iterator[None]:
        try:
            yield
        except _FAILURES:
            self._num_failed += 1
            if self._num_failed == 1:
                logger.exception("tracker %s failed %s; the stage goes on", self._name, what)


FLUSH_S = 1.0
"""Seconds between writes. Fewer and larger writes spare a network file system."""


class StoreTracker:
    """A tracker that buffers metrics and appends them to ``metrics.jsonl`` once a second.

    A line is ``{"step": 12, "time_s": 3.4, "loss": 0.7}``. `step` counts from 1, `time_s` from the start of
    the attempt. A number that is not finite is written as null, and a value that JSON cannot hold as its
    text. Metrics are dropped while the disk is full.

    Args:
        tracked: the attempt.
    """

    def __init__(self, tracked: Tracked) -> None:
        self._path = tracked.folder / layout.METRICS
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._start_s = time.monotonic()
        self._thread: threading.Thread | None = None  # a stage without metrics needs none

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue the metrics of one step and return at once."""
        with contextlib.suppress(Exception):  # no metric is worth losing the attempt
            self._queue.put({"step": step, "time_s": round(time.monotonic() - self._start_s, 3), **metrics})
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="store-tracker", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Write the buffered metrics and end the thread."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(timeout=10.0)

    def _write(self) -> None:
        last = False
        while not last:
            lines = [self._queue.get()]
            # The first line opens a batch. It ends after `FLUSH_S`, or with None, which `close` sends.
            until_s = time.monotonic() + FLUSH_S
            while lines[-1] is not None and (left_s := until_s - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    lines.append(self._queue.get(timeout=left_s))
            last = lines[-1] is None
            text = "".join(_encoded(line) for line in lines if line is not None)
            try:
                with self._path.open("a", encoding="utf-8") as stream:
                    stream.write(text)
            except OSError:
                continue


def _encoded(line: Mapping[str, Any]) -> str:
    """Return one line of JSON, or "" if a metric's own methods raise, which must not end the thread."""
    try:
        return json.dumps({key: _finite(value) for key, value in line.items()}, default=str) + "\n"
    except Exception as error:  # noqa: BLE001 - a metric may be any object of the user's
        print(f"the metrics of step {line['step']} are left out: {type(error).__name__}", flush=True)
        return ""


def _finite(value: Any) -> Any:
    if hasattr(value, "item"):
        with contextlib.suppress(Exception):  # an array of several items has no single value: write its text
            value = value.item()
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


RowsOf = Callable[[StageInstance, int], list[dict[str, Any]]]
"""A function that returns the metrics that one attempt logged itself."""


def history(
    ledger: Ledger, instance: StageInstance, number: int, *, rows_of: RowsOf | None = None
) -> list[dict[str, Any]]:
    """Return the metrics that lead to an attempt: its own, and those of its predecessors up to the resume.

    Steps that a predecessor took after its last checkpoint are left out, because the successor repeats them::

        attempt 1: steps 1 to 250, checkpoint at 200     kept: 1 to 200
        attempt 2: resumes from step 200                 kept: 201 on

    Args:
        ledger: the store.
        instance: the stage instance.
        number: number of the attempt.
        rows_of: reads the metrics of an attempt, such as one that keeps what it has read.
    """

    def read(instance: StageInstance, number: int) -> list[dict[str, Any]]:
        data = ledger.objects.get(layout.metrics(instance, number)) or b""
        return parse_metrics(data.decode(errors="replace"))

    rows: list[dict[str, Any]] = []
    until: int | None = None
    while True:
        own = (rows_of or read)(instance, number)
        rows = [row for row in own if until is None or row.get("step", 0) <= until] + rows
        start, _ = ledger.read(layout.attempt(instance, number, layout.START), StartRecord)
        before, last = _former(start, own)
        if before is None or before >= number:
            return rows
        until = last if until is None else until if last is None else min(until, last)
        number = before


def _former(start: StartRecord | None, own: Sequence[Mapping[str, Any]]) -> tuple[int | None, int | None]:
    """Return the attempt that this one continues, and its last step that counts (None: all of its steps)."""
    if start is None:
        return None, None
    if start.parent is not None:
        return start.parent.attempt, start.parent.step
    if start.unread is not None:
        return start.unread, None
    # A work folder has no recorded step: the successor's first own step shows where it continued.
    steps = [row["step"] for row in own if "step" in row]
    return start.work, min(steps) - 1 if steps else None


def _integer(digits: str) -> int | float:
    """Return an integer of JSON, as a float if it has more than 64 bits: no table holds such an integer."""
    number = float(digits)
    return int(digits) if abs(number) < 2**63 else number


_ROW = json.JSONDecoder(parse_int=_integer)


def parse_metrics(text: str) -> list[dict[str, Any]]:
    """Return the rows of a metrics file, without incomplete lines and rows whose step is no integer."""
    rows = []
    for line in text.split("\n"):
        try:
            row = _ROW.decode(line)
        except (ValueError, RecursionError):  # too deep a line is no row either
            continue
        if isinstance(row, dict) and isinstance(row.get("step", 0), int):  # commands write their own
            rows.append(row)
    return rows
