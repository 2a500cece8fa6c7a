"""What a launch would do, what requests mean together, and what is claimed next, is as recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import msgspec

from orchestrator.core.evidence import Hold, Holds
from orchestrator.core.failure import Cause
from orchestrator.core.plan import ReadyIndex, codes_of, decide, is_claimable, next_stage, summarize_requests
from orchestrator.core.records import Owner, Process, Request
from orchestrator.core.settings import Policy, RunSettings, SpendingLimit, StoreSettings, TrackerSettings
from orchestrator.core.state import CellStatus, StageStatus, State
from orchestrator.core.sweep import Cell, Input, StageInstance
from orchestrator.jobs.records import WorkerRecord, spending
from tests.recording import Answers

STATES = tuple(
    map(State, "done running queued failed lost blocked released cancelled pending unknown".split())
)
INSTANCES = {
    "a": StageInstance(stage="a", digest="a", reads={}),
    "b": StageInstance(stage="b", digest="b", reads={}, inputs=(Input("a", "", "a"),)),
    "c": StageInstance(stage="c", digest="c", reads={}, inputs=(Input("a", "", "a"),)),
}
CELLS = tuple(
    Cell(id=f"of {last}", axes={}, columns={}, config={}, stage_digests=("a", last)) for last in ("b", "c")
)


def status(state: State, cause: Cause | None = None, retired: str = "") -> StageStatus:
    return StageStatus(state, f"it is {state}", cause, 1, 1.0, retired)


def actions() -> Answers:
    """What a launch would do with the stages of a cell."""
    for state, cause in itertools.product(STATES, (None, *Cause)):
        if cause is None or state is State.FAILED:
            stages = {"a": status(state, cause), "b": status(State.PENDING)}
            found = decide(CELLS[0], CellStatus(state, "", cause, 1, stages))
            yield (
                f"{state} {cause}",
                {digest: (str(step.action), step.reason) for digest, step in found.items()},
            )


def requests() -> Answers:
    """What requests mean together."""
    settings = RunSettings(
        launcher={"name": "local"},
        tracker=TrackerSettings(),
        policy=Policy(budget=SpendingLimit(gpu_hours=7)),
        store=StoreSettings(),
    )
    kinds = {
        "launch": Request(nonce="", number=0, verb="launch", revision=1, after={"a": 2}, settings=settings),
        "launch b": Request(nonce="", number=0, verb="launch", revision=2, cells=("of b",), after={"b": 1}),
        "rerun": Request(
            nonce="", number=0, verb="rerun", revision=3, cells=("of b",), after={"a": 1, "b": 3}
        ),
        "rerun all": Request(nonce="", number=0, verb="rerun", revision=4, failures={"c": 2}, after={"b": 2}),
        "cancel": Request(nonce="", number=0, verb="cancel", revision=5, cells=("of c",)),
        "cancel all": Request(nonce="", number=0, verb="cancel", revision=6),
        "discard": Request(nonce="", number=0, verb="discard", revision=7, after={"c": 4, "a": 3}),
        "unknown": Request(nonce="", number=0, verb="unknown", revision=8, after={"a": 9}),
    }
    cells = [cell.id for cell in CELLS]
    yield "none", summarize_requests([], cells)
    for names in itertools.product(kinds, repeat=2):
        made = [
            msgspec.structs.replace(
                kinds[name], number=number, provenance={"code": name} if number > 1 else {}
            )
            for number, name in enumerate(names, start=1)
        ]
        found = summarize_requests(made, cells)
        fields = {**found._asdict(), "cancelled": sorted(found.cancelled), "limit": found.limit.gpu_hours}
        yield ", ".join(names), (fields, codes_of(made, found.asked), found.budget("a", {Cause.NAN: 1}))


def claims() -> Answers:
    """Which stage is claimed next, before and after records changed."""
    holds = {
        "": Holds(),
        "a held": Holds(stages={"a": Hold("for good")}),
        "a held for a while": Holds(stages={"a": Hold("waits", is_final=False)}),
        "a cell held": Holds({"of b": Hold("for good")}),
        "a cell held for a while": Holds({"of b": Hold("waits", is_final=False)}),
    }
    for first, second, third in itertools.product(STATES, STATES, (State.DONE, State.PENDING, State.RUNNING)):
        states = {"a": status(first), "b": status(second), "c": status(third)}
        for (held, hold), cancelled in itertools.product(holds.items(), (frozenset(), frozenset({"of b"}))):
            found = next_stage(CELLS, INSTANCES, states.__getitem__, cancelled=cancelled, holds=hold)
            index = ReadyIndex(CELLS, INSTANCES)
            counted = index.count(states.__getitem__, cancelled=cancelled, holds=hold)
            then = {**states, "a": status(State.DONE)}
            index.touch(["a"])
            later = index.next_stage(then.__getitem__, cancelled=cancelled, holds=hold)
            index.leave_out("b")
            without = index.next_stage(then.__getitem__, cancelled=cancelled, holds=hold)
            yield (
                f"{first} {second} {third}, {held}, {' '.join(cancelled)}",
                [
                    (
                        *((each.claimable.cell.id, each.claimable.instance.digest) if each.claimable else ()),
                        each.waiting,
                    )
                    for each in (found, later, without)
                ]
                + [counted],
            )
    for state, taken, retired in itertools.product(STATES, STATES, ("", "1 file")):
        yield (
            f"{state} after {taken} {retired}",
            is_claimable(status(state), [status(taken, retired=retired)]),
        )


def spent() -> Answers:
    """What workers have spent, by how many there are and how many run."""
    owner = Owner(host="here", process=Process(boot_id="b", namespace="n", pid=1, start="s"))

    def worker(num_gpus: float, seconds: float, *until_saved: float) -> WorkerRecord:
        return WorkerRecord(
            nonce="n", owner=owner, revision=1, num_gpus=num_gpus, seconds=seconds, until_saved=until_saved
        )

    some = [worker(4, 100.0, 30.0, 50.0), worker(2, 10.0, 40.0), worker(1, 1.0)]
    for number, running in itertools.product(range(4), range(4)):
        yield (
            f"{number} workers, {running} run",
            tuple(spending(some[:number], some[:running], checkpoint_s=9.0)),
        )


ASKED: Mapping[str, Callable[[], Answers]] = {
    each.__name__: each for each in (actions, requests, claims, spent)
}
