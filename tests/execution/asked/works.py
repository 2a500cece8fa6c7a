"""What a worker prints and leaves in the store, in whole runs, is as recorded."""

from __future__ import annotations

import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.evidence import Attempt
from orchestrator.core.failure import Cause
from orchestrator.core.records import Request
from orchestrator.core.settings import SpendingLimit
from orchestrator.execution.assignment import GpuShare
from orchestrator.jobs.nodes import NodeReports
from orchestrator.jobs.records import JobContext, LostWorker
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from tests.execution.faults import order_for
from tests.execution.here import work
from tests.recording import Answers
from tests.store.builders import claim, instance_of, ledger_at, make_product, owner, seal, settings, sweep_of
from tests.stored import records, shortened

LEFT_OUT = r"^store|^sweeps/\w+/\d+.json|spec.json|phases|/metrics|heartbeat"


class Place:
    """A store with a sealed sweep, on which workers work."""

    def __init__(
        self, folder: Path, num_cells: int, specs: Mapping[str, StageSpec] | None = None, **count: Any
    ) -> None:
        self.store = folder
        self.sweep = sweep_of(num_cells, specs, **count)
        self.revision = seal(self.store, self.sweep)
        self.ledger = ledger_at(self.store)

    def request(self, number: int = 1, verb: str = "launch", **more: Any) -> None:
        """Writes a request."""
        record = Request(nonce=f"n{number}", number=number, verb=verb, revision=1, **more)  # type: ignore[arg-type]
        key = layout.request(self.sweep.name, number)
        assert self.ledger.create(key, record, record.nonce)

    def work(self, stop: Sequence[str] = (), **more: Any) -> list[str]:
        """Has a worker work; returns its exit code and its lines. `stop` answers its questions for a stop."""
        reasons: Iterator[str] = iter(stop)
        order = order_for(self.store, self.sweep.name, **more)
        done = work(
            ledger_at(self.store),
            self.revision,
            order,
            stop_asked=lambda: next(reasons, stop[-1] if stop else ""),
        )
        return [f"exit code {done.code}", *map(self.plain, done.lines)]

    def plain(self, text: str) -> str:
        """A text without what differs from run to run."""
        text = text.replace(str(self.store), "STORE").replace(platform.node(), "HOST")
        return re.sub(r"\bpid \d+|process \d+", "process N", shortened(text))

    def records(self, under: str = "") -> list[str]:
        """What the store holds beside the sweep."""
        return [self.plain(line) for line in records(self.store, under, LEFT_OUT)]


def _told(question: str, lines: Sequence[object]) -> Answers:
    for number, line in enumerate(lines, start=1):
        yield f"{question}, line {number}", line


