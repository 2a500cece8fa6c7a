"""Rule 3 and states: what may be claimed, as tables and as properties of the pure core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.evidence import Attempt, Budget, Evidence, Former, Hold, Holds, Liveness, causes, spent
from orchestrator.core.failure import DETERMINISTIC, Cause
from orchestrator.core.plan import Action, decide, next_stage
from orchestrator.core.records import Claim, Done, End, Heartbeat, Owner, Process, Supersedes, TimeSpent
from orchestrator.core.state import (
    FINAL,
    CellStatus,
    StageStatus,
    State,
    cell_status,
    goes_without,
    stage_status,
)
from orchestrator.core.sweep import Cell, Input, StageInstance

ELSEWHERE = Owner(host="h", process=Process(boot_id="b", namespace="n", pid=1, start="1"))
DONE = Done(nonce="", stage="s", digest="d", generation=1, attempt=1, files=(), rows=(), seconds=1.0)
RETRIES = {"unknown": 1, "nan": 1, "node_lost": 2, "data": 0, "storage": 1}


def attempt(
    number: int,
    outcome: str | None,
    cause: Cause | None = None,
    supersedes: int | None = None,
    why: str = "why",
) -> Attempt:
    """An attempt; without an outcome it has no `end`."""
    claim = Claim(
        nonce="",
        owner=ELSEWHERE,
        lease_s=90.0,
        generation=1,
        sweep="s",
        cell="c",
        supersedes=supersedes and Supersedes(attempt=supersedes, evidence="gone", cause=Cause.NODE_LOST),
    )
    end = outcome and End(nonce="", outcome=outcome, cause=cause if outcome == "failed" else None, why=why)  # type: ignore[arg-type]
    return Attempt(number, claim, None, None, end or None)


def failed(*outcomes: Cause) -> tuple[Attempt, ...]:
    return tuple(attempt(number, "failed", cause) for number, cause in enumerate(outcomes, 1))


LOST_TWICE = (attempt(1, None), attempt(2, None, supersedes=1))
LOST_THRICE = (*LOST_TWICE, attempt(3, None, supersedes=2))
GAVE_WAY_TWICE = tuple(attempt(n, "released", None, n - 1 or None, "superseded") for n in (1, 2, 3))
GAVE_WAY_THRICE = (*GAVE_WAY_TWICE, attempt(4, "released", None, 3, "stopped"))


def saved(
    steps: Sequence[int | None], outcome: str | None, cause: Cause | None = None
) -> tuple[Attempt, ...]:
    """Attempts that ended in one way, each with the step of its last checkpoint."""
    made = []
    for number, step in enumerate(steps, 1):
        spent = TimeSpent(saved_step=step)
        one = attempt(number, outcome, cause, number - 1 or None if outcome is None else None)
        end = one.end and msgspec.structs.replace(one.end, spent=spent)
        made.append(one._replace(end=end, heartbeat=Heartbeat(counter=1, phase="", spent=spent)))
    return tuple(made)


SUCCEEDED_TWICE = (attempt(1, "succeeded"), attempt(2, "succeeded"))
SUCCEEDED_THRICE = (*SUCCEEDED_TWICE, attempt(3, "succeeded"))
GONE = {"liveness": Liveness.GONE}

TABLE: list[tuple[str, dict[str, Any], State]] = [
    ("nothing was tried", {}, State.PENDING),
    ("there is a product", {"done": DONE}, State.DONE),
    ("a product and failures", {"done": DONE, "attempts": failed(*[Cause.DATA] * 9)}, State.DONE),
    ("a product, no end", {"done": DONE, "attempts": (attempt(1, None),)}, State.DONE),
    ("an attempt runs", {"attempts": (attempt(1, None),), "liveness": Liveness.ALIVE}, State.RUNNING),
    ("an attempt, owner elsewhere", {"attempts": (attempt(1, None),)}, State.RUNNING),
    ("its owner is gone", {"attempts": (attempt(1, None),), **GONE}, State.LOST),
    ("lost as often as the budget", {"attempts": LOST_TWICE, **GONE}, State.LOST),
    ("lost more often", {"attempts": LOST_THRICE, **GONE}, State.FAILED),
    ("taken over as often", {"attempts": GAVE_WAY_TWICE}, State.RELEASED),
    ("taken over more often by those who thought it lost", {"attempts": GAVE_WAY_THRICE}, State.FAILED),
    ("one failure of two allowed", {"attempts": failed(Cause.UNKNOWN)}, State.PENDING),
    ("the budget is spent", {"attempts": failed(Cause.UNKNOWN, Cause.UNKNOWN)}, State.FAILED),
    ("a cause without retries", {"attempts": failed(Cause.DATA)}, State.FAILED),
    ("a cause that is not named", {"attempts": failed(Cause.TIMEOUT)}, State.FAILED),
    ("budgets are by cause", {"attempts": failed(Cause.UNKNOWN, Cause.NAN)}, State.PENDING),
    ("lost often, each time further", {"attempts": saved((5, 6, 9, 10), None), **GONE}, State.LOST),
    ("lost, and no further after that", {"attempts": saved((5, 9, 9, None), None), **GONE}, State.FAILED),
    ("lost, and less far in between", {"attempts": saved((5, 4, None, 3), None), **GONE}, State.FAILED),
    ("crashed, each time further", {"attempts": saved((1, 2, 3), "failed", Cause.UNKNOWN)}, State.PENDING),
    ("not finite, each time further", {"attempts": saved((1, 2, 3), "failed", Cause.NAN)}, State.FAILED),
    ("no retry allowed, although further", {"attempts": saved((7,), "failed", Cause.BAD_NODE)}, State.FAILED),
    ("released", {"attempts": (attempt(1, "released"),)}, State.RELEASED),
    ("released often", {"attempts": tuple(attempt(n, "released") for n in range(1, 99))}, State.RELEASED),
    ("voided", {"attempts": (attempt(1, "succeeded"),), "generation": 2, "problem": "void"}, State.PENDING),
    ("damaged", {"attempts": (attempt(1, "succeeded"),), "problem": "p", "damaged": True}, State.PENDING),
    ("damaged again and again", {"attempts": SUCCEEDED_TWICE, "problem": "p", "damaged": True}, State.FAILED),
    ("discarded often", {"attempts": SUCCEEDED_TWICE, "discarded": frozenset({1, 2})}, State.PENDING),
    ("once of many discarded", {"attempts": SUCCEEDED_THRICE, "discarded": frozenset({2})}, State.FAILED),
]


@pytest.mark.parametrize(("evidence", "state"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_state_of_a_stage(evidence: dict[str, Any], state: State) -> None:
    assert stage_status(Evidence(**evidence), Budget(RETRIES)).state is state


# Properties

CAUSES = st.sampled_from(list(Cause))
OUTCOMES = st.lists(
    st.tuples(
        st.sampled_from(["failed", "released", "succeeded", "lost"]), CAUSES, st.none() | st.integers(0, 3)
    ),
    max_size=6,
)
BUDGETS = st.builds(
    Budget,
    st.dictionaries(st.sampled_from([str(cause) for cause in Cause]), st.integers(0, 3)),
    st.integers(0, 6),
    st.integers(0, 6),
)


@st.composite
def evidences(draw: st.DrawFn) -> Evidence:
    """Attempts of any outcomes; one without an end is superseded by the next."""
    attempts: list[Attempt] = []
    for number, (outcome, cause, step) in enumerate(draw(OUTCOMES), 1):
        supersedes = number - 1 if attempts and attempts[-1].end is None else None
        one = attempt(number, None if outcome == "lost" else outcome, cause, supersedes)
        end = one.end and msgspec.structs.replace(one.end, spent=TimeSpent(saved_step=step))
        attempts.append(one._replace(end=end))
    done = draw(st.none() | st.just(DONE))
    damaged = done is None and draw(st.booleans())
    return Evidence(
        attempts=tuple(attempts),
        done=done,
        problem="damaged" if damaged else "",
        damaged=damaged,
        liveness=draw(st.sampled_from(list(Liveness))),
        liveness_reason="looked",
    )


CLAIMABLE = {State.PENDING, State.RELEASED, State.LOST}


def is_claimable(evidence: Evidence, budget: Budget) -> bool:
    """What a worker decides about a stage without inputs."""
    instance = StageInstance(stage="s", digest="d", reads={})
    cell = Cell(id="c", axes={}, columns={}, config={}, stage_digests=("d",))
    scan = next_stage(
        [cell], {"d": instance}, lambda _: stage_status(evidence, budget), cancelled=frozenset()
    )
    return scan.claimable is not None


@given(evidences(), BUDGETS)
def test_a_stage_that_is_done_is_never_claimed(evidence: Evidence, budget: Budget) -> None:
    if evidence.done is not None:
        assert not is_claimable(evidence, budget)


@given(evidences(), BUDGETS)
def test_a_stage_whose_budget_is_spent_is_never_claimed(evidence: Evidence, budget: Budget) -> None:
    if spent(evidence, budget) is not None:
        assert not is_claimable(evidence, budget)


@given(evidences(), BUDGETS)
def test_a_stage_with_an_attempt_that_may_live_is_never_claimed(evidence: Evidence, budget: Budget) -> None:
    last = evidence.attempts[-1] if evidence.attempts else None
    if last is not None and last.end is None and evidence.liveness is not Liveness.GONE:
        assert not is_claimable(evidence, budget)


@given(evidences(), BUDGETS)
def test_whatever_happened_a_stage_is_claimable_or_final_or_waited_for(
    evidence: Evidence, budget: Budget
) -> None:
    """No stage is stuck: it can be claimed, is over, or its attempt is watched until it ends or is dead."""
    status = stage_status(evidence, budget)
    assert (status.state in CLAIMABLE) == is_claimable(evidence, budget)
    assert status.state in CLAIMABLE | FINAL | {State.RUNNING}
    assert status.reason or status.state is State.DONE
    gone = evidence._replace(liveness=Liveness.GONE)
    assert stage_status(gone, budget).state is not State.RUNNING


@given(evidences(), BUDGETS, st.integers(0, 6))
def test_a_later_boundary_never_makes_a_stage_fail(evidence: Evidence, budget: Budget, more: int) -> None:
    if spent(evidence, budget) is None:
        assert spent(evidence, budget._replace(after=budget.after + more)) is None
        assert spent(evidence, budget._replace(after_chance=budget.after_chance + more)) is None


@given(evidences(), BUDGETS)
def test_a_launch_lifts_no_failure_that_chance_does_not_cure(evidence: Evidence, budget: Budget) -> None:
    found = spent(evidence, budget._replace(after=0, after_chance=99))
    assert found is None or found[0] in DETERMINISTIC


@given(evidences())
def test_every_attempt_that_is_over_has_at_most_one_cause(evidence: Evidence) -> None:
    numbers = [number for number, _ in causes(evidence)]
    assert len(numbers) == len(set(numbers))
    for over in evidence.attempts[:-1]:
        expected = over.end is None or over.end.outcome == "failed"
        expected |= over.end is not None and over.end.outcome == "succeeded" and evidence.done is None
        assert (over.number in numbers) == expected


# Chains

INSTANCES = {
    "a": StageInstance(stage="a", digest="a", reads={}),
    "b": StageInstance(stage="b", digest="b", reads={}, inputs=(Input("a", "", "a"),)),
    "c": StageInstance(stage="c", digest="c", reads={}, inputs=(Input("a", "", "a"), Input("b", "", "b"))),
    "d": StageInstance(stage="d", digest="d", reads={}),
}
CELLS = (
    Cell(id="one", axes={}, columns={}, config={}, stage_digests=("a", "b", "c")),
    Cell(id="two", axes={}, columns={}, config={}, stage_digests=("a", "b")),
    Cell(id="three", axes={}, columns={}, config={}, stage_digests=("d",)),
)
OWN_STATES = [State.DONE, State.RUNNING, State.FAILED, State.LOST, State.RELEASED, State.PENDING]
STATES = st.fixed_dictionaries({digest: st.sampled_from(OWN_STATES) for digest in INSTANCES})
CANCELS = st.frozensets(st.sampled_from([cell.id for cell in CELLS]))


def statuses(states: dict[str, State]) -> dict[str, StageStatus]:
    return {
        digest: StageStatus(state, "why", Cause.DATA if state is State.FAILED else None)
        for digest, state in states.items()
    }


@given(STATES, CANCELS)
def test_what_is_claimed_has_all_its_inputs_and_a_cell_that_wants_it(
    states: dict[str, State], cancelled: frozenset[str]
) -> None:
    known = statuses(states)
    scan = next_stage(CELLS, INSTANCES, known.__getitem__, cancelled=cancelled)
    if scan.claimable is not None:
        cell, instance = scan.claimable
        assert (
            states[instance.digest] in CLAIMABLE
            and cell.id not in cancelled
            and instance.digest in cell.stage_digests
        )
        assert all(states[taken.digest] is State.DONE for taken in instance.inputs)


HOLDS = st.builds(
    lambda cells, stages: Holds(cells, stages),
    *(
        st.dictionaries(st.sampled_from(keys), st.builds(Hold, st.just("held"), st.booleans()))
        for keys in (sorted(cell.id for cell in CELLS), sorted(INSTANCES))
    ),
)


@given(STATES, CANCELS, HOLDS)
def test_what_is_held_is_not_claimed_and_says_why(
    states: dict[str, State], cancelled: frozenset[str], holds: Holds
) -> None:
    known = statuses(states)
    scan = next_stage(CELLS, INSTANCES, known.__getitem__, cancelled=cancelled, holds=holds)
    if scan.claimable is not None:
        assert holds.of(scan.claimable.cell.id, scan.claimable.instance.digest) is None
    for cell in CELLS:
        free = cell_status(cell, INSTANCES, known, cancelled=cell.id in cancelled)
        found = cell_status(cell, INSTANCES, known, cancelled=cell.id in cancelled, holds=holds)
        for digest, status in found.stages.items():
            hold = holds.of(cell.id, digest)
            if hold is not None and hold.is_final and free.stages[digest].state in CLAIMABLE:
                assert status.state is State.BLOCKED
            if status.reason == "held":
                assert decide(cell, found)[digest].reason == "held"


@given(STATES, CANCELS, HOLDS)
def test_a_worker_that_leaves_leaves_nothing_that_could_still_be_done(
    states: dict[str, State], cancelled: frozenset[str], holds: Holds
) -> None:
    """Every cell is then done, failed, blocked or cancelled: an assignment of final states."""
    known = statuses(states)
    scan = next_stage(CELLS, INSTANCES, known.__getitem__, cancelled=cancelled, holds=holds)
    if scan.claimable is None and not scan.waiting:
        for cell in CELLS:
            found = cell_status(cell, INSTANCES, known, cancelled=cell.id in cancelled, holds=holds)
            running = cell.id in cancelled and State.RUNNING in [states[d] for d in cell.stage_digests]
            assert found.state in FINAL or running


@given(STATES, CANCELS, st.sampled_from(["a", "b"]))
def test_what_takes_a_retired_product_is_blocked_unless_it_is_done_or_runs(
    states: dict[str, State], cancelled: frozenset[str], retired: str
) -> None:
    known = statuses({**states, retired: State.DONE})
    known[retired] = known[retired]._replace(retired="5 files under policy best")
    scan = next_stage(CELLS, INSTANCES, known.__getitem__, cancelled=cancelled)
    taken = {
        instance.digest for instance in INSTANCES.values() for i in instance.inputs if i.digest == retired
    }
    assert scan.claimable is None or scan.claimable.instance.digest not in taken
    for cell in CELLS:
        found = cell_status(cell, INSTANCES, known, cancelled=cell.id in cancelled, sweep="mine")
        for digest in taken & set(cell.stage_digests):
            status = found.stages[digest]
            assert status.state in (State.DONE, State.RUNNING, State.BLOCKED, State.CANCELLED)
            if status.state is State.BLOCKED and "5 files" in status.reason:
                assert f"sweep discard mine {cell.id}" in status.reason
                assert f"--stage {retired}" in status.reason
                assert decide(cell, found)[digest].action is Action.LEAVE
        if scan.claimable is None and not scan.waiting:
            running = cell.id in cancelled and State.RUNNING in [known[d].state for d in cell.stage_digests]
            assert found.state in FINAL or running


@given(STATES, CANCELS, st.sampled_from(["", "it is damaged"]))
def test_what_an_earlier_version_made_stands_in_for_a_retired_product_where_it_is_whole(
    states: dict[str, State], cancelled: frozenset[str], problem: str
) -> None:
    """Then all is as if nothing were retired; else as if there were no earlier version."""
    former = Former(INSTANCES["b"], None if problem else DONE, "made from before", problem)
    whole = statuses({**states, "a": State.DONE})
    retired = {**whole, "a": whole["a"]._replace(retired="5 files")}
    known = {**retired, **{digest: whole[digest]._replace(former=former) for digest in ("b", "c")}}
    same = retired if problem else whole

    def seen(statuses: dict[str, StageStatus]) -> list[Any]:
        cells = [cell_status(c, INSTANCES, statuses, cancelled=c.id in cancelled) for c in CELLS]
        return [
            next_stage(CELLS, INSTANCES, statuses.__getitem__, cancelled=cancelled),
            [[status.state for status in cell.stages.values()] for cell in cells],
        ]

    assert seen(known) == seen(same)
    for status in cell_status(CELLS[0], INSTANCES, known, cancelled=False).stages.values():
        if status.former and status.state is State.BLOCKED and "5 files" in status.reason:
            assert problem and problem in status.reason
        if status.former and status.state is State.PENDING:
            assert status.reason.startswith("made from before, without the retired files of a")
    assert goes_without(known["b"], [known["a"]]) == (problem == "")
    assert not goes_without(known["b"], [whole["a"]])


def test_a_product_that_did_not_suffice_counts_again_after_a_rerun() -> None:
    former = Former(INSTANCES["c"], DONE, "made from before")
    attempts = (attempt(1, "released", why="input_retired"), attempt(2, "released", why="not_kept"))
    evidence = Evidence(attempts=attempts, former=former)
    assert not stage_status(evidence, Budget({}, after=1, after_chance=9)).going_on
    assert stage_status(evidence, Budget({}, after=2)).going_on == "made from before"
    assert stage_status(evidence._replace(attempts=attempts[:1]), Budget({})).going_on


@given(STATES, CANCELS)
def test_a_plan_has_an_action_for_every_stage_and_says_why(
    states: dict[str, State], cancelled: frozenset[str]
) -> None:
    for cell in CELLS:
        status: CellStatus = cell_status(cell, INSTANCES, statuses(states), cancelled=cell.id in cancelled)
        steps = decide(cell, status)
        assert list(steps) == list(cell.stage_digests)
        assert all(step.reason for step in steps.values())
        assert all((step.action is Action.REUSE) == (states[d] is State.DONE) for d, step in steps.items())
