"""The mirror process: one for each launch, it copies what the store shows of a sweep to another system.

The launch starts it, and no stage communicates with it, so it can neither fail nor slow a stage. Its standard
input closes when the launch ends. It then has `MIRROR_FINISH_S` for the rest, and exits in any case.
``python -m orchestrator.trackers.mirror STORE SWEEP REQUEST < /dev/null`` catches up by hand.

It reads the store as `sweep status` does, and imports a mirror's library only through that mirror. A small
file beside the mirror's own records how much each cell's run was sent. The file is updated when a run is
closed in order, so a mirror that is killed sends some lines twice but never loses one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec

from orchestrator.core.records import Revision, StoreMark
from orchestrator.core.settings import MIRROR_FINISH_S
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.errors import SweepError
from orchestrator.formats import SINCE_2
from orchestrator.provenance import without_secrets
from orchestrator.registry import TRACKERS, lookup
from orchestrator.store import layout
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.trackers.base import parse_metrics

MAX_ID = 100
"""Characters of a run id before its digest; W&B allows 128 in all."""
MAX_FAILURES = 3
"""Consecutive failed passes after which a cell is left to the next launch."""


class MirroredRun(Protocol):
    """The run of one cell in the other system.

    Attributes:
        id: its id there. It differs from the requested id if that run was deleted and this one replaces it.
    """

    id: str

    def log(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        """Record the metrics of one step of a stage."""

    def results(self, stage: str, rows: Sequence[dict[str, Any]]) -> None:
        """Record the rows of a stage that is done."""

    def close(self, *, done: bool) -> None:
        """End the run, or pause it until the cell continues."""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A cell, as described to the mirror when its run is opened."""

    id: str
    cell: str
    sweep: str
    revision: int
    config: dict[str, Any]
    axes: dict[str, str]
    stages: tuple[str, ...]


class MirrorProgress(msgspec.Struct, kw_only=True):
    """How much a cell's run was sent so far.

    Attributes:
        bytes: key of each attempt's payload to the bytes of its metrics that were sent.
        products: the products whose rows were sent, as ``DIGEST.GENERATION``.
        id: id of the run that replaced a deleted first one; "" while there is none.
    """

    bytes: dict[str, int] = {}
    products: list[str] = []
    id: Annotated[str, SINCE_2] = ""


class _Anew(Exception):
    """Signal that a new run replaced the one that was sent something before: send everything again."""


