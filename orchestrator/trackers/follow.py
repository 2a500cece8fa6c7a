"""Following a sweep's cells in the store, and handing what is new to a mirror: metrics, rows, and the end.

It reads the store as `sweep status` does, and knows no mirror's library. What a mirrored cell was given is
remembered when its run was closed whole, in one small file beside the mirror's own: a mirror that is killed
gives the same lines again, never too few.
"""

from __future__ import annotations

import hashlib
import json
import re
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec

from orchestrator.core.records import Revision, StoreMark
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.formats import SINCE_2
from orchestrator.provenance import without_secrets
from orchestrator.store import layout
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger
from orchestrator.trackers.base import parse_metrics

MAX_ID = 100
"""Characters of a run id before its digest; W&B takes 128 in all."""
MAX_FAILURES = 3
"""Passes in a row that may fail for a cell before it is left to the next launch."""


class MirroredRun(Protocol):
    """One cell's run on the other side.

    Attributes:
        id: another than it was opened with, where it takes the place of one that is gone there.
    """

    id: str

    def log(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        """Takes the metrics of one step of a stage."""

    def results(self, stage: str, rows: Sequence[dict[str, Any]]) -> None:
        """Takes the rows of a stage that is done."""

    def close(self, *, done: bool) -> None:
        """Ends the run, or leaves off until the cell goes on."""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What a mirror is told of a cell when its run is opened."""

    id: str
    cell: str
    sweep: str
    revision: int
    config: dict[str, Any]
    axes: dict[str, str]
    stages: tuple[str, ...]


class MirrorProgress(msgspec.Struct, kw_only=True):
    """What a cell's run was given: bytes of each attempt's metrics, and the products whose rows it has.

    `id` is that of the run which took the place of the first one, "" while there is none.
    """

    bytes: dict[str, int] = {}
    products: list[str] = []
    id: Annotated[str, SINCE_2] = ""


class _Anew(Exception):
    """The run that was opened is another than the one that was given something before."""


class Follower:
    """Mirrors the cells of a revision, pass by pass.

    A cell's run shows every stage of its chain, shared with other cells or not, but for the instances of
    `each`, which belong to no cell. It is opened when a stage of the cell's own has begun, or the whole
    chain is done.

    Args:
        ledger: the store.
        revision: the sealed sweep.
        cells: the ids of those to mirror; None for all.
        memory: the file that remembers.
        open_run: makes a run on the other side.
    """

    def __init__(
        self,
        ledger: Ledger,
        revision: Revision,
        *,
        cells: Sequence[str] | None,
        memory: Path,
        open_run: Callable[[Described], MirroredRun],
    ) -> None:
        self._ledger, self._revision, self._sweep = ledger, revision, revision.sweep
        self._open_run, self._memory = open_run, memory
        self._cells = [cell for cell in self._sweep.cells if cells is None or cell.cell in cells]
        mark, _ = ledger.read(layout.STORE, StoreMark)
        self._store = mark.nonce if mark else ""
        self._shared = {
            digest for digest, n in Counter(d for c in self._sweep.cells for d in c.chain).items() if n > 1
        }
        self._given = _recalled(memory)
        self._runs: dict[str, MirroredRun] = {}
        self._failures: Counter[str] = Counter()

    def follow(self) -> None:
        """One pass: gives every open run what is new, opens those that began, closes those that are done."""
        nodes = {digest: self._sweep.nodes[digest] for cell in self._cells for digest in cell.chain}
        snapshot = EvidenceReader(self._ledger, nodes.values(), check_files=False, count_attempts=False)
        for cell in list(self._cells):
            done = all(snapshot.evidence(digest).done is not None for digest in cell.chain)
            if done or any(snapshot.evidence(d).attempts for d in cell.chain if d not in self._shared):
                self._mirror(cell, snapshot, done=done)

    def close(self) -> None:
        """Closes what is still open: cells that failed, or were stopped."""
        for cell in self._cells:
            try:
                self._close(cell, done=False)
            except Exception:  # noqa: BLE001 - whatever the other side raises
                _print_exception()
                self._failures[cell.cell] += 1

    @property
    def num_lost(self) -> int:
        """How many cells were not given all that is new."""
        return len(self._failures)

    def _mirror(self, cell: Cell, snapshot: EvidenceReader, *, done: bool) -> None:
        """Gives one cell what is new; one that cannot be given it costs no other cell its own."""
        try:
            self._give(cell, snapshot)
            if done:
                self._close(cell, done=True)
                self._cells.remove(cell)
            self._failures.pop(cell.cell, None)
        except Exception:  # noqa: BLE001 - whatever the other side raises
            _print_exception()
            self._failures[cell.cell] += 1
            if self._failures[cell.cell] == MAX_FAILURES:
                self._cells.remove(cell)

    def _give(self, cell: Cell, snapshot: EvidenceReader) -> None:
        try:
            self._give_news(cell, snapshot)
        except _Anew:
            self._give_news(cell, snapshot)

    def _give_news(self, cell: Cell, snapshot: EvidenceReader) -> None:
        given = self._given.setdefault(self._id(cell), MirrorProgress())
        for node in (self._sweep.nodes[digest] for digest in cell.chain):
            if node.label:
                continue
            for number in self._ledger.numbers(node):
                self._give_metrics(cell, node, number, given)
            evidence = snapshot.evidence(node.digest)
            product = f"{node.digest}.{evidence.generation}"
            if evidence.done is not None and product not in given.products:
                self._run(cell).results(node.name, evidence.done.rows)
                given.products.append(product)

    def _give_metrics(self, cell: Cell, node: StageInstance, number: int, given: MirrorProgress) -> None:
        key = layout.payload(node.stage, node.digest, number)
        start = given.bytes.get(key, 0)
        path = layout.metrics(node.stage, node.digest, number)
        text, end = whole_lines(self._ledger.objects.read_from(path, start), start)
        for row in parse_metrics(text):
            metrics = {name: value for name, value in row.items() if name != "step"}
            self._run(cell).log(node.name, row.get("step", 0), {**metrics, "attempt": number})
        if text:
            given.bytes[key] = end

    def _run(self, cell: Cell) -> MirroredRun:
        if cell.cell not in self._runs:
            stages = dict.fromkeys(node.name for d in cell.chain if not (node := self._sweep.nodes[d]).label)
            given = self._given.setdefault(self._id(cell), MirrorProgress())
            id = given.id or self._id(cell)
            run = self._runs[cell.cell] = self._open_run(
                Described(
                    id=id,
                    cell=cell.cell,
                    sweep=self._sweep.name,
                    revision=self._revision.number,
                    config=cell.config,
                    axes=cell.axes,
                    stages=tuple(stages),
                )
            )
            if run.id != id:
                self._given[self._id(cell)] = MirrorProgress(id=run.id)
                raise _Anew
        return self._runs[cell.cell]

    def _close(self, cell: Cell, *, done: bool) -> None:
        run = self._runs.pop(cell.cell, None)
        if run is not None:
            run.close(done=done)
            self._remember(self._id(cell))

    def _remember(self, id: str) -> None:
        """Writes down what one run has for sure, beside what was known of the others before."""
        known = {**_recalled(self._memory), id: self._given[id]}
        temporary = self._memory.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(known))
        temporary.replace(self._memory)

    def _id(self, cell: Cell) -> str:
        return run_id(self._store, self._sweep.name, cell)


def run_id(store: str, sweep: str, cell: Cell) -> str:
    """Returns the same id for the same cell of the same sweep in the same store, whatever retries it took.

    A cell whose stages became others (another revision of the sweep) has another id.

    Args:
        store: what tells stores apart.
        sweep: its name.
        cell: of the sweep.
    """
    digest = hashlib.sha256(json.dumps([store, sweep, cell.cell, *cell.chain]).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', f'{sweep}-{cell.cell}')[:MAX_ID]}-{digest[:8]}"


def whole_lines(data: bytes, start: int) -> tuple[str, int]:
    """Returns the lines that are written whole, and the byte after them.

    Args:
        data: read from a byte on.
        start: that byte.
    """
    data = data[: data.rfind(b"\n") + 1]
    return data.decode(errors="replace"), start + len(data)


def _recalled(memory: Path) -> dict[str, MirrorProgress]:
    try:
        return msgspec.json.decode(memory.read_bytes(), type=dict[str, MirrorProgress])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _print_exception() -> None:
    print(without_secrets(traceback.format_exc()), flush=True)
