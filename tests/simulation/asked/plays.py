"""What comes of simulated sweeps, and which rule a wrong change of a store breaks, as recorded."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.records import Retired, StartRecord
from orchestrator.core.schedule import PlannedStage as S
from orchestrator.manifest import File
from orchestrator.saving import CheckpointManifest
from orchestrator.simulation import schedules
from orchestrator.simulation.invariants import Invariants
from orchestrator.simulation.scenario import FaultKind, FaultTable, fault_table
from orchestrator.simulation.world import Machine, SimulatedProcess, World
from tests.recording import Answers, answer, plain
from tests.simulation.cluster import POLICY, gates_of, play, table
from tests.simulation.runs import CLASSES
from tests.store.builders import claim, owner, void

WORK = {"base": S(2, 1), "a": S(10, 4, ("base",)), "b": S(6, 2, ("base",)), "c": S(1, 0)}
X_SHA256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
CELLS = {"one": ["base", "a"], "two": ["base", "b"], "three": ["c"]}
SAVES = {"interval_s": 3600.0, "save_share": 0.1, "stop_s": 60.0, "load_s": 30.0}


def outcomes() -> Answers:
    """Hours, attempts, faults and where the GPUs' time went."""
    both = FaultTable(
        source="ours",
        gpu_hours=10.0,
        faults=(
            FaultKind(name="x", count=1.0, cause="communication"),
            FaultKind(name="y", after_s=1800.0, cause="data", stage="b"),
        ),
    )  # type: ignore[arg-type]
    full = FaultTable(
        source="ours", gpu_hours=1.0, faults=(FaultKind(name="full", cause="storage", full_hours=(1.0, 4.0)),)
    )  # type: ignore[arg-type]
    cases: dict[str, dict[str, Any]] = {
        "calm": {},
        "few GPUs": {"num_gpus": 4},
        "in order": {"longest_first": False, "num_gpus": 4},
        "small nodes": {"gpus_per_node": 4},
        "preempted": {"checkpoints": SAVES, "preempt_s": 7200.0},
        "faults": {"checkpoints": SAVES, "faults": table("communication", 0.05), "seed": 2},
        "lost nodes": {"faults": table("node_lost", 0.03, node_hours=2.0), "seed": 3, "gpus_per_node": 4},
        "bad nodes": {"faults": table("bad_node", 0.05, node_hours=5.0), "seed": 4},
        "unknown": {"faults": table("unknown", 0.1), "seed": 1},
        "two kinds": {"faults": both, "seed": 5},
        "a full disk": {"faults": full, "checkpoints": SAVES},
        "late starts": {"job_start_s": 600.0},
        "true hours": {"true_hours": {"a": 1.0, "b": 20.0}},
    }
    for name, more in cases.items():
        more = dict(more)
        found = play(WORK, more.pop("num_gpus", 8), CELLS, **more)
        good = found.goodput and {
            "total": round(found.goodput.total),
            "parts": _rounded(found.goodput.parts),
            "lost": _rounded(found.goodput.lost_by),
        }
        yield (
            name,
            (
                round(found.hours, 3),
                found.attempts,
                found.faults,
                found.num_left_out,
                found.num_remedied,
                good,
            ),
        )
        yield (
            f"{name}, cells",
            {cell: (str(status.state), status.reason) for cell, status in found.cells.items()},
        )
    gates = gates_of(WORK, {"one": ("gate", ["a"])})
    work = {**WORK, "gate": S(1, 1)}
    for held in (True, False):
        found = play(work, 8, CELLS, gates=gates, are_held=held, policy=POLICY)
        yield (
            f"gates {held}",
            (
                round(found.hours, 3),
                found.attempts,
                round(found.gate_gpu_hours, 3),
                found.goodput and _rounded(found.goodput.parts),
            ),
        )


def _rounded(parts: Any) -> dict[str, int]:
    return {str(name): round(amount) for name, amount in parts.items() if amount > 0.5}


def fault_tables() -> Answers:
    """Tables of faults, and files that are none."""
    for name in ("none", "llama3", "x10", "x0", "y10", "/nowhere.json"):
        found = answer(lambda of=name: fault_table(of))
        yield (
            name,
            found
            if isinstance(found, str)
            else (found.source[:30], round(found.gpu_hours, 3), len(found.faults), plain(found.faults[:1])),
        )  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        fault = {"name": "hang", "count": 2, "cause": "unknown"}
        for change in (
            {},
            {"gpu_hours": 0},
            {"gpu_hours": "x"},
            {"faults": [{**fault, "count": -1}]},
            {"faults": [{**fault, "cause": "x"}]},
            {"faults": [{**fault, "odd": 1}]},
            {"faults": [{**fault, "full_hours": [1, -1]}]},
        ):
            path.write_text(json.dumps({"source": "ours", "gpu_hours": 10, "faults": [fault], **change}))
            yield f"{change}", plain(answer(lambda: fault_table(str(path)))).replace(folder, "FOLDER")
        path.write_text("{")
        yield "no JSON", plain(answer(lambda: fault_table(str(path)))).replace(folder, "FOLDER")