class Follower:
    """The mirroring of a revision's cells, in passes.

    A cell's run shows every stage of its chain, shared with other cells or not. Instances of `each` are left
    out, because they belong to no single cell. The run is opened when a stage that is the cell's own has
    started, or when the whole chain is done.

    Args:
        ledger: the store.
        revision: the sealed sweep.
        cells: ids of the cells to mirror; None for all.
        memory: the file that records the progress.
        open_run: makes a run in the other system.
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
        self._cells = [cell for cell in self._sweep.cells if cells is None or cell.id in cells]
        mark, _ = ledger.read(layout.STORE, StoreMark)
        self._store = mark.nonce if mark else ""
        self._shared = {
            digest
            for digest, n in Counter(d for c in self._sweep.cells for d in c.stage_digests).items()
            if n > 1
        }
        self._given = _recalled(memory)
        self._runs: dict[str, MirroredRun] = {}
        self._failures: Counter[str] = Counter()

    def follow(self) -> None:
        """Make one pass: open runs of started cells, send what is new, close runs of finished cells."""
        instances = {
            digest: self._sweep.stages[digest] for cell in self._cells for digest in cell.stage_digests
        }
        reader = EvidenceReader(self._ledger, instances.values(), check_files=False, count_attempts=False)
        for cell in list(self._cells):
            done = all(reader.evidence(digest).done is not None for digest in cell.stage_digests)
            # A shared stage starts for many cells at once: it alone must not open a run for each of them.
            if done or any(reader.evidence(d).attempts for d in cell.stage_digests if d not in self._shared):
                self._mirror(cell, reader, done=done)

    def close(self) -> None:
        """Close the runs that are still open, of cells that failed or were stopped."""
        for cell in self._cells:
            try:
                self._close(cell, done=False)
            except Exception:  # noqa: BLE001 - whatever the other side raises
                _print_exception()
                self._failures[cell.id] += 1

    @property
    def num_lost(self) -> int:
        """The number of cells whose run did not receive everything."""
        return len(self._failures)

    def _mirror(self, cell: Cell, reader: EvidenceReader, *, done: bool) -> None:
        """Send one cell's run what is new. Its failure affects no other cell."""
        try:
            self._give(cell, reader)
            if done:
                self._close(cell, done=True)
                self._cells.remove(cell)
            self._failures.pop(cell.id, None)
        except Exception:  # noqa: BLE001 - whatever the other side raises
            _print_exception()
            self._failures[cell.id] += 1
            # The other system may refuse this one run for good. The other cells' passes must not wait for it.
            if self._failures[cell.id] == MAX_FAILURES:
                self._cells.remove(cell)

    def _give(self, cell: Cell, reader: EvidenceReader) -> None:
        try:
            self._give_news(cell, reader)
        # The replacing run is empty, and its progress was reset: one more pass sends everything.
        except _Anew:
            self._give_news(cell, reader)

    def _give_news(self, cell: Cell, reader: EvidenceReader) -> None:
        """Send metrics and rows that the cell's run does not have yet."""
        given = self._given.setdefault(self._id(cell), MirrorProgress())
        for instance in (self._sweep.stages[digest] for digest in cell.stage_digests):
            if instance.label:
                continue
            for number in self._ledger.numbers(instance):
                self._give_metrics(cell, instance, number, given)
            evidence = reader.evidence(instance.digest)
            product = f"{instance.digest}.{evidence.generation}"
            if evidence.done is not None and product not in given.products:
                self._run(cell).results(instance.name, evidence.done.rows)
                given.products.append(product)

    def _give_metrics(self, cell: Cell, instance: StageInstance, number: int, given: MirrorProgress) -> None:
        """Send the complete new lines of one attempt's metrics."""
        key = layout.payload(instance, number)
        start = given.bytes.get(key, 0)
        path = layout.metrics(instance, number)
        text, end = whole_lines(self._ledger.objects.read_from(path, start), start)
        for row in parse_metrics(text):
            metrics = {name: value for name, value in row.items() if name != "step"}
            self._run(cell).log(instance.name, row.get("step", 0), {**metrics, "attempt": number})
        # Only complete lines were sent; the next pass reads on from here.
        if text:
            given.bytes[key] = end

    def _run(self, cell: Cell) -> MirroredRun:
        """Return the open run of a cell; open it if necessary.

        Raises:
            _Anew: another run took the place of the one that has the recorded progress.
        """
        if cell.id not in self._runs:
            stages = dict.fromkeys(
                instance.name for d in cell.stage_digests if not (instance := self._sweep.stages[d]).label
            )
            given = self._given.setdefault(self._id(cell), MirrorProgress())
            id = given.id or self._id(cell)
            run = self._runs[cell.id] = self._open_run(
                Described(
                    id=id,
                    cell=cell.id,
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
        return self._runs[cell.id]

    def _close(self, cell: Cell, *, done: bool) -> None:
        run = self._runs.pop(cell.id, None)
        if run is not None:
            run.close(done=done)
            self._remember(self._id(cell))

    def _remember(self, id: str) -> None:
        """Record the progress of one closed run, and keep the entries of all others."""
        known = {**_recalled(self._memory), id: self._given[id]}
        # Replaced as a whole: a crash while writing must not lose the progress of all cells.
        temporary = self._memory.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(known))
        temporary.replace(self._memory)

    def _id(self, cell: Cell) -> str:
        return run_id(self._store, self._sweep.name, cell)


def run_id(store: str, sweep: str, cell: Cell) -> str:
    """Return the id of a cell's run: the same for all retries of one cell in one sweep and store.

    If a new revision of the sweep changes the cell's stages, its id changes too.

    Args:
        store: nonce of the store.
        sweep: name of the sweep.
        cell: a cell of the sweep.
    """
    digest = hashlib.sha256(json.dumps([store, sweep, cell.id, *cell.stage_digests]).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', f'{sweep}-{cell.id}')[:MAX_ID]}-{digest[:8]}"


def whole_lines(data: bytes, start: int) -> tuple[str, int]:
    """Return the complete lines, and the offset of the byte after them.

    Args:
        data: bytes of a file, read from an offset on.
        start: that offset.
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


POLL_S, MAX_POLL_S = 3.0, 60.0
"""Least and greatest seconds between two passes."""
MAX_FAILED_PASSES = 20
"""Consecutive failed passes after which a mirror gives up."""


def run(url: str, sweep: str, number: int, over: threading.Event) -> str:
    """Mirror the cells of a request until the launch is over; return a summary for the user.

    Args:
        url: the store.
        sweep: name of the sweep.
        number: number of the request.
        over: set when the launch has ended.

    Raises:
        Exception: the error of the `MAX_FAILURES`th failed pass in a row, or of the last pass.
    """
    ledger = open_ledger(url)
    request = next(request for request in ledger.requests(sweep) if request.number == number)
    assert request.settings is not None
    own = ledger.objects.workspace(layout.mirror(sweep))
    tracker = request.settings.tracker
    mirror: Any = lookup(TRACKERS, tracker.name, kind="tracker")(tracker.options, own.parent)
    memory, key = own / "mirrored.json", f"{layout.mirror(sweep)}/mirrored.json"
    with _alone(own / "lock", over):
        if not ledger.objects.in_place and (data := ledger.objects.get(key)) is not None:
            memory.write_bytes(data)  # an earlier launch may have run on another machine
        follower = Follower(
            ledger,
            ledger.revision(sweep, request.revision),
            cells=request.cells,
            memory=memory,
            open_run=mirror.open,
        )
        num_failures = 0
        while num_failures < MAX_FAILED_PASSES:
            last = over.is_set()  # read before the pass, so that the last pass sees everything of the launch
            start_s = time.process_time()
            try:
                follower.follow()
                num_failures = 0
            except Exception:
                num_failures += 1
                if last or num_failures == MAX_FAILED_PASSES:
                    raise
                traceback.print_exc()
            if last:
                break
            cost_s = time.process_time() - start_s
            over.wait(min(MAX_POLL_S, max(POLL_S, 20 * cost_s)))  # use about 5 % of one core at most
        follower.close()
        if not ledger.objects.in_place and memory.exists():
            ledger.objects.put(key, memory.read_bytes())
    lost = f"; {follower.num_lost} not mirrored whole, see the log" if follower.num_lost else ""
    return f"{mirror.farewell()}{lost}"


@contextlib.contextmanager
def _alone(path: Path, over: threading.Event) -> Iterator[None]:
    """Wait until no other mirror writes the runs of this sweep."""
    with path.open("w", encoding="utf-8") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                over.wait(POLL_S) if not over.is_set() else time.sleep(POLL_S)
                continue
            except OSError:  # no locks on this file system: two launches at once may send lines twice
                pass
            break
        yield


def main(argv: list[str] | None = None) -> int:
    """Mirror until standard input closes, and a little longer."""
    url, sweep, number = sys.argv[1:] if argv is None else argv
    over = threading.Event()

    def wait_for_the_end() -> None:
        while sys.stdin.buffer.read(1):
            pass
        over.set()
        time.sleep(MIRROR_FINISH_S)
        print("the mirror did not finish in time; what is missing follows at the next launch", flush=True)
        os._exit(1)

    threading.Thread(target=wait_for_the_end, name="launch", daemon=True).start()
    os.nice(10)  # the cells' processes have priority
    try:
        said = run(url, sweep, int(number), over)
    except SweepError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    print(said, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