def worked() -> Answers:
    """Stages that succeed, fail, are tried again, and go on from what others left."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        place = Place(root / "two", 2)
        yield from _told("two cells", [*place.work(num_threads=3, env={"A": "b"}), *place.records()])
        yield from _told("again", place.work())
        fail = {"how": "chance", "step": 2, "attempts": 1}
        place = Place(root / "fails", 1, fail=fail)
        yield from _told("fails once", [*place.work(), *place.records("records"), *place.records("payload")])
        for how in ("data", "exit", "memory"):
            place = Place(root / how, 1, fail={"how": how, "step": 1, "attempts": 9})
            lines = place.work(policy={"retries": {"unknown": 0, "data": 0, "oom_host": 0}})
            yield from _told(how, [*lines, *place.records("records"), *place.records("payload")])
        place = Place(root / "lost", 1)
        instance = instance_of(place.sweep)
        gone = claim(owner=owner(host="n7", boot="b", cluster="lab", job="7", array_index=1), lease_s=90.0)
        assert place.ledger.claim(instance, 1, gone)
        over = LostWorker(
            cluster="lab",
            job="7",
            array_index=1,
            restart_count=0,
            cause=Cause.NODE_LOST,
            evidence="its node died",
        )
        job = JobContext(
            cluster="lab",
            job="8",
            array_index=3,
            restart_count=2,
            node="n8",
            gone=(over,),
            before=Cause.PREEMPTED,
        )
        yield from _told("taken over", [*place.work(job=job, slot=4), *place.records("records")])
        place = Place(root / "itself", 1)
        former = owner(host="n8", boot="b", cluster="lab", job="8", array_index=3, restart_count=1)
        assert place.ledger.claim(instance_of(place.sweep), 1, claim(owner=former))
        policy = {"retries": {"preempted": 3}}
        yield from _told("started again", [*place.work(job=job, policy=policy), *place.records("records")])


def chained() -> Answers:
    """Stages that take others: commands with results and metrics, shared inputs, damage."""
    base = "sh -c 'echo 7 >$0/base.txt; echo step=1 loss=0.5; echo done: 7' {output}"
    fit = "sh -c 'cat $0; echo acc >$2/rows.csv; echo $1 >>$2/rows.csv'"
    fit += " {inputs.base}/base.txt {config.seed} {output}"
    specs = {
        "base": StageSpec(command=base, reads=("shared",), metric={"done": "done: (.*)"}),
        "fit": StageSpec(command=fit, reads=("seed",), after=("base",), results="rows.csv"),
    }
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name) / "p", 2, specs)
        yield from _told(
            "chain",
            [*place.work(), *place.records("records"), *place.records("done"), *place.records("payload")],
        )
        taken = place.sweep.stages[place.sweep.cells[0].stage_digests[0]]
        product = place.store / layout.payload(taken, 1) / "output/base.txt"
        product.write_text("damaged")
        taking = place.sweep.stages[place.sweep.cells[1].stage_digests[1]]
        (place.store / layout.done(taking, 1)).unlink()
        yield from _told("damaged", [*place.work(), *place.records("voids"), *place.records("void")])
        broken = {
            "fit": StageSpec(command="sh -c 'echo Traceback >&2; exit 3' {config.seed}", reads=("seed",))
        }
        place = Place(Path(name) / "broken", 1, broken)
        yield from _told(
            "broken", [*place.work(policy={"retries": {"unknown": 0}}), *place.records("records")]
        )
        unread = {
            "fit": StageSpec(
                command="sh -c 'echo {{config.seed}}' {config.seed}", reads=("seed",), results="rows.json"
            )
        }
        place = Place(Path(name) / "unread", 1, unread)
        yield from _told(
            "unread",
            [
                *place.work(policy={"retries": {"data": 1}}),
                *place.records("records"),
                *place.records("payload"),
            ],
        )


def stopped() -> Answers:
    """Workers that stop, have no time, or must not claim."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)

        def job(**more: Any) -> JobContext:
            return JobContext(cluster="lab", job="8", node="n8", **more)

        place = Place(root / "stopped", 1, num_steps=100, step_s=0.02)
        yield from _told("stopped", [*place.work(["", "", "", "", "stopped"]), *place.records("records")])
        place = Place(root / "stopped in a job", 1, num_steps=100, step_s=0.02)
        yield from _told("stopped in a job", place.work(["", "", "", "", "stopped"], job=job()))
        place = Place(root / "deadline", 1)
        for end_s, min_left_s in ((50.0, 100.0), (-1.0, 0.0)):
            lines = place.work(job=job(end_at=time.time() + end_s, min_left_s=min_left_s))
            yield from _told(f"deadline {end_s}", [re.sub(r"^-?\d+ s", "N s", line) for line in lines])
        yield from _told("nothing left", [*place.work()[:1], *place.work(job=job())])
        place = Place(root / "cancelled", 2)
        place.request()
        place.request(2, "cancel", cells=("seed0",))
        yield from _told("cancelled", [*place.work(), *place.records("done")])
        yield from _told("all cancelled", place.work(job=job(), cells=("seed0",)))
        place = Place(root / "budget", 1)
        run = settings()
        limit = SpendingLimit(until="2026-01-01T00:00:00Z")
        place.request(
            settings=msgspec.structs.replace(run, policy=msgspec.structs.replace(run.policy, budget=limit))
        )
        yield from _told("budget", place.work())
        place = Place(root / "bad node", 2)
        NodeReports(place.ledger, 3600.0).add("lab", "n8", "check", "no GPU")
        yield from _told("bad node", place.work(job=job()))
        yield from _told("bad node, late", place.work(job=job(), policy={"quarantine_s": 0.0}))
        spec = StageSpec(
            run="tests.execution.stages:blind", reads=("count", "seed"), uses=("count.step_s", "count.fail")
        )
        place = Place(root / "blind", 2, {"count": spec})
        policy = {"retries": {"bad_node": 5}}
        yield from _told(
            "blind", [*place.work(policy=policy), *place.records("nodes"), *place.records("records")]
        )
        place = Place(root / "blind in a job", 2, {"count": spec})
        yield from _told("blind in a job", [*place.work(policy=policy, job=job()), *place.records("nodes")])
        start = {"how": "config", "step": 1, "attempts": 9}
        spec = StageSpec(run="tests.execution.nowhere:at_all", reads=("count", "seed"))
        place = Place(root / "no module", 3, {"count": spec})
        yield from _told("no module", [*place.work(), *place.records("nodes")])
        place = Place(root / "memory in a job", 1, fail={**start, "how": "memory"})
        rungs = {Cause.OOM_HOST: (0, 1)}
        yield from _told("memory in a job", [*place.work(job=job(rungs=rungs)), *place.records("records")])


