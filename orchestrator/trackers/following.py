"""The mirroring of a sweep's cells: what of the store goes to another system, and how a mirror takes it.

A launch's mirror process and `sweep sync` use the same code. What the other system has of a run is read from
there, where it can be, so that nothing is sent twice, whoever sent it and wherever a process was killed.
"""

from __future__ import annotations

import hashlib
import json
import re
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from orchestrator.core.evidence import FAILED, Evidence
from orchestrator.core.holding import recorded_s
from orchestrator.core.identity import SEALED
from orchestrator.core.records import Claim, Revision, StartRecord, StoreMark
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.core.tree import without_key
from orchestrator.errors import one_line, words_of
from orchestrator.store import layout
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger
from orchestrator.trackers.base import parse_metrics
from orchestrator.trackers.protocol import (
    BROKEN,
    DONE,
    RUNNING,
    STOPPED,
    Described,
    Followed,
    MetricPoint,
    Mirror,
    MirroredRun,
    MirrorProgress,
    Unavailable,
    log,
)

MAX_ID = 100
"""Characters of a run id before its digest; W&B allows 128 in all."""
MAX_FAILURES = 3
"""Consecutive failed passes after which a cell is left to the next launch."""
MAX_LINES = 200
"""Lines of metrics that are sent, and noted, together."""


class _OtherRun(Exception):
    """Signal that the opened run has other things than noted, so that everything is compared once more."""


class SentCounts(NamedTuple):
    """What was sent.

    Attributes:
        cells: ids of the cells with news.
        points: number of lines of metrics.
        results: number of products.
    """

    cells: frozenset[str] = frozenset()
    points: int = 0
    results: int = 0