class _Store:
    """A store of bytes whose changes are checked, in a world in which nothing runs."""

    def __init__(self) -> None:
        self.world = World(0)
        self.data: dict[str, bytes] = {}
        self.lost: set[str] = set()
        self.rules = Invariants(
            self.world, self.data.get, lambda key: None if key in self.lost else self.data.get(key)
        )

    def put(self, key: str, record: object, kind: str = "create") -> None:
        """Writes a record, at once."""
        self.data[key] = record if isinstance(record, bytes) else msgspec.json.encode(record)
        self.rules.changed(kind, key)

    def puts(self, *given: Any, **more: Any) -> Callable[[], None]:
        """What `put` will do."""
        return partial(self.put, *given, **more)

    def act(self, question: str, *changes: Callable[[], None]) -> tuple[str, object]:
        """Makes changes, and returns the rule that they broke."""
        for change in changes:
            change()
        return question, self.broken()

    def broken(self) -> str:
        """The rule that was broken since the last call of this, "" for none."""
        failure, self.world._failure = self.world._failure, None
        return str(failure or "")


def _at(name: str, digest: str = "d") -> str:
    return f"records/fit/{digest}/{name}"


def rules() -> Answers:
    """Changes of a store that no order of steps may make."""
    store = _Store()
    mine = claim(owner=owner(pid=7))
    act, put = store.act, store.puts
    yield act("a claim", put(_at("1/claim.json"), mine))
    yield act("a claim again", put(_at("1/claim.json"), mine))
    yield act("another claim", put(_at("1/claim.json"), claim(lease_s=1.0)))
    yield act("a claim too early", put(_at("3/claim.json"), mine))
    yield act("no record", put(_at("9/claim.json", "e"), b"{"))
    yield act("a claim gone", partial(store.rules.changed, "unlink", _at("1/claim.json")))
    yield act(
        "a start", put(_at("1/start.json"), StartRecord(parent=None, uses={}, provenance={}, inputs={}))
    )
    yield act("a temporary file", put(_at("1/.claim.json"), b"x"))
    yield act("a beat", put(_at("1/heartbeat.json"), b"{}"))
    yield act("a beat gone", partial(store.rules.changed, "unlink", _at("1/heartbeat.json")))
    whole = File("f", 1, X_SHA256)
    done = {
        "nonce": "n",
        "stage": "fit",
        "digest": "d",
        "generation": 1,
        "attempt": 1,
        "files": [msgspec.to_builtins(whole)],
        "rows": [],
        "seconds": 1.0,
        "inputs": {},
        "retire": {},
    }
    yield act("a product without its file", put("done/fit/d.1.json", done))
    store.data["payload/fit/d/1/output/f"] = b"x"
    yield act(
        "a product", put("done/fit/d.2.json", {**done, "generation": 2}), put("done/fit/d.1.json", done)
    )
    store.lost.add("payload/fit/d/1/output/f")
    yield act("not durable", put("done/fit/d.1.json", done))
    yield act("a wrong void", put("void/fit/d.1.json", void(1)))
    store.lost.clear()
    yield act("a void of a whole product", put("void/fit/d.1.json", void(1)))
    yield act("a file deleted", partial(store.rules.changed, "unlink", "payload/fit/d/1/output/f"))
    taken = Retired(nonce="n", generation=1, attempt=1, policy="best", files=(whole,), why="taken", by="test")
    yield act(
        "a file retired",
        put("retired/fit/best/d.1.json", taken),
        partial(store.rules.changed, "unlink", "payload/fit/d/1/output/f"),
    )
    yield act("another file deleted", partial(store.rules.changed, "unlink", "payload/fit/d/1/output/g"))
    yield act("a void gone", partial(store.rules.changed, "unlink", "void/fit/d.1.json"))


def rules_of_attempts() -> Answers:
    """Checkpoints and records that an attempt may not write."""
    store = _Store()
    mine = claim(owner=owner(pid=7))
    machine = Machine("one")
    whole = File("f", 1, X_SHA256)
    act, put = store.act, store.puts
    yield act("a claim", put(_at("1/claim.json"), mine))
    saved = CheckpointManifest(step=1, attempt=1, files=(whole,))
    folder = "payload/fit/d/1/checkpoints/1"
    yield act("a checkpoint without its file", put(f"{folder}/manifest.json", saved, kind="rename"))
    store.data[f"{folder}/f"] = b"x"
    yield act("a checkpoint", put(f"{folder}/manifest.json", saved, kind="rename"))
    yield act("a second attempt", put(_at("2/claim.json"), claim(owner=owner(pid=8), supersedes=1)))
    parent = {"attempt": 1, "step": 1}
    yield act(
        "late",
        partial(setattr, store.world, "now_s", 100.0),
        put(_at("2/start.json"), {"parent": parent, "uses": {}, "provenance": {}, "inputs": {}}),
    )
    store.world.current = SimulatedProcess("0", machine, lambda: None, 0.0)
    store.world.current.name = mine.owner.process.start
    yield act("by another", put(_at("2/heartbeat.json"), b"{}"))
    store.world.current.name = "w5"
    yield act("by a stranger", put(_at("1/heartbeat.json"), b"{}"))
    yield "claims", store.rules.claims_of(mine.owner.process.start)


def calm_runs() -> Answers:
    """What workers print in runs which nothing befalls."""
    for kind in ("workers", "jobs", "ray"):
        lines: list[str] = []
        played = schedules.play(3, is_calm=True, lines=lines, kind=CLASSES[kind])
        said = [re.sub(r"^\S+ (\w+?)[\d._]+ ", r"\1 ", line).strip() for line in lines if " say " in line]
        yield f"{kind}, result", (played.problem, dict(played.events))
        for line in said:
            yield kind, line


ASKED: dict[str, Callable[[], Answers]] = {
    "outcomes": outcomes,
    "fault_tables": fault_tables,
    "rules": rules,
    "rules_of_attempts": rules_of_attempts,
    "calm_runs": calm_runs,
}
