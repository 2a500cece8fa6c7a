"""Decisions: what exists follows from seal and decisions alone, whoever decides and in whatever order."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from orchestrator.core.decisions import answer, decided, observe, unfold
from orchestrator.core.evidence import Evidence, Hold, Holds
from orchestrator.core.failure import Cause
from orchestrator.core.records import Done
from orchestrator.core.sealed import (
    Cell,
    ComposedSweep,
    Decision,
    Rungs,
    SealedPhase,
    Select,
    StageInstance,
    Undecided,
    most_cells,
)
from orchestrator.core.state import GOOD, StageStatus, State, SweepFacts, cell_status
from orchestrator.formats import canonical, decode, encode

BEST = Select(metric="score", mode="max")


def _cell(name: str, *digests: str, **axes: str) -> Cell:
    return Cell(id=name, axes=axes, columns={}, config={}, stage_digests=digests)


def _sweep(cells: list[Cell], phases: tuple[SealedPhase, ...]) -> ComposedSweep:
    digests = {digest for cell in cells for digest in cell.stage_digests}
    stages = {d: StageInstance(stage="fit", digest=d, reads={}) for d in sorted(digests)}
    return ComposedSweep(name="s", specs={}, stages=stages, cells=tuple(cells), phases=phases)


def two_phases(num: int = 3, select: Select = BEST) -> ComposedSweep:
    """Phase a with cells a0, a1, ... and phase b with two cells for each of them."""
    first = [_cell(f"a{i}", f"d{i}", lr=str(i)) for i in range(num)]
    second = [_cell(f"b{i}.{j}", f"e{i}.{j}", lr=str(i), seed=str(j)) for i in range(num) for j in (0, 1)]
    a = SealedPhase(
        name="a",
        candidates={f"lr={i}": (f"a{i}",) for i in range(num)},
        follows={"": tuple(cell.id for cell in first)},
        select=select,
    )
    b = SealedPhase(
        name="b",
        candidates={},
        follows={f"lr={i}": (f"b{i}.0", f"b{i}.1") for i in range(num)},
    )
    return _sweep([*first, *second], (a, b))


def _done(digest: str, *rows: Mapping[str, Any], generation: int = 1) -> Evidence:
    done = Done(
        nonce="n",
        stage="fit",
        digest=digest,
        generation=generation,
        attempt=1,
        files=(),
        rows=rows,
        seconds=1,
    )
    return Evidence(done=done, generation=generation)


class Store:
    """The products and failures of a made-up store, and the decisions that processes record in it."""

    def __init__(self, sweep: ComposedSweep) -> None:
        self.sweep = sweep
        self.scores: dict[str, float | None] = {}
        self.decisions: list[Decision] = []

    def status(self, digest: str) -> StageStatus:
        if digest not in self.scores:
            return StageStatus(State.PENDING, "not started")
        if self.scores[digest] is None:
            return StageStatus(State.FAILED, "it broke (code)", Cause.CODE, 1)
        return StageStatus(State.DONE, "product", None, 1)

    def evidence(self, digest: str) -> Evidence:
        return _done(digest, {"score": self.scores[digest]})

    def decide(self) -> Undecided | None:
        """Decides what can be decided, as any process does that looks."""
        while (question := (unfolded := unfold(self.sweep, self.decisions)).question) is not None:
            seen = observe(question, unfolded.sweep.stages, SweepFacts(self.status, self.evidence))
            if isinstance(seen, Undecided):
                return seen
            self.decisions.append(
                Decision(
                    nonce="",
                    revision=1,
                    number=question.number,
                    phase=question.phase.name,
                    rung=question.rung,
                    seen=seen,
                    chosen=answer(question, seen),
                )
            )
        return None


def test_cells_of_the_next_phase_exist_once_their_candidate_was_chosen():
    store = Store(two_phases())
    assert [cell.id for cell in unfold(store.sweep, ()).sweep.cells] == ["a0", "a1", "a2"]
    store.scores = {"d0": 1.0, "d1": 3.0}
    found = store.decide()
    assert found is not None and found.is_passing and "a2 fit is pending" in found.reason
    store.scores["d2"] = 2.0
    assert store.decide() is None
    unfolded = unfold(store.sweep, store.decisions)
    assert [cell.id for cell in unfolded.sweep.cells] == ["a0", "a1", "a2", "b1.0", "b1.1"]
    assert unfolded.question is None
    assert {"e0.0", "e2.1"}.isdisjoint(unfolded.sweep.stages)  # never to run, so nothing is kept for them
    assert decided(store.sweep) == {f"b{i}.{j}" for i in range(3) for j in (0, 1)}
    assert [
        most_cells(store.sweep.phases[0], None),
        most_cells(store.sweep.phases[1], store.sweep.phases[0]),
    ] == [
        3,
        2,
    ]


def test_failed_cells_count_as_the_worst_and_are_listed():
    store = Store(two_phases())
    store.scores = {"d0": None, "d1": -5.0, "d2": None}
    assert store.decide() is None
    (decision,) = store.decisions
    assert decision.chosen == ("lr=1",)
    assert [each.value for each in decision.seen] == [None, -5.0, None]
    assert decision.seen[0].why == "fit failed: it broke (code)"
    assert decision.seen[1].products == {"d1": 1}


def test_without_any_value_there_is_no_decision():
    store = Store(two_phases())
    store.scores = {"d0": None, "d1": None, "d2": None}
    found = store.decide()
    assert found is not None and not found.is_passing and "no cell has a value" in found.reason
    store.scores = {"d0": float("nan"), "d1": float("inf"), "d2": float("nan")}
    assert store.decide() is not None and store.decisions == []


def test_a_cancelled_or_held_cell_leaves_the_decision_to_a_person():
    sweep = two_phases()
    store = Store(sweep)
    store.scores = {"d0": 1.0, "d1": 2.0}
    question = unfold(sweep, ()).question
    assert question is not None
    found = observe(question, sweep.stages, SweepFacts(store.status, store.evidence, {"a2"}))
    assert isinstance(found, Undecided) and not found.is_passing and found.reason == "a2 is cancelled"
    held = Holds({}, {"d2": Hold("for good")})
    found = observe(question, sweep.stages, SweepFacts(store.status, store.evidence, (), held))
    assert isinstance(found, Undecided) and not found.is_passing and found.reason == "a2 fit is held back"
    passing = Holds({}, {"d2": Hold("for a while", is_final=False)})
    found = observe(question, sweep.stages, SweepFacts(store.status, store.evidence, (), passing))
    assert isinstance(found, Undecided) and found.is_passing and found.reason == "a2 fit is pending"


@pytest.mark.parametrize(
    ("scores", "select", "chosen"),
    [
        ([1, 1, 0], BEST, ("lr=0",)),  # of equals, the first in the grid
        ([1, 1, 0], Select(metric="score", mode="min"), ("lr=2",)),
        ([0, 2, 1], Select(metric="score", mode="max", top=2), ("lr=1", "lr=2")),
        ([0, None, 1], Select(metric="score", mode="max", top=3), ("lr=2", "lr=0")),
    ],
)
def test_the_best_are_chosen(scores: list[float | None], select: Select, chosen: tuple[str, ...]) -> None:
    store = Store(two_phases(select=select))
    store.scores = {f"d{i}": score for i, score in enumerate(scores)}
    assert store.decide() is None
    assert store.decisions[0].chosen == chosen


def test_the_value_is_of_the_rows_that_count():
    select = Select(metric="score", mode="max", where={"split": "test"})
    sweep = two_phases(2, select)
    question = unfold(sweep, ()).question
    assert question is not None
    rows = ({"split": "test", "score": 1}, {"split": "test", "score": 2}, {"split": "dev", "score": 90})
    evidence = {"d0": _done("d0", *rows), "d1": _done("d1", {"score": 80}, {"split": "test"})}
    done = StageStatus(State.DONE, "product")
    seen = observe(question, sweep.stages, SweepFacts(lambda digest: done, evidence.__getitem__))
    assert not isinstance(seen, Undecided)
    assert [each.value for each in seen] == [1.5, None]
    assert seen[1].why == "no row has score split=test"


def test_a_candidate_of_several_seeds_has_their_mean_and_one_without_all_of_them_comes_last():
    cells = [_cell(f"c{lr}{seed}", f"d{lr}{seed}", lr=lr, seed=seed) for lr in "xyz" for seed in "01"]
    phase = SealedPhase(
        name="a",
        candidates={f"lr={lr}": (f"c{lr}0", f"c{lr}1") for lr in "xyz"},
        follows={"": tuple(cell.id for cell in cells)},
        select=Select(metric="score", mode="max", mean=("seed",), top=3),
    )
    store = Store(_sweep(cells, (phase, SealedPhase(name="b", candidates={}, follows={}))))
    store.scores = {"dx0": 1, "dx1": 2, "dy0": 3, "dy1": 1, "dz0": 99, "dz1": None}
    assert store.decide() is None
    assert store.decisions[0].chosen == ("lr=y", "lr=x", "lr=z")


def test_each_group_has_a_winner_of_its_own():
    sweep = two_phases(4)
    groups = {f"lr={i}": f"model={'ab'[i % 2]}" for i in range(4)}
    first = msgspec.structs.replace(
        sweep.phases[0], groups=groups, select=Select(metric="score", mode="max", per=("model",))
    )
    store = Store(msgspec.structs.replace(sweep, phases=(first, sweep.phases[1])))
    store.scores = {"d0": 1, "d1": 4, "d2": 2, "d3": 5}
    assert store.decide() is None
    assert store.decisions[0].chosen == ("lr=2", "lr=3")
    assert most_cells(store.sweep.phases[1], first) == 4


def _halving(num: int, at: tuple[int, ...] = (9, 27, 81)) -> ComposedSweep:
    """Cells c0, c1, ... whose stage has a part for each rung, and a stage that takes the last part."""
    cells, stages, parts = [], {}, {}
    for i in range(num):
        digests = tuple(f"p{i}.{step}" for step in at)
        last = f"q{i}"
        for place, digest in enumerate(digests):
            before = digests[place - 1 : place] if place else ()
            stages[digest] = StageInstance(stage="train", digest=digest, reads={}, inputs=_inputs(before))
        stages[last] = StageInstance(stage="test", digest=last, reads={}, inputs=_inputs(digests[-1:]))
        cells.append(_cell(f"c{i}", *digests, last))
        parts[f"c{i}"] = digests
    rungs = Rungs(stage="train", at=at, keep=1 / 3, select=Select(metric="score", mode="max"), parts=parts)
    phase = SealedPhase(name="", candidates={}, follows={"": tuple(parts)}, rungs=rungs)
    return ComposedSweep(name="s", specs={}, stages=stages, cells=tuple(cells), phases=(phase,))


def _inputs(digests: tuple[str, ...]) -> Any:
    from orchestrator.core.sealed import Input

    return tuple(Input("train", "", digest) for digest in digests)


def test_after_each_rung_a_third_goes_on_and_the_others_are_stopped():
    store = Store(_halving(9))
    assert {cell.stage_digests for cell in unfold(store.sweep, ()).sweep.cells} == {
        (f"p{i}.9",) for i in range(9)
    }
    store.scores = {f"p{i}.9": float(i) for i in range(9)}
    found = store.decide()
    assert found is not None and "rung 2 of train, step 27" in found.title
    unfolded = unfold(store.sweep, store.decisions)
    chains = {cell.id: cell.stage_digests for cell in unfolded.sweep.cells}
    assert chains["c8"] == ("p8.9", "p8.27") and chains["c0"] == ("p0.9",)
    assert "p0.27" not in unfolded.sweep.stages and "p8.81" in unfolded.sweep.stages
    states = {
        cell.id: cell_status(
            cell,
            unfolded.sweep.stages,
            {digest: store.status(digest) for digest in cell.stage_digests},
            cancelled=False,
        )
        for cell in unfolded.sweep.cells
    }
    assert states["c0"].state is State.STOPPED and State.STOPPED in GOOD
    assert states["c0"].reason == "not among the best 3 of 9 at rung 1 of train, step 9"
    assert states["c8"].state is State.PENDING
    store.scores |= {f"p{i}.27": float(-i) for i in (6, 7, 8)}
    assert store.decide() is None
    unfolded = unfold(store.sweep, store.decisions)
    assert unfolded.sweep.cells[6].stage_digests == ("p6.9", "p6.27", "p6.81", "q6")
    assert [cell.id for cell in unfolded.sweep.cells if not cell.stopped] == ["c6"]


def test_the_best_of_81_is_found_for_a_third_of_the_compute():
    at = (9, 27, 81)
    store, steps = Store(_halving(81, at)), 0
    while True:
        cells = unfold(store.sweep, store.decisions).sweep.cells
        todo = {d for cell in cells for d in cell.stage_digests if d not in store.scores}
        if not todo and store.decide() is None:
            break
        for digest in todo:
            name, _, step = digest.partition(".")
            store.scores[digest] = -abs(int(name[1:]) - 50) + (int(step) if step else 0)
            steps += int(step) - max((a for a in at if a < int(step)), default=0) if step else 0
        store.decide()
    left = [cell.id for cell in unfold(store.sweep, store.decisions).sweep.cells if not cell.stopped]
    assert "c50" in left and len(left) == 9
    assert steps == 81 * 9 + 27 * 18 + 9 * 54 and steps < 81 * 81 / 3


def test_a_thousand_decisions_are_the_same_in_any_order_of_arrival():
    rng, num = random.Random(0), 0
    while num < 1000:
        sweep = _halving(rng.randint(2, 12)) if rng.random() < 0.5 else two_phases(rng.randint(2, 6))
        results = {
            digest: None if rng.random() < 0.2 else float(rng.randint(0, 3)) for digest in sweep.stages
        }
        runs = [_played(sweep, results, random.Random(seed)) for seed in range(3)]
        assert runs[0] == runs[1] == runs[2]
        # Each follows again from the seal and what it lists.
        for place, decision in enumerate(runs[0]):
            question = unfold(sweep, runs[0][:place]).question
            assert question is not None and answer(question, decision.seen) == decision.chosen
            assert decode(encode(decision), Decision) == decision
        num += 3 * max(1, len(runs[0]))


def _played(sweep: ComposedSweep, results: Mapping[str, float | None], rng: random.Random) -> list[Decision]:
    """Runs the stages of a sweep one by one in an order of chance; after each, somebody decides."""
    store = Store(sweep)
    while True:
        unfolded = unfold(sweep, store.decisions).sweep
        todo = [
            digest
            for cell in unfolded.cells
            for digest in cell.stage_digests
            if digest not in store.scores
            and all(store.scores.get(t.digest) is not None for t in unfolded.stages[digest].inputs)
        ]
        if not todo:
            break
        chosen = rng.choice(todo)
        store.scores[chosen] = results[chosen]
        if rng.random() < 0.7:
            store.decide()
        if len(todo) == 1:
            store.decide()
    return store.decisions


def test_a_sweep_without_phases_is_sealed_as_before():
    sweep = _sweep([_cell("a", "d")], ())
    assert b"phases" not in canonical(sweep) and b"stopped" not in canonical(sweep)
    assert unfold(sweep, ()).sweep is sweep