class Follower:
    """The mirroring of a revision's cells, in passes.

    A cell's run shows every stage of its chain, shared with other cells or not. Instances of `each` are left
    out, because they belong to no single cell. The run is opened when a stage that is the cell's own has
    started, or when the whole chain is done.

    Args:
        ledger: the store.
        revision: the sealed sweep.
        cells: ids of the cells to mirror; None for all.
        mirror: the other system.
    """

    def __init__(
        self, ledger: Ledger, revision: Revision, *, cells: Sequence[str] | None, mirror: Mirror
    ) -> None:
        self._ledger = ledger
        self._revision = revision
        self._sweep = revision.sweep
        self._mirror = mirror
        wanted = None if cells is None else set(cells)
        self._cells = [cell for cell in self._sweep.cells if wanted is None or cell.id in wanted]
        mark, _ = ledger.read(layout.STORE, StoreMark)
        self._store = mark.nonce if mark else ""
        self._shared = _shared(self._sweep.cells)
        self._given: dict[str, MirrorProgress] = {}
        self._runs: dict[str, MirroredRun] = {}
        self._states: dict[str, tuple[str, float]] = {}
        self.failures: defaultdict[str, list[str]] = defaultdict(list)
        self.sent = SentCounts()
        key = sweep_id(self._store, self._sweep.name)
        mirror.begin(Followed(key, self._sweep.name, revision.number, len(self._sweep.cells), ledger))

    def follow(self) -> None:
        """Make one pass: open runs of started cells, send what is new, close runs of finished cells.

        Raises:
            Unavailable: the other system takes nothing. The next pass goes on.
        """
        if self._sweep.search is not None and len(self._cells) == len(self._sweep.cells):
            self._sweep = self._ledger.revision(self._sweep.name, self._revision.number).sweep
            self._cells, self._shared = list(self._sweep.cells), _shared(self._sweep.cells)
        instances = {
            digest: self._sweep.stages[digest] for cell in self._cells for digest in cell.stage_digests
        }
        reader = EvidenceReader(self._ledger, instances.values(), check_files=False, count_attempts=False)
        for cell in list(self._cells):
            found = [reader.evidence(digest) for digest in cell.stage_digests]
            self._states[cell.id] = state_of(found)
            # A shared stage starts for many cells at once: it alone must not open a run for each of them.
            own = any(
                e.attempts for e, d in zip(found, cell.stage_digests, strict=True) if d not in self._shared
            )
            if own or self._states[cell.id][0] == DONE:
                self._mirror_cell(cell, reader)

    def close(self) -> None:
        """Close the runs that are still open, of cells that failed or were stopped.

        Raises:
            Unavailable: the other system takes nothing.
        """
        for cell in self._cells:
            try:
                if self._id(cell) in self._given:
                    self._mark(cell, *self._states[cell.id])
                self._close(cell)
            except Unavailable:
                raise
            except Exception as error:  # noqa: BLE001 - whatever the other side raises
                log(traceback.format_exc())
                self.failures[cell.id].append(one_line(words_of(error), 200))
        self._mirror.end()

    def _mirror_cell(self, cell: Cell, reader: EvidenceReader) -> None:
        """Send one cell's run what is new. Its failure affects no other cell."""
        try:
            self._give(cell, reader)
            state, at = self._states[cell.id]
            # Between two stages a cell looks stopped. Whether it is, the end of the launch shows.
            self._mark(cell, RUNNING if state == STOPPED else state, at)
            if state == DONE:
                self._close(cell)
                self._cells.remove(cell)
            self.failures.pop(cell.id, None)
        except Exception as error:
            if self._mirror.forget(self._id(cell)):
                self._runs.pop(cell.id, None)
                self._given.pop(self._id(cell), None)
            if isinstance(error, Unavailable):
                raise
            log(traceback.format_exc())
            self.failures[cell.id].append(one_line(words_of(error), 200))
            # The other system may refuse this one run for good. The other cells' passes must not wait for it.
            if len(self.failures[cell.id]) == MAX_FAILURES:
                self._cells.remove(cell)

    def _mark(self, cell: Cell, state: str, at: float) -> None:
        """Send the state of a cell, if its run is open or shows another one."""
        if cell.id in self._runs or self._progress(cell).state not in ("", state):
            run = self._run(cell)
            run.mark(state, at)
            self._given[self._id(cell)] = run.progress

    def _give(self, cell: Cell, reader: EvidenceReader) -> None:
        try:
            self._give_news(cell, reader)
        # The run that was opened has other things than noted: one more pass sends what it lacks.
        except _OtherRun:
            self._give_news(cell, reader)

    def _give_news(self, cell: Cell, reader: EvidenceReader) -> None:
        """Send metrics and rows that the cell's run does not have yet."""
        for instance in (self._sweep.stages[digest] for digest in cell.stage_digests):
            if instance.label:
                continue
            for number in self._ledger.numbers(instance):
                self._give_metrics(cell, instance, number)
            done = reader.evidence(instance.digest).done
            given = self._progress(cell)
            product = f"{instance.digest}.{done.generation if done else 0}"
            if done is not None and product not in given.products:
                run = self._run(cell)
                sent = msgspec.structs.replace(given, products=[*given.products, product])
                run.results(instance.name, done.rows, recorded_s(done.at), sent)
                self._advance(cell, sent, results=1)

    def _give_metrics(self, cell: Cell, instance: StageInstance, number: int) -> None:
        """Send the complete new lines of one attempt's metrics, in batches that are noted one by one."""
        key = layout.payload(instance, number)
        start = self._progress(cell).bytes.get(key, 0)
        data = self._ledger.objects.read_from(layout.metrics(instance, number), start)
        for text, end in batches(data, start):
            run = self._run(cell)
            at = self._started(instance, number)
            points = [_point(instance.name, number, at, row) for row in parse_metrics(text)]
            given = self._progress(cell)
            lines = given.lines + len(points)
            sent = msgspec.structs.replace(given, bytes={**given.bytes, key: end}, lines=lines)
            self._advance(cell, sent, points=run.log(points, sent) if points else 0)

    def _started(self, instance: StageInstance, number: int) -> float:
        """Return when an attempt started, in seconds since 1970."""
        start, _ = self._ledger.read(layout.attempt(instance, number, layout.START), StartRecord)
        if start is not None and start.at:
            return recorded_s(start.at)
        claim, _ = self._ledger.read(layout.attempt(instance, number, layout.CLAIM), Claim)
        return recorded_s(claim.at if claim else "")

    def _progress(self, cell: Cell) -> MirrorProgress:
        id = self._id(cell)
        if id not in self._given:
            self._given[id] = self._mirror.progress(id)
        return self._given[id]

    def _advance(self, cell: Cell, sent: MirrorProgress, *, points: int = 0, results: int = 0) -> None:
        """Take over what a run has now, and count it."""
        self._given[self._id(cell)] = sent
        was = self.sent
        if points or results:
            self.sent = SentCounts(was.cells | {cell.id}, was.points + points, was.results + results)

    def _run(self, cell: Cell) -> MirroredRun:
        """Return the open run of a cell; open it if necessary.

        Raises:
            _OtherRun: it has other things than noted.
        """
        if cell.id not in self._runs:
            own = [i for d in cell.stage_digests if not (i := self._sweep.stages[d]).label]
            given = self._progress(cell)
            run = self._runs[cell.id] = self._mirror.open(
                Described(
                    id=self._id(cell),
                    cell=cell.id,
                    sweep=self._sweep.name,
                    revision=self._revision.number,
                    config=without_key(cell.config, SEALED),
                    axes={axis: label for axis, label in cell.axes.items() if label},
                    stages=tuple(dict.fromkeys(instance.name for instance in own)),
                    began=next((self._started(i, 1) for i in own if self._ledger.numbers(i)), 0.0),
                )
            )
            if run.progress != given:
                self._given[self._id(cell)] = run.progress
                raise _OtherRun
        return self._runs[cell.id]

    def _close(self, cell: Cell) -> None:
        run = self._runs.pop(cell.id, None)
        if run is not None:
            run.close(self._states[cell.id][0])

    def _id(self, cell: Cell) -> str:
        return run_id(self._store, self._sweep.name, cell)


