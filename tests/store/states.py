"""A store that holds a sweep in the middle of its life: cells in every state that records alone can show."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchestrator.api.requests import build_request
from orchestrator.api.state import SweepState
from orchestrator.core.failure import Cause
from orchestrator.core.grid import Chains
from orchestrator.core.records import Claim, Done, End, Heartbeat, TimeSpent
from orchestrator.core.selector import Subject
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance
from orchestrator.jobs.records import WorkerRecord
from orchestrator.manifest import scan
from orchestrator.provenance import now
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger, open_ledger
from tests.store import builders

STUDY: Mapping[str, Sequence[str]] = {
    "model": ("small", "large"),
    "task": ("math", "calls"),
    "mixture": ("none", "en", "en+es", "no-sw", "all"),
}
"""The axes of a study in small: mixtures as rows, models x tasks as columns."""

CYCLE = (
    "done",
    "done",
    "done",
    "running",
    "failed",
    "done",
    "out_of_memory",
    "unscored",
    "cancelled",
    "pending",
)
"""What is recorded of one cell after the other, again and again."""

NUM_STEPS = 100


class Made(NamedTuple):
    """A store with a sweep that looks as if it were running.

    Attributes:
        ledger: the store.
        sweep: the sealed content; its name is ``study``.
        kinds: id of a cell to what was recorded of it, one of `CYCLE`.
    """

    ledger: Ledger
    sweep: ComposedSweep
    kinds: Mapping[str, str]

    def fit(self, cell: str) -> StageInstance:
        """The first stage of a cell."""
        found = next(each for each in self.sweep.cells if each.id == cell)
        return self.sweep.stages[found.stage_digests[0]]

    def of(self, kind: str) -> list[str]:
        """The ids of the cells of one kind."""
        return [cell for cell, known in self.kinds.items() if known == kind]


def make(
    root: Path,
    axes: Mapping[str, Sequence[str]] = STUDY,
    cycle: Sequence[str] = CYCLE,
    *,
    name: str = "study",
) -> Made:
    """Make a store with a cell for each combination of labels, in the states of `cycle` in turn."""
    specs = {
        "fit": StageSpec(run="m:f", reads=(*axes,)),
        "score": StageSpec(run="m:g", reads=("items",), after=("fit",)),
    }
    chains, cells = Chains(specs), []
    for number, labels in enumerate(itertools.product(*axes.values())):
        point = dict(zip(axes, labels, strict=True))
        config = {**point, "items": 10}
        id_ = f"{'.'.join(labels)}-{number:08x}"
        chain = chains.chain(Subject(point, {}, config))
        cells.append(Cell(id=id_, axes=point, columns={}, config=config, stage_digests=chain))
    sweep = ComposedSweep(
        name=name, description="made", specs=dict(chains.specs), stages=chains.stages, cells=tuple(cells)
    )
    number = builders.seal(root, sweep).number
    ledger = open_ledger(str(root))
    kinds = {cell.id: kind for cell, kind in zip(cells, itertools.cycle(cycle), strict=False)}
    view = SweepState(ledger, sweep, number, sealed=True)
    # The budgets are spent at once, so that a failure is one.
    settings = builders.settings(retries={}, breaker=0)
    ledger.add_request(name, build_request(view, "launch", cells, settings=settings))
    writer = _Writer(root, ledger, sweep)
    for cell in cells:
        writer.write(cell, kinds[cell.id])
    if stopped := [cell for cell in cells if kinds[cell.id] == "cancelled"]:
        ledger.add_request(name, build_request(view, "cancel", stopped))
    return Made(ledger, sweep, kinds)


class _Writer:
    """Writes records as workers do, but without the sync of each file that makes it durable."""

    def __init__(self, root: Path, ledger: Ledger, sweep: ComposedSweep) -> None:
        self._root, self._ledger, self._sweep = root, ledger, sweep

    def write(self, cell: Cell, kind: str) -> None:
        """Write what one cell left."""
        fit, score = (self._sweep.stages[digest] for digest in cell.stage_digests)
        if kind == "done":
            self._finish(cell, fit, seconds=600.0)
            self._finish(cell, score, seconds=60.0)
        elif kind == "running":
            self._run(cell, fit, step=40)
        elif kind == "unscored":
            self._finish(cell, fit, seconds=600.0)
            self._fail(
                cell, score, Cause.CONFIG, "KeyError", "the stage does not declare 'lr' in its `reads`"
            )
        elif kind == "failed":
            self._fail(cell, fit, Cause.DATA, "ValueError", f"row {len(cell.id)} has no answer")
        elif kind == "out_of_memory":
            self._fail(cell, fit, Cause.OOM_GPU, "OutOfMemoryError", "tried to allocate 2 GiB")

    def _put(self, key: str, record: msgspec.Struct) -> None:
        path = self._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._ledger.encode(record))

    def _payload(self, instance: StageInstance, *, log: str, steps: int = 0) -> Path:
        folder = self._root / layout.payload(instance, 1)
        (folder / layout.OUTPUT).mkdir(parents=True, exist_ok=True)
        (folder / layout.LOG).write_text(log)
        if steps:
            (folder / layout.METRICS).write_text("".join(_metrics(steps)))
        return folder

    def _claim(self, cell: Cell, instance: StageInstance) -> Claim:
        claim = msgspec.structs.replace(
            builders.claim(), sweep=self._sweep.name, cell=cell.id, at="2026-01-01T00:00:00+00:00"
        )
        self._put(layout.attempt(instance, 1, layout.CLAIM), claim)
        return claim

    def _finish(self, cell: Cell, instance: StageInstance, *, seconds: float) -> None:
        folder = self._payload(instance, log=f"{instance.name} of {cell.id}: done\n", steps=NUM_STEPS)
        (folder / layout.OUTPUT / "file.txt").write_text("whole")
        self._claim(cell, instance)
        done = Done(
            nonce=new_nonce(),
            stage=instance.stage,
            digest=instance.digest,
            generation=1,
            attempt=1,
            files=scan(folder / layout.OUTPUT),
            rows=({"score": 0.5},),
            seconds=seconds,
        )
        self._put(layout.done(instance, 1), done)
        self._put(layout.attempt(instance, 1, layout.END), builders.end("succeeded"))

    def _fail(self, cell: Cell, instance: StageInstance, cause: Cause, kind: str, message: str) -> None:
        self._payload(instance, log=f"step 1\n{kind}: {message}\n", steps=1)
        self._claim(cell, instance)
        end = End(
            nonce=new_nonce(), outcome="failed", cause=cause, exception=kind, message=message, seconds=5.0
        )
        self._put(layout.attempt(instance, 1, layout.END), end)

    def _run(self, cell: Cell, instance: StageInstance, *, step: int) -> None:
        self._payload(
            instance, log="".join(f"step {n} of {NUM_STEPS}\n" for n in range(1, step + 1)), steps=step
        )
        owner = self._claim(cell, instance).owner
        spent = TimeSpent(held_s=500.0, seconds=400.0)
        beat = Heartbeat(
            counter=3,
            phase="running",
            step=step,
            num_steps=NUM_STEPS,
            child=owner.process,
            at=now(),
            spent=spent,
        )
        self._put(layout.attempt(instance, 1, layout.HEARTBEAT), beat)
        worker = WorkerRecord(
            nonce=new_nonce(),
            owner=owner,
            revision=1,
            num_gpus=2.0,
            device="H100",
            seconds=1800.0,
            runs=layout.payload(instance, 1),
            at=now(),
        )
        self._put(layout.worker(self._sweep.name, worker.nonce), worker)


def _metrics(steps: int) -> Iterator[str]:
    for step in range(1, steps + 1):
        row = {"step": step, "time_s": step * 2.0, "loss": round(4 / (1 + step / 10), 4)}
        yield json.dumps({**row, "tokens_per_second": 1000.0}) + "\n"