def shared_gpus() -> Answers:
    """Stages with numbers of GPUs of their own, and what workers hold."""
    with tempfile.TemporaryDirectory() as name:
        command = "sh -c 'echo GPUs: $CUDA_VISIBLE_DEVICES $0' {config.seed}"
        spec = StageSpec(command=command, reads=("seed",), metric={"gpus": "GPUs: ([0-9,]*)"})
        place = Place(Path(name) / "p", 3, {"fit": spec})
        digests = [cell.stage_digests[0] for cell in place.sweep.cells]
        share = GpuShare(
            ids=("4", "5", "7"),
            token=f"t{os.getpid()}",
            stages={digests[0]: 2, digests[1]: 9},
            chosen=frozenset(digests[:1]),
            default=1,
        )
        lines = place.work(gpus=share, num_gpus=3, device="A100", policy={"retries": {"unknown": 0}})
        yield from _told("shared", [*lines, *place.records("done"), *place.records("sweeps/counts/workers")])
        rows = [place.ledger.attempts(instance_of(place.sweep, cell)) for cell in range(3)]
        yield "chosen", [[each.claim and each.claim.chosen_gpus for each in attempts] for attempts in rows]


def adopted() -> Answers:
    """Checkpoints of attempts that are gone."""
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name) / "p", 1, num_steps=4)
        fail = {"how": "kill", "step": 4, "attempts": 2}
        place = Place(Path(name) / "kill", 1, num_steps=4, fail=fail)
        yield from _told(
            "killed twice", [*place.work(), *place.records("records"), *place.records("payload")]
        )
        instance = instance_of(place.sweep)
        attempts: Sequence[Attempt] = place.ledger.attempts(instance)
        yield "parents", [each.start and each.start.parent for each in attempts]
        kept = Place(Path(name) / "kept", 1, num_steps=3)
        kept.work(policy={"keep_checkpoints": True})
        folders = sorted(
            str(path.relative_to(kept.store)) for path in kept.store.glob("payload/**/checkpoints/*")
        )
        yield "kept", [kept.plain(each) for each in folders]
        made = Place(Path(name) / "made", 1)
        make_product(made.ledger, instance_of(made.sweep))
        yield from _told("made before", made.work())


ASKED: dict[str, Callable[[], Answers]] = {
    "worked": worked,
    "chained": chained,
    "stopped": stopped,
    "shared_gpus": shared_gpus,
    "adopted": adopted,
}