def _shared(cells: Sequence[Cell]) -> set[str]:
    """Return the digests of the stages that several cells have."""
    return {digest for digest, n in Counter(d for c in cells for d in c.stage_digests).items() if n > 1}


def _point(stage: str, number: int, at: float, row: dict[str, Any]) -> MetricPoint:
    metrics = {name: value for name, value in row.items() if name != "step"}
    since = metrics.get("time_s")
    # The stage counts the seconds from its own start; a command may write any other thing there.
    after = float(since) if isinstance(since, int | float) and at else 0.0
    return MetricPoint(stage, number, row.get("step", 0), at + after, metrics)


def state_of(found: Sequence[Evidence]) -> tuple[str, float]:
    """Return the state of a cell from the evidence of its chain, and when that was reached (0.0: unknown)."""
    if all(evidence.done is not None for evidence in found):
        return DONE, max((recorded_s(e.done.at) for e in found if e.done), default=0.0)
    lasts = [e.attempts[-1] for e in found if e.attempts and e.done is None]
    if any(attempt.end is None for attempt in lasts):
        return RUNNING, 0.0
    ended = max((recorded_s(attempt.end.at) for attempt in lasts if attempt.end), default=0.0)
    broken = any(attempt.end.outcome in FAILED for attempt in lasts if attempt.end)
    return (BROKEN if broken else STOPPED), ended


def sweep_id(store: str, sweep: str) -> str:
    """Return the id of a sweep, which is another one in each store.

    Args:
        store: nonce of the store.
        sweep: name of the sweep.
    """
    return _named(sweep, [store, sweep])


def run_id(store: str, sweep: str, cell: Cell) -> str:
    """Return the id of a cell's run: the same for all retries of one cell in one sweep and store.

    If a new revision of the sweep changes the cell's stages, its id changes too.

    Args:
        store: nonce of the store.
        sweep: name of the sweep.
        cell: a cell of the sweep.
    """
    return _named(f"{sweep}-{cell.id}", [store, sweep, cell.id, *cell.stage_digests])


def _named(name: str, of: list[str]) -> str:
    digest = hashlib.sha256(json.dumps(of).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:MAX_ID]}-{digest[:8]}"


def batches(data: bytes, start: int) -> Iterator[tuple[str, int]]:
    """Yield the complete lines in batches, each with the offset of the byte after it.

    Args:
        data: bytes of a file, read from an offset on.
        start: that offset.
    """
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    for first in range(0, len(lines), MAX_LINES):
        batch = b"".join(lines[first : first + MAX_LINES])
        start += len(batch)
        yield batch.decode(errors="replace"), start
