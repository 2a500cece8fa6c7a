"""Orders, times, numbers of GPUs, remedies and selected cells are as recorded, see ../../recording.py."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from orchestrator.core import remedies, schedule
from orchestrator.core.evidence import Attempt, Budget, Evidence
from orchestrator.core.failure import Cause
from orchestrator.core.records import End, StartRecord
from orchestrator.core.schedule import FreeGpus, PlannedStage
from orchestrator.core.selector import Selector, Subject, any_of, refuse_impossible, select
from orchestrator.core.state import State, is_disk_full
from orchestrator.core.sweep import StageInstance
from orchestrator.registry import load
from orchestrator.stage import StageSpec
from tests.core.asked.states import HISTORIES
from tests.recording import Answers, answer


def _works() -> dict[str, dict[str, PlannedStage]]:
    """Stages by chance: up to twelve, with inputs before them, of 0 to 8 GPUs."""
    found: dict[str, dict[str, PlannedStage]] = {"none": {}}
    for seed in range(8):
        rng, work = random.Random(seed), dict[str, PlannedStage]()
        for number in range(rng.randint(1, 12)):
            inputs = tuple(sorted(rng.sample(sorted(work), min(len(work), rng.choice((0, 0, 1, 2))))))
            gpus = rng.choice((0, 1, 1, 1, 2, 4))
            most = rng.choice((0, 0, gpus, 2 * gpus, 8))
            hours = rng.choice((0.0, 1.0, rng.randint(1, 9), round(rng.uniform(0.1, 20), 2)))
            work[f"s{number}"] = PlannedStage(hours, gpus, inputs, most, rng.choice((0.0, 0.0, 0.7, 1.0)))
        found[f"chance {seed}"] = work
    found["a long one"] = {"long": PlannedStage(10, 1)} | {f"x{n}": PlannedStage(1, 1) for n in range(6)}
    found["alike"] = {f"x{n}": PlannedStage(2, 2) for n in range(5)}
    found["a chain"] = {f"x{n}": PlannedStage(4, 1, (f"x{n - 1}",) if n else ()) for n in range(4)}
    found["of no time"] = {"a": PlannedStage(0, 1), "b": PlannedStage(1, 1, ("a",)), "c": PlannedStage(2, 1)}
    found["of another sweep"] = {"a": PlannedStage(1, 1, ("gone",)), "b": PlannedStage(2, 0, ("a", "gone"))}
    return found


def schedules() -> Answers:
    """Chains, orders, bounds, times and chosen numbers of GPUs."""
    for name, work in _works().items():
        yield f"{name} chains", _round(schedule.chain_hours(work))
        keys = sorted(work)
        chains = [keys[:2], keys[1:3], keys[2:], keys[:1], ["gone"]]
        cells = {f"cell{n}": chain for n, chain in enumerate(chains)}
        yield (
            "  of cells",
            [(key, *_round(tuple(each))) for key, each in schedule.of_cells(cells, work).items()],
        )  # type: ignore[misc]
        yield "  waiting", sorted(schedule.num_waiting(work, chains).items())
        yield "  order", schedule.longest_first(chains, work)
        for num_gpus, per_node in ((1, 1), (2, 2), (4, 2), (5, 4), (8, 8), (16, 8), (20, 8)):
            yield (
                f"  on {num_gpus} of {per_node}",
                _round(
                    (
                        schedule.lower_bound_hours(work, num_gpus),
                        schedule.moldable_lower_bound_hours(work, num_gpus, gpus_per_node=per_node),
                        answer(lambda work=work, n=num_gpus, p=per_node: _time(work, n, p)),  # type: ignore[misc]
                    )
                ),
            )
            kept = {keys[0]: 2, "gone": 4} if keys else {}
            if max((one.num_gpus for one in work.values()), default=0) <= per_node:
                for wanted, efficiency in itertools.product(({}, kept), (0.5, 0.9)):
                    chosen = schedule.mold(
                        work, num_gpus, gpus_per_node=per_node, efficiency=efficiency, kept=wanted
                    )
                    shown = {
                        key: (one.num_gpus, round(one.hours, 4), one.most_gpus)
                        for key, one in chosen.items()
                        if one != work[key]
                    }
                    yield f"  molded on {num_gpus} {efficiency} {bool(wanted)}", shown
    for gpus, most, efficiency, per_node in itertools.product(
        (0, 1, 2, 3, 8), (0, 1, 4, 6), (0.0, 0.5), (1, 4, 8)
    ):
        found = schedule.choices(PlannedStage(8.0, gpus, (), most, efficiency), per_node)
        yield (
            f"choices {gpus} {most} {efficiency} {per_node}",
            [(one.num_gpus, round(one.hours, 4)) for one in found],
        )
    ring = {"a": PlannedStage(1, 1, ("b",)), "b": PlannedStage(1, 1, ("a",))}
    with pytest.raises(ValueError, match=r"^stages wait for each other in a circle$"):
        schedule.chain_hours(ring)
    with pytest.raises(ValueError, match=r"^a stage needs 4 GPUs, and a node has 2$"):
        schedule.makespan_hours({"a": PlannedStage(1, 4)}, 8, gpus_per_node=2)
    for number in (0, 1, 2, 7, 8, 9, 17):
        nodes, seen = FreeGpus(number, 8), []
        for step in (1, 8, 3, 5, 0, 2, 8, 1):
            if nodes.fits(step):
                node = nodes.take(step)
                seen.append((step, node))
                if step == 3:
                    nodes.free(node, 3)
        seen.append((nodes.largest, nodes.take_out(0) if number else -1))
        yield f"nodes of {number}", (seen, [nodes.fits(step) for step in (0, 1, 2, 8)])
    yield (
        "wrong",
        [round(schedule.wrong_by(2.0, error, normal), 6) for error in (0.0, 0.3) for normal in (-1, 0, 2)],
    )
    yield (
        "usual work",
        _round(schedule.makespan_hours({"a": PlannedStage(1, 8), "b": PlannedStage(1, 8)}, 16)),
    )


def _time(work: dict[str, PlannedStage], num_gpus: int, per_node: int) -> object:
    try:
        by_hand = {key: float(-place) for place, key in enumerate(work)}
        return [
            schedule.makespan_hours(work, num_gpus, gpus_per_node=per_node, order=order)
            for order in (None, by_hand)
        ]
    except ValueError as error:
        return str(error)


def _round(found: Any) -> Any:
    if isinstance(found, float):
        return round(found, 5)
    if isinstance(found, Mapping):
        return {key: _round(value) for key, value in found.items()}
    return type(found)(map(_round, found)) if isinstance(found, list | tuple) else found


LADDERS: dict[str, dict[str, tuple[dict[str, Any], ...]]] = {
    "halving": {"oom_gpu": ({"halve": "fit.micro", "double": "fit.accumulation", "times": 3}, {"set": {"fit.recompute": True}})},
    "of a share": {"oom_gpu": ({"halve": "fit.share", "times": 2},)},
    "of a switch": {"oom_gpu": ({"halve": "fit.recompute"}, {"set": {"nowhere": 1}}, {"double": "fit.micro"})},
    "suggested": {"nan": ({"suggest": "a lower rate"}, {"suggest": 3}, {"set": {"fit.micro": 1}}), "oom_gpu": ()},
    "two causes": {"oom_gpu": ({"halve": "fit.micro"},), "oom_host": ({"set": {"fit.share": 0.5}}, {"set": {"fit.share": 0.25}})},
    "none": {},
}  # fmt: skip
USES: dict[str, Any] = {
    "fit": {"micro": 8, "accumulation": 3, "recompute": False, "share": 1.0},
    "path": "/x",
}


def remedying() -> Answers:
    """What rungs change, which rung comes next, and what is said of them."""
    for (name, ladder), micro in itertools.product(LADDERS.items(), (8, 6, 1, "x", 0.5)):
        spec = StageSpec(run="m:f", reads=("model",), uses=("fit", "path"), remedies=ladder)
        uses = {**USES, "fit": {**USES["fit"], "micro": micro}}
        yield (
            f"{name}, {micro}",
            (
                remedies.has_rungs(spec),
                remedies.suggestions(spec, Cause.NAN),
                remedies.suggestions(spec, None),
            ),
        )
        for first, second in itertools.product((0, 1, 2, 9), (0, 1)):
            start = remedies.remedied(spec, uses, {Cause.OOM_GPU: first, Cause.OOM_HOST: second})
            yield f"  on {first}, {second}", tuple(start)
            record = StartRecord(
                parent=None, uses=start.uses, provenance={}, remedies=start.rungs, before=start.before
            )
            yield "  described", remedies.described(record)
            for values in (
                {"fit.micro": 4},
                {"fit.micro": 2, "fit.accumulation": 12},
                {"fit.share": 0.25},
                {"fit.micro": 3},
            ):
                yield f"  adapted to {values}", tuple(remedies.adapted(spec, uses, start, values))
            for cause, after, other in itertools.product(
                (Cause.OOM_GPU, Cause.NAN, None), (0, 1), (uses, USES)
            ):
                end = None if cause is None else End(nonce="", outcome="failed", cause=cause)
                evidence = Evidence((Attempt(1, None, record, None, end), Attempt(2, None, None, None, None)))
                yield (
                    f"  after {cause}, {after}",
                    remedies.rungs_of(spec, other, [(evidence, after), (Evidence(), 0)]),
                )
        for alike in ((), ("model",), ("model", "size.x")):
            instance = StageInstance(stage="fit", digest="d", reads={"model": "a", "object": 1})
            config = {"model": "a", "size": {"x": 3}}
            yield f"  class by {alike}", remedies.class_of(replace(spec, alike=alike), instance, config)
    plain = StartRecord(
        parent=None, uses={"a": 1}, provenance={}, remedies={Cause.OOM_HOST: (1, 2), Cause.NAN: (0, 1)}
    )
    for each in (
        None,
        replace(plain, remedies={}),
        plain,
        replace(plain, before={"a": 2, "gone": object()}),
        replace(plain, remedies={}, before={"a": None}),
    ):
        yield "described", str(remedies.described(each)).split("<")[0]
    for outcome, cause, message, earlier in itertools.product(
        ("failed", "released"), (Cause.COMMUNICATION, Cause.STORAGE, Cause.CODE, None),
        ("[Errno 28] No space left on device", "x"), (0, 1, 2, 5, 6, 7, 40),
    ):  # fmt: skip
        end = End(nonce="", outcome=outcome, cause=cause, message=message)  # type: ignore[arg-type]
        before = [Attempt(n, None, None, None, end) for n in range(earlier)]
        before += [
            Attempt(50, None, None, None, None),
            Attempt(51, None, None, None, replace(end, cause=Cause.NAN)),
        ]
        yield (
            f"pause {outcome} {cause} {message} {earlier}",
            (remedies.pause_after(end, before), is_disk_full(end)),
        )
    for (history, attempts), rungs, after in itertools.product(HISTORIES.items(), ({}, {Cause.OOM_HOST: (0, 2)}, {Cause.OOM_HOST: (1, 2)}, {Cause.OOM_HOST: (2, 2)}), (0, 1)):  # fmt: skip
        budget = Budget({Cause.OOM_HOST: 9}, after=after)
        found = remedies.status_in_job(Evidence(attempts), budget, rungs)
        yield f"in a job: {history} {rungs} {after}", (found.state, found.reason)
    train = load("orchestrator.sft.stages:TRAIN")
    for name, spec in {
        "shipped": train, "own ladder": replace(train, remedies={"oom_gpu": ()}), "own classes": replace(train, alike=("x",)),
        "own stage": replace(train, name=None), "no remedies": replace(train, name="prepare"),
    }.items():  # fmt: skip
        found = remedies.with_shipped(spec)
        yield (
            f"with shipped: {name}",
            ({cause: len(rungs) for cause, rungs in found.remedies.items()}, found.alike),
        )


SUBJECTS = [
    Subject({"model": model, "seed": str(seed)}, {"n": seed * 10}, {"lr": lr, "langs": ["en", "sw"], "section": {"x": None, "on": True}, "failure": "own"} if seed else {"lr": lr},
            cell=f"{model}.{seed}-0a{seed}", state=state, cause=cause, **({"failure": ("f1", "f2")} if seed else {}))
    for (model, seed), lr, state, cause in zip(
        itertools.product(("tiny", "tiny-b", "big"), (0, 1)), (0.1, 1e-05, 1.0, True, "x,y", None),
        ("done", "failed", "pending", "done", "running", "lost"), ("null", "oom_gpu", "null", "null", "null", "code"), strict=True,
    )
]  # fmt: skip
TEXTS = (
    "", " ", "model=tiny", "model=tiny*", "model!=tiny", "model=tiny,big seed=1", "model=tny", "model=", "=x", "seed=01", "seed=1.0", "seed=0 seed=1",
    "lr=0.1", "lr=0.10", "lr=1e-5", "lr=.00001", "lr=true", "lr=null", "lr='x,y'", "lr=x,y", 'lr="x,y"', "lr='a", "lr=1", "lr=1?", "lr=[01].*",
    "langs=en", "langs=en+sw", "langs=sw+en", "section.x=null", "section.on=true", "section=1", "section.y=1", "sectoin.x=1", "n=10", "n=1*", "n=11",
    "state=done", "state=don", "state=d*", "cause=oom_gpu", "cause=null", "cause=oom", "failure=own", "failure=f1", "failure=f3", "cell=big*",
    "tiny.0-0a0", "tiny.0", "tiny", "tiny.9", "big*", "big.0,tiny.1-0a1", "big.0,x", "a=b=c", "!x", "a,,b", "model=tiny state=failed", "mod'el'=ti\"ny\"", "tiny.0-0a0 model=big",
)  # fmt: skip


def selections() -> Answers:
    """Which cells texts select, and what is said of those that cannot be meant."""
    launched = [each._replace(state="", cause="") for each in SUBJECTS]
    for text in TEXTS:
        yield (
            f"parsed {text!r}",
            answer(lambda text=text: (sorted(Selector.parse(text).keys), Selector.parse(text).text)),
        )  # type: ignore[misc]
        yield (
            "  matches",
            answer(lambda text=text: [int(Selector.parse(text).matches(each)) for each in SUBJECTS]),
        )  # type: ignore[misc]
        for name, subjects in {
            "all": SUBJECTS,
            "none": [],
            "not launched": launched,
            "no ids": [each._replace(cell="") for each in SUBJECTS],
        }.items():
            for labels, where in itertools.product((None, {"model": ("tny", "old")}), ("", "s.yaml")):
                if (labels or where) and name not in ("all", "no ids"):
                    continue
                yield (
                    f"  checked {text!r}, {name}, {labels}",
                    answer(
                        lambda text=text, s=subjects, labels=labels, where=where: Selector.parse(text).check(
                            s, labels=labels, where=where
                        )  # type: ignore[misc]
                    ),
                )
        yield "  selected", answer(lambda text=text: select([text], enumerate(SUBJECTS)))  # type: ignore[misc]
        yield "  with another", answer(lambda text=text: select([text, "model=big"], enumerate(SUBJECTS)))  # type: ignore[misc]
        yield "  possible", answer(lambda text=text: refuse_impossible([text], SUBJECTS))  # type: ignore[misc]
    yield (
        "no text",
        (select([], enumerate(SUBJECTS)), any_of([], SUBJECTS[0]), refuse_impossible([], SUBJECTS)),
    )
    yield "known", [each.known() for each in SUBJECTS[:2]]
    for key in ("model", "n", "state", "cell", "failure", "lr", "section", "section.x", "gone"):
        yield f"value {key}", [str(each.value(key)) for each in SUBJECTS[:2]]
    assert {each.state for each in SUBJECTS} <= {*State}


ASKED: Mapping[str, Callable[[], Answers]] = {
    "schedules": schedules, "remedies": remedying, "selections": selections,
}  # fmt: skip
