"""Cells, chains, identities and gates of many grids, and what they refuse, are as recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from orchestrator.core import identity
from orchestrator.core.evidence import Hold, Holds
from orchestrator.core.gates import (
    Gate,
    GateRule,
    Gates,
    gate_jobs,
    gates_of,
    gates_of_requests,
    is_given_up,
    stands_for,
    too_dear,
    with_gates,
)
from orchestrator.core.grid import Chains, Grid
from orchestrator.core.records import Request
from orchestrator.core.sealed import Cut
from orchestrator.core.selector import Selectors, Subject
from orchestrator.core.state import StageStatus, State
from orchestrator.core.sweep import Cell, ComposedSweep, Input, StageInstance
from orchestrator.registry import load
from orchestrator.stage import StageSpec
from tests.core.test_gate_rules import FACTS, SPECS, SWEEP, sweep_of
from tests.recording import Answers, answer

CONFIG: dict[str, Any] = {"seed": 1, "lr": 0.1, "train": {"steps": 30, "note": "x"}, "langs": ["en", "sw"]}
FIT = StageSpec(run="m:fit", reads=("train", "seed"))
SCORE = StageSpec(run="m:score", after=("fit",), each={"lang": "langs"})
CUT = Cut("fit", "train.steps", (10, 20, 30))


def chains() -> Answers:
    """The chains of configs under specs, some of them cut into parts."""
    specs: dict[str, dict[str, StageSpec]] = {
        "one": {"fit": FIT},
        "two": {"fit": FIT, "score": SCORE},
        "a function of a command": {"fit": replace(FIT, run=None, command="a {config.seed}")},
        "own neutral": {"fit": replace(FIT, neutral={"sead": 1, "train.note": "x"})},
        "built-in neutral": {"fit": replace(FIT, name="fit", neutral={"sead": 1})},
        "neutral value": {"fit": replace(FIT, neutral={"train.note": "x", "seed": 1.0})},
        "skipped": {"fit": FIT, "score": replace(SCORE, skip="seed=1")},
        "all skipped": {"fit": replace(FIT, skip="seed=1")},
        "alike unknown": {"fit": replace(FIT, alike=("sead",))},
        "reads unknown": {"fit": replace(FIT, reads=("sead",))},
        "uses unknown": {"fit": replace(FIT, uses=("sead",))},
        "each unknown": {"fit": replace(FIT, each={"x": "lang"})},
        "each of a number": {"fit": replace(FIT, each={"x": "seed"})},
        "each of an empty list": {"fit": replace(FIT, each={"x": "none"})},
        "all keys": {"fit": replace(FIT, reads=("*",))},
        "paired": {"fit": replace(FIT, each={"lang": "langs"}), "score": SCORE},
        "a gate": {"check": StageSpec(run="m:c", reads=("seed",)), "fit": replace(FIT, gated_by=("check",))},
        "a gate of unknown": {
            "check": StageSpec(run="m:c", reads=("sead",)),
            "fit": replace(FIT, gated_by=("check",)),
        },
    }
    configs: dict[str, dict[str, Any]] = {
        "": CONFIG,
        "steps 10": {**CONFIG, "train": {"steps": 10, "note": "x"}},
        "a path": {**CONFIG, "seed": "/data"},
        "nan": {**CONFIG, "lr": float("nan")},
        "an empty list": {**CONFIG, "none": []},
        "no words": {**CONFIG, "seed": {1, 2}},
    }
    for (name, given), (which, config), cut in itertools.product(specs.items(), configs.items(), (None, CUT)):
        if (which and name not in ("two", "each of an empty list", "a gate")) or (
            cut and which not in ("", "a path")
        ):
            continue
        for where in ("", "s.yaml"):
            question = f"{name}, {which}, {'cut' if cut else 'whole'}, {where}"

            def made(given: Any = given, config: Any = config, cut: Any = cut, where: str = where) -> object:
                found = Chains(given, where=where, cut=cut)
                chain = found.chain(Subject({"seed": str(config["seed"])}, {}, config))
                again = found.chain(Subject({"seed": "2"}, {}, {**config, "seed": 2}))
                found.check_neutral(config)
                stages = [(*_plain(each), each.later) for each in found.stages.values()]
                return [d[:6] for d in chain], [d[:6] for d in again], stages

            yield question, answer(made)


def grids() -> Answers:
    """The cells that selectors leave, the checks of labels, and notes."""
    selectors = {
        "all": ([], []),
        "early": (["seed=1"], []),
        "late": (["train.steps=30 seed=2"], []),
        "both": (["seed=1", "train.steps=30 lr=0.2"], []),
        "in": ([], ["seed=1"]),
        "in, late": ([], ["seed=1", "train.steps=30 lr=0.1"]),
        "in and out": (["lr=0.1"], ["seed=1"]),
        "none": (["seed=*"], []),
        "unknown": (["seed=9"], []),
        "unknown in": ([], ["lr=9"]),
        "unknown, late": (["train.steps=31"], []),
        "unknown key": (["sead=1"], []),
    }
    axes = [{"seed": str(seed), "lr": str(lr)} for seed, lr in itertools.product((1, 2, 3), (0.1, 0.2))]
    for (name, (out, included)), reads, known in itertools.product(
        selectors.items(), (("seed", "lr"), ("seed",)), ({}, {"seed": ("1", "2", "3", "9")}, None)
    ):

        def made(out: Any = out, included: Any = included, reads: Any = reads, known: Any = known) -> object:
            parsed = Selectors.parse(out, included, known or {})
            grid = Grid(
                parsed, {"n": "train.steps"}, {"fit": StageSpec(run="m:f", reads=reads)}, where="s.yaml"
            )
            first = (grid.sum_text, grid.merged, len(grid.stages))
            if known is not None:
                grid.check_labels(axes)
            kept = [labels for labels in axes if grid.admits(labels)]
            for labels in kept:
                grid.add(
                    dict(labels),
                    "_".join(labels.values()),
                    {**CONFIG, "seed": int(labels["seed"]), "lr": float(labels["lr"])},
                )
            cells, notes = grid.cells((3, 2), 6)
            shown = [(cell.id, cell.columns, cell.config["lr"], len(cell.stage_digests)) for cell in cells]
            return (
                first,
                kept,
                shown,
                notes,
                grid.sum_text,
                grid.merged,
                grid.admits({"seed": "1", "lr": "0.1"}),
            )

        yield f"{name}, reads {reads}, labels {known}", answer(made)
    empty = Grid(Selectors.parse(["seed=1"], [], {}), {}, {"fit": FIT})
    yield "no point", answer(lambda: (empty.check_labels([]), empty.cells((), 0)))
    for number in (1, 2, 3, 4, 5, 9):
        grid = Grid(Selectors.parse([], [], {}), {}, {"fit": StageSpec(run="m:f")})
        for place in range(number):
            grid.add({"seed": str(place // 2)}, str(place // 2), {**CONFIG, "seed": place // 2})
        cells, notes = grid.cells((number,), number - 1)
        yield f"{number} alike", (len(cells), notes, grid.sum_text)
    for cut in (None, CUT):
        grid = Grid(Selectors.parse([], [], {}), {}, {"fit": FIT}, where="s.yaml", cut=cut)
        grid.add({}, "x", CONFIG)
        yield f"cut {cut is not None}", len(grid.cells((), 1)[0][0].stage_digests)
    yield "no column", answer(lambda: empty_column())


def empty_column() -> None:
    Grid(Selectors.parse([], [], {}), {"n": "train.step"}, {"fit": FIT}, where="s.yaml").add({}, "x", CONFIG)


def identities() -> Answers:
    """Ids, digests and earlier versions."""
    for value in ({"target": "/bin/x"}, {"a": {"target": "/bin/x"}}, {"a": ["/x", "~/y"]}, {"a": "file:///x"}, {"a": object}, {1: 2}, {"a": {"b": float("inf")}}, "/x", float("nan"), ["~"]):  # fmt: skip
        for where in ("", "stage 'fit'"):
            yield (
                f"{value} {where}"[:70],
                answer(lambda value=value, where=where: identity.canonical(value, where=where)),
            )  # type: ignore[misc]
            yield (
                "  digest",
                answer(lambda value=value, where=where: identity.digest_of(value, where=where)[:9]),
            )  # type: ignore[misc]
    yield "stage", answer(lambda: identity.stage_digest("m:f", 1, {"a": "/x"}, [], where="here"))
    yield "texts", [identity.canonical(text) for text in ("é", "e\u0301", "a", "\u00e9x", "K")]
    yield (
        "ids",
        identity.cell_ids(
            ["..a..", "-", "a b", "a-b", "x" * 300, "日" * 300, "a"], [[str(n)] for n in range(7)]
        ),
    )
    yield "no ids", identity.cell_ids([], [])
    for keys in (("a",), ("a.b", "a"), ("a", "a.b"), ("a.c",), ("a.x",), ("*",), ("*", "a.b"), ("x.y", "a")):
        config = {"a": {"b": 1, "c": {"d": 2}}, "x": {"y": None}}
        yield (
            f"slice {keys}",
            answer(lambda keys=keys: identity.slice_of(config, keys, what="the stage reads")),
        )  # type: ignore[misc]
        for carve in ((), ("a.b",), ("a.c.d", "x")):
            yield (
                f"  carved {carve}",
                answer(
                    lambda keys=keys, carve=carve: identity.slice_of(
                        config, keys, what="it reads", carve=carve
                    )
                ),
            )  # type: ignore[misc]
        spec = StageSpec(run="m:f", reads=keys, uses=("a.b", "x.y"))
        yield "  reads", answer(lambda spec=spec: identity.reads_of(spec, config))  # type: ignore[misc]
        yield "  uses", answer(lambda spec=spec: identity.uses_of(spec, config))  # type: ignore[misc]
    evaluate = load("orchestrator.sft.stages:EVALUATE")
    before = load("orchestrator.sft.stages:EVALUATE_BEFORE")
    reads = {
        key: {"x": 1} if "." not in key else 1
        for key in (*evaluate.reads, *(k for b in before for k in b.reads))
    }
    tree: dict[str, Any] = {}
    for key in sorted(reads, key=len):
        part = tree
        *above, last = key.split(".")
        for each in above:
            part = part.setdefault(each, {})
        part.setdefault(last, {"x": 1})
    instance = StageInstance(stage="evaluate", digest="d", label="en", reads=tree | dict.fromkeys(evaluate.each, "en"), inputs=(Input("train", "", "t"),))  # fmt: skip
    for name, spec in {
        "as shipped": evaluate, "own version": replace(evaluate, version=99), "own": replace(evaluate, name=None),
        "another": replace(evaluate, name="train"),
    }.items():  # fmt: skip
        yield (
            f"earlier, {name}",
            [(_plain(each), sorted(each.reads)) for each in identity.formers(spec, instance)],
        )
    yield "use", identity.use_of(evaluate)
    yield "no keys", identity.former_instance(replace(before[0], reads=("nowhere",)), instance)
    spec = StageSpec(run="m:f", reads=("a",), each={"lang": "langs"}, version=3)
    small = StageInstance(
        stage="fit",
        digest="d",
        label="en",
        reads={"a": 1, "b": 2, "lang": "en"},
        inputs=(Input("t", "", "t"),),
    )
    for changed in (
        spec,
        replace(spec, version=2),
        replace(spec, each={}),
        replace(spec, reads=("b",)),
        replace(spec, neutral={"a": 1}),
    ):
        found = identity.former_instance(changed, small)
        yield (
            f"earlier {changed.version} {changed.each} {changed.reads}",
            found and (_plain(found), found.reads),
        )
    sealed = sealed_sweep()
    yield "sealed", answer(lambda: identity.check_digests(sealed, "s@1"))
    for name, stages in {
        "another digest": {"f" * 64: next(iter(sealed.stages.values()))},
        "no such stage": {d: replace(each, stage="x") for d, each in sealed.stages.items()},
        "another config": {
            d: replace(each, reads={**each.reads, "seed": 9}) for d, each in sealed.stages.items()
        },
        "a path": {d: replace(each, reads={**each.reads, "seed": "/x"}) for d, each in sealed.stages.items()},
        "another input": {d: replace(each, inputs=()) for d, each in sealed.stages.items()},
    }.items():
        yield (
            f"forged: {name}",
            answer(lambda stages=stages: identity.check_digests(replace(sealed, stages=stages), "s@1")),
        )  # type: ignore[misc]


def sealed_sweep() -> ComposedSweep:
    found = Chains({"fit": FIT, "score": SCORE})
    chain = found.chain(Subject({}, {}, CONFIG))
    cell = Cell(id="c", axes={}, columns={}, config=CONFIG, stage_digests=chain)
    return ComposedSweep(name="s", specs=found.specs, stages=found.stages, cells=(cell,))


def gating() -> Answers:
    """The gates of launches."""
    more = sweep_of(("small", "en"), ("large", "es"), ("large", "en es"), ("tiny", "sw"))
    for name, sweep in {"four": SWEEP, "others": more, "no gates": replace(SWEEP, specs={"data": SPECS["data"], "fit": replace(SPECS["fit"], gated_by=())})}.items():  # fmt: skip
        ids = [cell.id for cell in sweep.cells]
        for named in (None, ids[:1], ids[1:3], []):
            gates = gates_of(sweep, FACTS, named)
            labels = {digest: f"g{place}" for place, digest in enumerate(gates.instances)}
            yield f"{name} {named}", _gates(gates, labels)
            rule = GateRule(sweep.cells, gates)
            yield "  waiting", {labels.get(d, d): list(waits) for d, waits in rule.waiting.items()}
            yield "  with", [labels.get(d, d) for d in with_gates(sweep, gates).stages]
            for first, second, third in itertools.product(
                State, (State.PENDING, State.DONE, State.FAILED), (State.PENDING, State.DONE)
            ):
                states = [first, second, third]
                statuses = {
                    d: StageStatus(states[n % 3], f"it is {states[n % 3]}")
                    for n, d in enumerate(gates.instances)
                }

                def status(digest: str, statuses: Any = statuses) -> StageStatus:
                    return statuses.get(digest, StageStatus(State.PENDING, "not started"))

                holds = {labels.get(d, d): tuple(hold) for d, hold in rule.holds(status).items()}
                yield f"  {first} {second} {third}", sorted(holds.items())
                stages = {d: status(d) for d in (*sweep.stages, *gates.instances)}
                for hours in ({}, dict.fromkeys(gates.instances, 0.25)):
                    jobs = gate_jobs(sweep.cells, gates, stages, hours)
                    yield f"  jobs {len(hours)}", (sorted(jobs.first), sorted(jobs.later), jobs.seconds)
            digests = [*gates.instances]
            for hours in (
                {},
                dict.fromkeys(sweep.stages, 1.0),
                dict.fromkeys([*sweep.stages, *digests], 1.0),
            ):
                for own in (0.0, 0.01999, 0.02, 0.02001, 0.04, 0.0601):
                    known = hours | (dict.fromkeys(digests, own) if digests and digests[0] in hours else {})
                    for is_done in (lambda d: False, lambda d: d.startswith("fit-small"), lambda d: True):
                        dear = too_dear(gates, known, is_done)
                        yield f"  dear {len(hours)} {own}", {labels[d]: why for d, why in dear.items()}
            for held in (
                {},
                {ids[0]: Hold("x")},
                {i: Hold("x") for i in ids},
                {i: Hold("x", is_final=i != ids[0]) for i in ids},
            ):
                yield (
                    f"  given up {len(held)}",
                    [is_given_up(d, gates, Holds(held)) for d in (*digests, "other")],
                )
    twice = Gates(
        instances={d: StageInstance(stage=d, digest=d, reads={}) for d in ("g", "h")},
        chains={"g": ("g",), "h": ("h",)},
        cells={
            SWEEP.cells[0].id: (
                Gate(digest="g", stages=("fit-small-en",)),
                Gate(digest="h", stages=("fit-small-en",)),
            )
        },
    )
    for first, second in itertools.product((State.DONE, State.RUNNING, State.FAILED), repeat=2):
        both = {"g": StageStatus(first, "it is"), "h": StageStatus(second, "it is")}
        of_two = GateRule(SWEEP.cells, twice).holds(
            lambda d, both=both: both.get(d, StageStatus(State.PENDING, ""))
        )
        yield f"two gates {first} {second}", {d: tuple(hold) for d, hold in of_two.items()}
    asked = {cell.id: 2 for cell in SWEEP.cells}
    for revisions, cells, last in itertools.product(((1, 1), (1, 2), (2, 1)), (None, ("small en",)), (1, 2)):
        requests = [
            Request(
                nonce="",
                number=n,
                verb="launch",
                revision=revision,
                cells=cells if n == 2 else None,
                gates=FACTS,
            )
            for n, revision in enumerate(revisions, start=1)
        ]
        requests.append(Request(nonce="", number=3, verb="cancel", revision=1, cells=None))
        given = {cell: last if cell == "small en" else 1 for cell in asked}
        found = gates_of_requests(SWEEP, 1, requests, given)
        labels = {digest: f"g{place}" for place, digest in enumerate(found.instances)}
        yield f"requests {revisions} {cells} {last}", _gates(found, labels)
    plain = replace(SWEEP, specs={"data": SPECS["data"]})
    yield "none", _gates(gates_of_requests(plain, 1, [Request(nonce="", number=1, verb="launch", revision=1, cells=None, gates=FACTS)], asked), {})  # fmt: skip
    one = StageInstance(stage="check", digest="a", reads={"launch": {"code": "c"}, "x": 1}, inputs=(Input("d", "", "1"), Input("d", "", "2")))  # fmt: skip
    for name, other in {
        "itself": one, "fewer inputs": replace(one, inputs=one.inputs[:1]), "more": replace(one, inputs=(*one.inputs, Input("d", "", "3"))),
        "other reads": replace(one, reads={**one.reads, "x": 2}), "another launch": replace(one, reads={**one.reads, "launch": {"code": "d"}}),
        "another digest": replace(one, digest="b"),
        "more of another digest": replace(one, digest="b", inputs=(*one.inputs, Input("d", "", "3"))),
        "fewer of another digest": replace(one, digest="b", inputs=one.inputs[:1]),
        "another stage": replace(one, stage="chek"),
    }.items():  # fmt: skip
        yield f"stands for {name}", (stands_for(one, other), stands_for(other, one))


def _gates(gates: Gates, labels: Mapping[str, str]) -> object:
    chains = {
        labels.get(d, d): [labels.get(each, each) for each in chain] for d, chain in gates.chains.items()
    }
    cells = {
        c: [(labels.get(g.digest, g.digest), g.stages) for g in found] for c, found in gates.cells.items()
    }
    return (
        [(*_plain(each)[:2], each.reads, each.inputs) for each in gates.instances.values()],
        chains,
        cells,
        Gate(digest="x", stages=()).stages,
    )


def _plain(instance: StageInstance) -> tuple[Any, ...]:
    inputs = [(taken.stage, taken.label, taken.digest[:6]) for taken in instance.inputs]
    return instance.stage, instance.label, instance.digest[:6], inputs


ASKED: Mapping[str, Callable[[], Answers]] = {
    "chains": chains, "grids": grids, "identities": identities, "gating": gating,
}  # fmt: skip
