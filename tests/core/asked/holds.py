"""What is held back, left out and forecast, for many records, is as recorded, see ../../recording.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from orchestrator.core.evidence import Evidence, Hold, Holds, Spending
from orchestrator.core.failure import Cause
from orchestrator.core.gates import Gate, Gates
from orchestrator.core.holding import (
    attributed,
    holds_of,
    merged,
)
from orchestrator.core.nodes import AgedReport, NodeReport, left_out
from orchestrator.core.settings import Policy, SpendingLimit
from orchestrator.core.state import StageStatus, State, failed_end
from orchestrator.core.sweep import Input, StageInstance
from tests.core.asked.states import HISTORIES
from tests.core.test_breaker import NEW, Records, failed, made
from tests.recording import Answers, answer

FULL = "[Errno 28] No space left on device: 'x'"


def _failing(*names: str, without: str = "", **more: Any) -> dict[str, Evidence]:
    found = failed(**more)
    if without:
        found = found._replace(attempts=(found.attempts[0]._replace(**{without: None}),))
    return dict.fromkeys(names, found)


A, B, C = ("train.math.a.en", "train.math.b.en", "train.math.c.en")
API = ("train.api.a.en", "train.api.b.en", "train.api.c.en", "train.api.d.en")
FOUND: dict[str, dict[str, Evidence]] = {
    "nothing": {},
    "one": _failing(A),
    "two": _failing(A, B),
    "three": _failing(A, B, C),
    "three, one of another code": {**_failing(A, B), **_failing(C, code=NEW)},
    "three, one by another row": {**_failing(A, B), **_failing(C, message="row 2 is bad")},
    "three, one otherwise": {**_failing(A, B), **_failing(C, message="no")},
    "three of both tasks": _failing(A, B, API[0]),
    "all": _failing(A, B, C, "train.math.d.en", *API),
    "three by a machine": _failing(A, B, C, cause=Cause.BAD_NODE),
    "three by chance": _failing(A, B, C, cause=Cause.UNKNOWN),
    "three by chance, twice": _failing(A, B, C, cause=Cause.UNKNOWN, number=2),
    "three that name the class": _failing(A, B, C, message="ValueError: bad"),
    "three of long words": _failing(A, B, C, message="bad " * 100),
    "three on a full disk": _failing(A, B, C, cause=Cause.STORAGE, message=FULL),
    "three, one worked": {**_failing(A, B, C), "train.math.d.en": made()},
    "three, one worked by other code": {**_failing(A, B, C), "train.math.d.en": made(code=NEW)},
    "three, one made nothing": {**_failing(A, B, C), "train.math.d.en": made(rows=())},
    "three, one of another task worked": {**_failing(A, B, C), API[0]: made()},
    "shards": _failing("prepare.math.en", "prepare.api.en"),
    "no start": _failing(A, B, C, without="start"),
    "no code": _failing(A, B, C, code=""),
    "runs": _failing(A, B, C, without="end"),
    "done": {n: failed()._replace(done=made().done) for n in (A, B, C)},
}  # fmt: skip


def breaker() -> Answers:
    """What the rules hold back."""
    asks: Mapping[str, Callable[[Records], None]] = {
        "": lambda store: None,
        "launched again": lambda store: store.ask("launch"),
        "rerun": lambda store: store.ask("rerun"),
        "rerun of one": lambda store: store.ask("rerun", [store.sweep.cells[0].id]),
        "other code": lambda store: setattr(store, "code", NEW),
    }
    for (name, found), (asked, ask), number in itertools.product(
        FOUND.items(), asks.items(), (0, 1, 2, 3, 4)
    ):
        if number != 3 and (asked or name in ("no start", "runs", "done")):
            continue
        store = Records()
        store.found |= found
        store.policy = Policy(retries={"unknown": 1}, breaker=number)
        ask(store)
        records = store.records()
        yield f"{name}, {asked}, breaker {number}", _told(holds_of(records))
        yield f"  attributed {name}", sorted(attributed(records, [A, B, *API, "prepare.math.en"]))
    for name, store in {
        "one axis": Records(("math",), ("a", "b", "c", "d")),
        "two mixtures": Records(("math",), ("a", "b"), ("en", "none")),
        "one cell": Records(("math",), ("a",)),
    }.items():
        for count in (1, 2, 3, 4):
            trains = [digest for digest in store.sweep.stages if digest.startswith("train")][:count]
            store.found |= _failing(*trains)
            store.policy = Policy(breaker=count)
            yield f"{name}, {count} failed", _told(holds_of(store.records()))
            yield "  attributed", sorted(attributed(store.records(), trains))


def gated() -> Answers:
    """What failed gates hold back."""
    for count, breaks in itertools.product((1, 2, 3), (0, 1, 2, 3)):
        store = Records()
        gates = {
            f"g{n}": StageInstance(
                stage="check", digest=f"g{n}", reads={}, inputs=(Input("prepare", "en", "x"),)
            )
            for n in range(3)
        }
        cells = {
            cell.id: (Gate(digest=f"g{n % 3}", stages=("x",)),) for n, cell in enumerate(store.sweep.cells)
        }
        known = Gates(instances=gates, chains={digest: (digest,) for digest in gates}, cells=cells)
        for digest, instance in gates.items():
            store.sweep.stages[digest] = instance
        store.found |= _failing(*list(gates)[:count])
        store.policy = Policy(breaker=breaks)
        records = store.records()._replace(gates=known)
        yield f"{count} gates, breaker {breaks}", _told(holds_of(records))
        yield "  attributed", sorted(attributed(records, [*gates]))


def space() -> Answers:
    """What a full disk and a spent budget hold back."""
    gib = 2**30
    spaces = (None, (0, gib), (int(1.5 * 2**20), gib), (2 * gib, 100 * gib), (100 * gib, 100 * gib))
    edges = tuple((free, total) for total in (gib, 10**15) for free in range(0, 6 * gib, gib // 4))
    for (name, found), free in itertools.product(FOUND.items(), (*spaces, *edges)):
        if name in ("nothing", "three", "three on a full disk") or free == spaces[2]:
            store = Records()
            store.found |= found
            holds = holds_of(store.records()._replace(space=free))
            yield f"{name}, {free}", _told(holds)
            yield "  no space", holds.lack_of_space()
    kept = Hold("for good", cause=Cause.STORAGE)
    yield (
        "for good",
        Holds(
            stages={"a": kept, "b": Hold("x", False), "c": Hold("full", False, Cause.STORAGE)}
        ).lack_of_space(),
    )
    for gpus, spent, now in itertools.product((0, 4), (0.0, 9.0, 10.0), (0.0, 2e9)):
        store = Records()
        limit = SpendingLimit(gpu_hours=10, until="2026-01-01T00:00:00Z")
        store.policy = Policy(budget=limit)
        spending = Spending(3600 * spent, 0, 1800.0, worker_gpus=gpus, at=now)
        yield (
            f"{gpus} GPUs, {spent} h, at {now}",
            _told(holds_of(store.records()._replace(spending=spending))),
        )
    found = [Hold("a"), Hold("b", False), Hold("c"), Hold("d", False)]
    for one, other in itertools.product(found, repeat=2):
        both = merged(Holds({"x": one}, {"y": other}), Holds({"x": other}, {"y": one, "z": one}))
        yield f"{one.reason} and {other.reason}", (both.cells, both.stages)


def costs() -> Answers:
    """What a launch is forecast to cost, and whether its budget allows it."""
    cells = Records().sweep.cells[:3]
    works = {
        "none": {},
        "one": {A: 7200.0},
        "all": {A: 7200.0, B: 3600.0, C: 1800.0, "prepare.math.en": 36.0},
    }
    for (name, work), spent in itertools.product(works.items(), (None, 0.0, 3.0, 4.0, 12.0)):
        for hours, until, few in itertools.product(
            (None, 0.5, 3.0, 3.51, 4.0, 12.345678),
            (None, "2026-01-01T00:00:00Z"),
            (cells, cells[:1], cells[:0]),
        ):
            limit, now = SpendingLimit(gpu_hours=hours, until=until), 1767225600.0
            for moment in (now - 1, now):
                asked = partial(
                    limit.refuse,
                    *("s",),
                    spent_s=3600 * (spent or 0.0),
                    needed_s=sum(work.values()),
                    num_cells=len(few),
                    now=moment,
                )
                yield f"{name}, {spent} h spent, {hours} {until} {len(few)} {moment}", answer(asked)
    for (history, attempts), state in itertools.product(HISTORIES.items(), State):
        end = failed_end(StageStatus(state, ""), Evidence(attempts))
        yield f"{history} {state}", None if end is None else (end.outcome, end.cause)


def reports() -> Answers:
    """Which nodes are left out, by four reports and limits of some length."""
    ages = (-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
    for times in itertools.combinations_with_replacement(reversed(ages), 4):
        for kinds in itertools.product(("failed", "check"), repeat=4):
            if kinds.count("check") > 1:
                continue
            made = [
                AgedReport(NodeReport(nonce="n", number=n, cluster="lab", node="n1", kind=kind), age)  # type: ignore[arg-type]
                for n, (age, kind) in enumerate(zip(times, kinds, strict=True))
            ]
            for limit in (0.0, 1.0, 2.0):
                found = left_out(made, limit).get(("lab", "n1"))
                if found is not None:
                    numbers = [report.number for report in found.reports]
                    yield f"{times} {kinds} {limit}", (round(found.left_s, 3), numbers)
    gaps = (41.0, 81.0, 161.0, 321.0, 641.0, 1281.0, 1281.0)
    again = [
        AgedReport(
            NodeReport(nonce="n", number=n, cluster="lab", node="n1", kind="check"), 9.0 + sum(gaps[n:])
        )
        for n in range(8)
    ]
    for number in range(1, 9):
        since = [each._replace(age_s=each.age_s - again[number - 1].age_s + 9.0) for each in again[:number]]
        yield f"failed again, {number} times", left_out(since, 40.0)["lab", "n1"].left_s


def _told(holds: Holds) -> object:
    """Return holds with what they have in common once."""
    found: dict[object, list[str]] = {}
    for key, hold in (*holds.cells.items(), *holds.stages.items()):
        found.setdefault((hold.reason, hold.is_final, hold.cause, hold.failure), []).append(key)
    return [(*hold, f"{len(keys)}: {keys[0]}, {keys[-1]}") for hold, keys in found.items()]  # type: ignore[misc]


ASKED: Mapping[str, Callable[[], Answers]] = {
    "held": breaker, "gated": gated, "space": space, "costs": costs, "reports": reports,
}  # fmt: skip
