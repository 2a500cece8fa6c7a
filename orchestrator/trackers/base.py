"""What a tracker is told of the stage whose metrics it carries, and opening the ones that a sweep names."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.core.records import StartRecord
from orchestrator.core.sweep import StageInstance
from orchestrator.registry import TRACKERS, lookup
from orchestrator.stage import Tracker
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger

logger = logging.getLogger(__name__)


class Tracked(NamedTuple):
    """One attempt of one stage, as a tracker sees it.

    Attributes:
        folder: the attempt's own folder.
        name: ``train`` or ``prepare[en]``.
        settings: the options of the tracker from the config.
    """

    folder: Path
    sweep: str
    cell: str
    name: str
    attempt: int
    config: dict[str, Any]
    settings: dict[str, Any]


def open_trackers(names: Sequence[str], tracked: Tracked) -> list[Tracker]:
    """Opens trackers by name, the store's always first; one that cannot open is left out and logged."""
    trackers: list[Tracker] = []
    for name in dict.fromkeys(("store", *names)):
        try:
            kind = lookup(TRACKERS, name, kind="tracker")
            if not getattr(kind, "follows_store", False):  # a mirror is the launch's
                trackers.append(kind(tracked))
        except Exception:
            logger.exception("tracker %s cannot be used", name)
    return trackers


FLUSH_S = 1.0


class StoreTracker:
    """Buffers metrics and appends them to ``metrics.jsonl`` once a second; a full disk drops them.

    A line is ``{"step": 12, "time_s": 3.4, "loss": 0.7}``: `step` counts from 1, `time_s` from the
    start of the attempt. What is not finite is written as null, what is no JSON as its text.
    """

    def __init__(self, tracked: Tracked) -> None:
        self._path = tracked.folder / layout.METRICS
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._start_s = time.monotonic()
        self._thread = threading.Thread(target=self._write, name="store-tracker", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one step; returns at once."""
        with contextlib.suppress(Exception):  # a metric is never worth the attempt
            self._queue.put({"step": step, "time_s": round(time.monotonic() - self._start_s, 3), **metrics})

    def close(self) -> None:
        """Writes what is buffered."""
        self._queue.put(None)
        self._thread.join(timeout=10.0)

    def _write(self) -> None:
        last = False
        while not last:
            lines = [self._queue.get()]
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
    """Returns one line, or nothing: what a metric's own methods raise must not end the thread."""
    try:
        return json.dumps({key: _finite(value) for key, value in line.items()}, default=str) + "\n"
    except Exception as error:  # noqa: BLE001 - a metric may be any object of the user's
        print(f"the metrics of step {line['step']} are left out: {type(error).__name__}", flush=True)
        return ""


def _finite(value: Any) -> Any:
    if hasattr(value, "item"):
        with contextlib.suppress(Exception):  # an array: its text is written
            value = value.item()
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def history(ledger: Ledger, node: StageInstance, number: int) -> list[dict[str, Any]]:
    """Reads the metrics that lead to an attempt: of its parents up to where it went on, then its own.

    Args:
        ledger: the store.
        node: the stage.
        number: of the attempt.
    """
    rows: list[dict[str, Any]] = []
    until: int | None = None
    while True:
        data = ledger.objects.get(layout.metrics(node.stage, node.digest, number)) or b""
        own = parse_metrics(data.decode(errors="replace"))
        rows = [row for row in own if until is None or row.get("step", 0) <= until] + rows
        start, _ = ledger.read(layout.attempt(node.stage, node.digest, number, layout.START), StartRecord)
        before, last = _former(start, own)
        if before is None or before >= number:
            return rows
        until = last if until is None else until if last is None else min(until, last)
        number = before


def _former(start: StartRecord | None, own: Sequence[Mapping[str, Any]]) -> tuple[int | None, int | None]:
    """Returns the attempt that another went on from, and its last step that counts; None for all of them."""
    if start is None:
        return None, None
    if start.parent is not None:
        return start.parent.attempt, start.parent.step
    if start.unread is not None:
        return start.unread, None
    steps = [row["step"] for row in own if "step" in row]
    return start.work, min(steps) - 1 if steps else None


def parse_metrics(text: str) -> list[dict[str, Any]]:
    """Reads lines of metrics; a torn last one, and what is no object with a numbered step, are left out."""
    rows = []
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step", 0), int):  # commands write their own
            rows.append(row)
    return rows
