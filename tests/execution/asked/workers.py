"""Small decisions of workers, and what they read and write of attempts, as recorded."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from orchestrator.core.evidence import Attempt
from orchestrator.core.failure import Cause
from orchestrator.execution import assignment
from orchestrator.execution.assignment import ChildOutcome, GpuShare, Message
from orchestrator.execution.gpus import GpuPool
from orchestrator.execution.history import WorkerHistory, is_replaced
from orchestrator.execution.spending import _merged
from orchestrator.jobs.nodes import NodeReports
from orchestrator.jobs.records import JobContext
from tests.execution.faults import order_for
from tests.recording import Answers
from tests.shared.asked.files import listed
from tests.store.builders import claim, end, ledger_at, owner, sweep_of


class _Ran:
    def __init__(self, *, ran: bool, got_on: bool) -> None:
        self.was_running, self.made_progress = ran, got_on


def decisions_of_workers() -> Answers:
    """Whether workers go on, which cells they try, and which GPUs they take."""
    sweep = sweep_of(8)
    for slot, of, cells in itertools.product(
        (0, 1, 3), (1, 4), (None, ("seed5", "seed0", "seed2"), ("seed1", "seed3"))
    ):
        order = order_for("/s", "counts", slot=slot, num_slots=of, cells=cells)
        yield (
            f"share {slot} {of} {cells}",
            [cell.id for cell in assignment.share(sweep.cells, order, later=("seed7",))],
        )
    job = JobContext(cluster="lab", job="7", array_index=2, restart_count=1, node="n3")
    for name, given in {"no job": None, "job": job, "no node": msgspec.structs.replace(job, node="")}.items():
        found = assignment.this_owner(order_for("/s", "counts", slot=5, job=given), os.getpid())
        yield (
            f"owner {name}",
            (
                found.host in ("n3",),
                found.cluster,
                found.job,
                found.array_index,
                found.restart_count,
                found.slot,
            ),
        )
    causes = {
        "bad": end(cause=Cause.BAD_NODE),
        "config": end(cause=Cause.CONFIG),
        "memory": end(cause=Cause.OOM_HOST),
        "late": end("released", why="deadline"),
        "well": end("succeeded"),
        "unknown": end(),
    }
    for names, in_job, ran in itertools.product(
        (*itertools.product(causes, repeat=2), ("bad",), ("late",), ("well",)), (False, True), (False, True)
    ):
        history = WorkerHistory(in_job=in_job)
        for number, name in enumerate(names):
            history.add(
                f"d{number}", _Ran(ran=ran, got_on=name == "memory"), causes[name], name, is_replaced=False
            )
        yield (
            f"{names} {in_job} {ran}",
            (
                history.refusal(lambda digests: []),
                history.refusal(lambda digests: ["d0"]),
                [history.exit_code(why) for why in ("deadline", "stopped")],
                history.is_late,
                history.is_starved,
                history.has_progressed,
                [what for what, _ in history.faults],
            ),
        )
    replaced = WorkerHistory(in_job=True)
    replaced.add("d", _Ran(ran=True, got_on=False), causes["late"], "x", is_replaced=True)
    yield "replaced", replaced.refusal(lambda digests: [])
    lines: list[str] = []
    broken = WorkerHistory(in_job=False)
    broken.add("d", _Ran(ran=True, got_on=False), causes["bad"], "fit 1", is_replaced=False)
    with tempfile.NamedTemporaryFile() as file:
        broken.report_faults(NodeReports(ledger_at(Path(file.name) / "x"), 1.0), owner(), "s", lines.append)
        yield "not reported", ([line.replace(file.name, "FILE") for line in lines], broken.faults)
    me = owner(cluster="lab", job="7", array_index=1, restart_count=1)
    for change in (
        {},
        {"restart_count": 2},
        {"job": "8", "restart_count": 2},
        {"array_index": 2, "restart_count": 2},
        {"cluster": "x", "restart_count": 2},
    ):
        theirs = msgspec.structs.replace(me, **change)
        yield (
            f"is replaced {change}",
            [
                is_replaced([Attempt(number=1, claim=claim(owner=theirs))], of)
                for of in (me, msgspec.structs.replace(me, job=""))
            ],
        )
    share = GpuShare(
        ids=("4", "5", "7"),
        token=f"ask{os.getpid()}",
        stages={"a": 2, "b": 4, "c": 1},
        chosen=frozenset("a"),
        default=5,
    )
    pool, other = GpuPool(share), GpuPool(share)
    digests = ("a", "b", "c", "d")
    yield (
        "free",
        (
            {key: (hold.reason, hold.is_final) for key, hold in pool.holds(digests).stages.items()},
            [pool.chosen(each) for each in digests],
        ),
    )
    with pool.hold("a") as first, other.hold("c") as second, other.hold("a") as third:
        yield (
            "taken",
            (
                first,
                second,
                third,
                {key: (hold.reason, hold.is_final) for key, hold in other.holds(digests).stages.items()},
            ),
        )
    with pool.hold("d") as all_of, pool.hold("b") as too_many:
        yield "all", (all_of, too_many)
    for number in (0, 3, 4):
        other.keep("a", number)
        with other.hold("a") as kept:
            yield f"kept {number}", kept
    for times, child in (
        ({"start": 1.0, "child": 10.0}, Message(times={"compute": 4.0, "save": 1.0}, does="compute")),
        ({"child": 2.0}, Message(times={"compute": 4.0})),
        ({"child": 3.0}, Message()),
        ({"start": 2.0}, Message(times={"compute": 1.0})),
        ({"save": 1.0, "child": 5.0}, Message(times={"save": 2.0})),
    ):
        yield f"time {times} {child.times}", _merged(times, child)


def logs() -> Answers:
    """The end of a log, and the outcome that a child writes."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "log.txt"
        yield "no log", (assignment.end_of_log(path), assignment.log_tail(path))
        for text in ("a\nb\n", "é" * 10, "\n".join(f"line {n}" for n in range(40)), "x" * 9000 + "\nlast\n"):
            path.write_text(text)
            yield (
                f"log {text[:10]!r} {len(text)}",
                (
                    assignment.end_of_log(path, 12),
                    len(assignment.log_tail(path)),
                    assignment.log_tail(path)[-8:],
                ),
            )
        for given in (None, "{", '{"outcome": "failed", "cause": "data"}'):
            if given is not None:
                (Path(name) / "outcome.json").write_text(given)
            yield f"outcome {given}", assignment.read_outcome(Path(name))
        told: list[str] = []
        for outcome in (
            ChildOutcome(outcome="succeeded"),
            ChildOutcome(outcome="failed", cause=Cause.STORAGE),
            ChildOutcome(outcome="failed", cause=Cause.STORAGE, unread=2),
        ):
            for inner in ("output", "scratch"):
                (Path(name) / inner).mkdir(exist_ok=True)
            yield (
                f"written {outcome.outcome} {outcome.unread}",
                (assignment.write_outcome(Path(name), outcome, told.append), listed(Path(name)), told),
            )
            assignment.drop_half(Path(name))
            yield f"dropped {outcome.outcome} {outcome.unread}", listed(Path(name))


ASKED: dict[str, Callable[[], Answers]] = {"decisions_of_workers": decisions_of_workers, "logs": logs}
