"""What phases, rungs and searches lead to, decision by decision, is as recorded, see ../../recording.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from orchestrator.core.decisions import answer, decided, observe, unfold, valued
from orchestrator.core.evidence import Evidence, Hold, Holds
from orchestrator.core.grid import Chains
from orchestrator.core.identity import cell_ids
from orchestrator.core.sealed import (
    CellTemplate,
    ComposedSweep,
    ConfigSlot,
    Decision,
    SealedPhase,
    SealedSearch,
    SearchParameter,
    SeenCell,
    Select,
    Undecided,
    most_cells,
)
from orchestrator.core.search import drawn, grown, is_round, trials_of
from orchestrator.core.selector import Subject
from orchestrator.core.state import StageStatus, State, SweepFacts
from orchestrator.core.sweep import Cell
from orchestrator.stage import StageSpec
from tests.core.test_phase_decisions import BEST, _cell, _done, _halving, _sweep, two_phases
from tests.recording import Answers


def three_phases() -> ComposedSweep:
    """Phases a, b and c, of which b has rungs and a ranks its candidates apart by lr."""
    sweep = two_phases(4, Select(metric="score", mode="max", per=("lr",)))
    rungs = _halving(8)
    b = replace(
        sweep.phases[1],
        candidates={f"s={n}": tuple(f"c{4 * n + k}" for k in range(4)) for n in (0, 1)},
        follows={f"lr={n}": (f"c{2 * n}", f"c{2 * n + 1}") for n in range(4)},
        select=Select(metric="score", mode="min", top=2),
        rungs=rungs.phases[0].rungs,
    )
    a = replace(sweep.phases[0], groups={f"lr={n}": str(n % 2) for n in range(4)})
    c = SealedPhase(name="c", candidates={}, follows={"s=0": ("z0",), "s=1": ("z1", "z2")})
    last = [_cell(f"z{n}", f"y{n}") for n in range(3)]
    cells = [*sweep.cells[:4], *rungs.cells, *last]
    return replace(_sweep(cells, (a, b, c)), stages=_sweep(cells, ()).stages | rungs.stages)


SPACE = (
    SearchParameter(name="opt", options=("sgd", "adam")),
    SearchParameter(name="train.lr", low=0.001, high=0.1, log=True),
    SearchParameter(name="layers", low=1, high=4, is_int=True),
)
TEMPLATE = CellTemplate(
    labels={"opt": "sgd"},
    ranges=("train.lr", "layers"),
    parts={"opt": "sgd"},
    config={"opt": "sgd", "train": {"lr": 0.0, "depth": 0.0, "list": [1, 2]}, "name": "x", "other": 1},
    slots=(
        ConfigSlot(path=("train", "lr"), parts=("train.lr",), kind="value"),
        ConfigSlot(path=("train", "depth"), parts=("layers",), kind="float"),
        ConfigSlot(path=("train", "list", 1), parts=("layers",), kind="value"),
        ConfigSlot(path=("name",), parts=("run-", "train.lr", "-", "layers", ""), kind="text"),
    ),
)
FEW = CellTemplate(
    labels={"opt": "adam"}, ranges=("layers",), parts={}, config={"opt": "adam", "train": {"lr": 1.0}},
    slots=(ConfigSlot(path=("layers",), parts=("layers",), kind="value"),),
)  # fmt: skip


def searched(num_cells: int = 9, batch: int = 3) -> ComposedSweep:
    """A search with its first round."""
    search = SealedSearch(
        sampler="random",
        seed=3,
        num_cells=num_cells,
        batch=batch,
        select=BEST,
        space=SPACE,
        templates=(TEMPLATE, replace(FEW, config={**FEW.config, "layers": 0})),
        columns={"rate": "train.lr"},
        start=(),
    )
    start = tuple(dict(point) for point in drawn(search, [], batch))
    specs = {
        "fit": StageSpec(run="m:f", reads=("train.lr", "opt")),
        "score": StageSpec(run="m:s", after=("fit",)),
    }
    empty = ComposedSweep(name="s", specs=specs, stages={}, cells=(), search=replace(search, start=start))
    first = grown(empty, replace(search, start=start), [])
    sealed = replace(search, start=start, first=first.rounds[0])
    return replace(first.sweep, search=sealed)


SWEEPS: Mapping[str, Callable[[], ComposedSweep]] = {
    "two phases": lambda: two_phases(),
    "of two rows": lambda: two_phases(3, Select(metric="score", mode="min", top=2, where={"split": "test"})),
    "of a stage": lambda: two_phases(2, Select(metric="score", mode="max", stage="other")),
    "rungs": lambda: _halving(9),
    "three phases": three_phases,
    "a search": searched,
    "no phases": lambda: _sweep([_cell("a", "d")], ()),
}
SCORES: Mapping[str, Callable[[int], float | None]] = {
    "falling": lambda place: float(-place),
    "rising": lambda place: float(place),
    "alike": lambda place: 1.0,
    "some fail": lambda place: None if place % 3 == 0 else float(place % 4),
    "all fail": lambda place: None,
    "not a number": lambda place: float("nan") if place % 2 else float("inf"),
}


def courses() -> Answers:
    """The cells and the next question after each decision, and what that question sees."""
    for (name, make), (kind, score) in itertools.product(SWEEPS.items(), SCORES.items()):
        sweep = make()
        places = {digest: place for place, digest in enumerate(sweep.stages)}
        decisions: list[Decision] = []
        yield f"{name}: later", sorted(decided(sweep))
        phases = [None, *sweep.phases]
        yield (
            "  at most",
            [most_cells(phase, before) for before, phase in itertools.pairwise(phases) if phase],
        )  # type: ignore[arg-type]
        for step in range(6):
            found = unfold(sweep, decisions)
            cells = [(c.id, len(c.stage_digests), c.waits, c.stopped) for c in found.sweep.cells]
            yield (
                f"{name}, {kind}, {step} decided: cells",
                (cells, len(found.sweep.stages), len(found.decisions)),
            )
            question = found.question
            if question is None:
                break
            ids = {key: [cell.id for cell in of] for key, of in question.candidates.items()}
            yield "  question", (*question[:1], *question[2:5], question.title, ids, question.groups)

            def status(digest: str, score: Any = score, places: Any = places) -> StageStatus:
                value = score(places.get(digest, 7))
                return StageStatus(State.FAILED, "it broke") if value is None else StageStatus(State.DONE, "")

            def evidence(digest: str, score: Any = score, places: Any = places) -> Evidence:
                value = score(places.get(digest, 7))
                rows = ({"score": value, "split": "test"}, {"score": 50.0}, {"loss": 3.0})
                return _done(digest, *rows, generation=4)

            seen = observe(question, found.sweep.stages, SweepFacts(status, evidence))
            yield "  sees", _shown(seen)
            if isinstance(seen, Undecided):
                break
            points = [[dict(point) for point in drawn(sweep.search, [], 3 * step + 6)[3 * step + 3 :]]
                      if sweep.search else []]  # fmt: skip
            if sweep.search is not None:
                trials = trials_of(found.sweep, sweep.search, found.decisions, seen)
                yield "  trials", [(sorted(trial.point.items()), trial.value) for trial in trials]
                wrong = [*points[0], *points[0]]
                yield (
                    "  rounds",
                    [is_round(sweep.search, each) for each in (points[0], wrong, [{"a": 1}], [])],
                )
            chosen = answer(question, seen)
            yield "  chosen", chosen
            decisions.append(
                Decision(
                    nonce="", revision=1, number=question.number, phase=question.phase.name,
                    rung=question.rung, seen=seen, chosen=chosen, proposed=tuple(points[0]),
                )
            )  # fmt: skip
        yield "  with one too many", len(unfold(sweep, [*decisions, *decisions]).decisions)
    yield "no search", [is_round(None, points) for points in ([], [{}])]


def waiting() -> Answers:
    """What a question waits for."""
    sweep = two_phases(2)
    question = unfold(sweep, ()).question
    assert question is not None
    empty = question._replace(candidates={})
    done, failed = StageStatus(State.DONE, ""), StageStatus(State.FAILED, "it broke")
    yield "no cell", _shown(observe(empty, sweep.stages, SweepFacts(lambda digest: done, lambda d: _done(d))))
    holds = {
        "": Holds(),
        "of a0": Holds({"a0": Hold("x")}),
        "of d0": Holds({}, {"d0": Hold("x")}),
        "for a while": Holds({"a0": Hold("x", is_final=False)}),
    }
    for state, (held, hold), cancelled in itertools.product(State, holds.items(), ((), ("a0",), ("a1",))):
        statuses = {"d0": StageStatus(state, "it is"), "d1": done}
        facts = SweepFacts(statuses.__getitem__, lambda d: _done(d, {"score": 1}), cancelled, hold)
        yield f"{state}, held {held}, cancelled {cancelled}", _shown(observe(question, sweep.stages, facts))
    rows: tuple[tuple[Any, ...], ...] = ((), ({"score": "x"},), ({"score": float("inf")},), ({"loss": 1},))
    for one, other, number, is_search in itertools.product(
        (None, *rows), (None, *rows), (1, 2), (False, True)
    ):
        statuses = {"d0": failed if one is None else done, "d1": failed if other is None else done}
        facts = SweepFacts(
            statuses.__getitem__,
            lambda d, one=one, other=other: _done(d, *((one if d == "d0" else other) or ())),
        )  # type: ignore[misc]
        asked = question._replace(number=number, is_search=is_search)
        yield f"{one} {other} {number} {is_search}", _shown(observe(asked, sweep.stages, facts))


def values() -> Answers:
    """The value of a cell by its rows."""
    sweep = _halving(2, (9, 27))
    question = unfold(sweep, ()).question
    assert question is not None
    cell = sweep.cells[0]
    stages = [sweep.stages[digest] for digest in cell.stage_digests]
    selects = {
        "": Select(metric="score", mode="max"),
        "of train": Select(metric="score", mode="max", stage="train"),
        "of test": Select(metric="score", mode="max", stage="test"),
        "where": Select(metric="score", mode="max", where={"split": "dev", "n": 1}),
        "loss": Select(metric="loss", mode="max"),
    }
    rows: list[list[Any]] = [
        [[{"score": 1}], [{"score": 2}], [{"score": 4}]],
        [[{"score": 1}], [{"score": 2}], [{"loss": 4}]],
        [
            [{"score": 1, "split": "dev", "n": "1"}, {"score": 9, "split": "dev"}],
            [{"score": True}],
            [{"score": "x"}],
        ],
        [[{"score": 1e308}, {"score": 1e308}], [], [{"score": 0.1}] * 10],
        [[], [], [{"score": float("inf")}, {"score": -float("inf")}]],
        [[{"score": 10**400}], [{"score": 1e308}, {"score": 1e308}, {"score": -1e308}], []],
        [[], [], []],
    ]
    for (name, select), rung, (place, each) in itertools.product(selects.items(), (0, 1, 2), enumerate(rows)):
        asked = question._replace(select=select, rung=rung)
        found = valued(asked, cell, {"p": 3}, list(zip(stages, each, strict=True)))
        yield f"{name}, rung {rung}, rows {place}", tuple(_shown((found,)))
    for mode, keep, groups in itertools.product(
        ("min", "max"), (1, 2, 9), ({}, {"a": "x", "b": "x", "c": "y"})
    ):
        cells = {n: Cell(id=n, axes={}, columns={}, config={}, stage_digests=()) for n in "pqrstu"}
        candidates = {
            "a": (cells["p"], cells["q"]),
            "b": (cells["r"], cells["s"]),
            "c": (cells["t"],),
            "d": (cells["u"],),
        }
        asked = question._replace(
            select=Select(metric="score", mode=mode),
            keep=keep,
            groups=groups,
            candidates=candidates,  # type: ignore[arg-type]
        )
        for given in itertools.product(
            (None, 1.0, 4.0), (2.0,), (None, 3.0), (1.0, 3.0), (2.0, None), (2.0, None)
        ):
            seen = [SeenCell(cell=name, value=value) for name, value in zip("pqrstu", given, strict=True)]
            yield f"{mode} {keep} {bool(groups)} {given}", answer(asked, seen)


def points() -> Answers:
    """The cells that follow from points."""
    sweep = searched(12, 4)
    assert sweep.search is not None
    more = [dict(point) for point in drawn(sweep.search, [], 12)]
    yield "points", [sorted(point.items()) for point in more]
    found = grown(sweep, sweep.search, [more[4:8], more[4:12]])
    yield "rounds", found.rounds
    for cell in found.sweep.cells:
        yield (
            f"cell {cell.id}",
            (cell.axes, cell.columns, cell.config, [digest[:6] for digest in cell.stage_digests]),
        )
    yield "stages", sorted(digest[:6] for digest in found.sweep.stages)
    again = grown(found.sweep, sweep.search, [more[4:8]])
    yield "again", (again.rounds, len(again.sweep.cells), sorted(digest[:6] for digest in again.sweep.stages))
    chains = Chains(sweep.specs)
    subject = Subject({}, {}, {"train": {"lr": 1.5}, "opt": "sgd"})
    chain = chains.chain(subject)
    yield "one chain", ([digest[:6] for digest in chain], cell_ids(["x"], [chain])[0][:5])


def _shown(seen: object) -> Any:
    if isinstance(seen, Undecided):
        return (seen.number, seen.reason, seen.is_passing)
    return [(each.cell, each.value, each.why, each.products) for each in seen]  # type: ignore[attr-defined]


ASKED: Mapping[str, Callable[[], Answers]] = {
    "courses": courses, "waiting": waiting, "values": values, "points": points,
}  # fmt: skip
