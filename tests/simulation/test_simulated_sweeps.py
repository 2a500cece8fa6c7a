"""A sweep under a virtual clock: real decisions, simulated time, faults and preemption."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from orchestrator.core import holding, plan, schedule, state
from orchestrator.core.evidence import Budget, Evidence, Hold, Holds
from orchestrator.core.failure import Cause
from orchestrator.core.holding import SweepRecords
from orchestrator.core.schedule import PlannedStage as S
from orchestrator.core.settings import Policy, SpendingLimit
from orchestrator.core.state import StageStatus, State
from orchestrator.simulation.cluster import Outcome
from orchestrator.simulation.decisions import RESTART_S
from orchestrator.simulation.scenario import FaultKind, FaultTable
from orchestrator.stage import StageSpec
from tests.simulation.cluster import POLICY, gates_of, play, table


def states(found: Outcome) -> dict[str, str]:
    return {cell: str(status.state) for cell, status in found.cells.items()}


STAGES = st.tuples(
    st.integers(0, 9), st.sampled_from([0, 1, 2, 4]), st.frozensets(st.integers(0, 9), max_size=2)
)


@given(st.lists(STAGES, min_size=1, max_size=10), st.sampled_from([4, 6, 9]))
def test_without_failures_the_time_is_that_of_list_scheduling(stages: list[Any], num_gpus: int) -> None:
    """The reference is the estimate by which GPUs are chosen; each stage is shared by two cells here."""
    work = {
        str(n): S(hours, gpus, tuple(str(i) for i in sorted(inputs) if i < n))
        for n, (hours, gpus, inputs) in enumerate(stages)
    }

    def chain(key: str) -> list[str]:
        return list(dict.fromkeys([d for taken in work[key].inputs for d in chain(taken)] + [key]))

    cells = {f"{twin}-{key}": chain(key) for key in work for twin in "ab"}
    found = play(work, num_gpus, cells, gpus_per_node=4)
    assert found.hours == pytest.approx(schedule.makespan_hours(work, num_gpus, gpus_per_node=4))
    assert set(states(found).values()) == {"done"}
    assert found.attempts == {"succeeded": len(work)}


def test_a_cell_runs_its_own_stages_one_after_another_on_the_gpus_that_it_holds() -> None:
    work = {"shared": S(1, 0), "train": S(4, 4, ("shared",)), "score": S(1, 1, ("train",)), "b": S(3, 4)}
    found = play(work, 4, {"a": ["shared", "train", "score"], "b": ["b"], "c": ["shared"]})
    assert found.hours == 8  # b for 3 hours while the longer cell waits for what it shares
    assert found.goodput is not None
    assert found.goodput.total == 3600 * 4 * 8


def test_the_order_follows_the_estimates_and_the_time_follows_the_truth() -> None:
    work = {"0": S(5, 1), "1": S(4, 1), "2": S(3, 1)}
    assert play(work, 2, true_hours={"0": 1, "1": 1, "2": 9}).hours == 10
    assert play({"2": S(3, 1), "1": S(4, 1), "0": S(5, 1)}, 2, longest_first=False).hours == 8


HOURLY = {"interval_s": 3600.0, "stop_s": 60.0, "load_s": 30.0}


def test_a_job_that_is_preempted_goes_on_from_what_it_saved() -> None:
    found = play({"a": S(10, 2)}, 8, checkpoints=HOURLY, preempt_s=4 * 3600.0)
    assert states(found) == {"cell-a": "done"}
    assert found.attempts == {"released": 2, "succeeded": 1}
    assert found.hours == pytest.approx(10 + 2 * (60 + 30 + RESTART_S) / 3600)  # save, load, start again
    assert found.goodput is not None
    parts = {name: amount / 2 for name, amount in found.goodput.parts.items() if amount > 0.01}
    assert parts == pytest.approx({"compute": 36_000, "save": 120, "restore": 2 * (30 + RESTART_S)})


def test_a_fault_costs_the_work_since_the_last_checkpoint() -> None:
    found = play({"a": S(40, 8)}, 8, checkpoints=HOURLY, faults=table("communication", 0.01), seed=1)
    number = found.faults["it broke"]
    assert states(found) == {"cell-a": "done"} and 0 < number <= 3
    assert found.attempts == {"failed": number, "succeeded": 1}
    assert found.goodput is not None
    assert found.goodput.useful == pytest.approx(8 * 40 * 3600)
    assert 0 < found.goodput.lost_by["communication"] < 8 * 3600 * number
    assert sum(found.goodput.parts.values()) == pytest.approx(8 * 3600 * found.hours)


def test_without_checkpoints_a_fault_costs_the_whole_attempt() -> None:
    found = play({"a": S(40, 8)}, 8, faults=table("communication", 0.005), seed=3)
    assert found.goodput is not None and found.attempts["failed"] > 0
    assert found.goodput.lost_by["communication"] == pytest.approx(8 * 3600 * (found.hours - 40), rel=0.01)


def test_a_stage_of_a_lost_node_starts_again_when_its_lease_is_over() -> None:
    work = {"a": S(30, 4)}
    calm, stormy = (
        play(work, 8, gpus_per_node=4),
        play(
            work,
            8,
            gpus_per_node=4,
            checkpoints=HOURLY,
            faults=table("node_lost", 0.01, node_hours=1e6),
            seed=6,
        ),
    )
    assert stormy.attempts == {"lost": 1, "succeeded": 1}
    lost_s = 3600 * (stormy.hours - calm.hours) - 90 - 30 - RESTART_S
    assert 0 < lost_s < 3600
    assert stormy.goodput is not None
    assert stormy.goodput.lost_by["node_lost"] == pytest.approx(4 * lost_s)


def test_all_that_runs_on_a_node_is_lost_with_it_and_it_comes_back() -> None:
    work = {str(n): S(10, 1) for n in range(4)}
    found = play(work, 4, gpus_per_node=4, faults=table("bad_node", 0.02, node_hours=5), seed=4)
    assert found.attempts["lost"] == 3 * found.faults["it broke"]
    assert set(states(found).values()) == {"done"} and found.hours > 15


def test_when_the_budget_of_a_cause_is_spent_the_cell_fails_and_what_takes_the_stage_is_blocked() -> None:
    work = {"base": S(50, 1), "a": S(1, 1, ("base",)), "b": S(1, 1)}
    cells = {"one": ["base", "a"], "two": ["base"], "three": ["b"]}
    found = play(work, 8, cells, faults=table("unknown", 0.2), seed=1)
    assert found.cells["one"].stages["base"].state is State.FAILED
    assert found.cells["one"].stages["a"].state is State.BLOCKED
    assert found.attempts["failed"] == 2 + (states(found)["three"] != "done") * 2
    assert "unknown, 2 attempts" in found.cells["two"].reason


def test_a_changed_rule_of_retries_changes_what_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    work, storm = {"base": S(9, 1)}, table("unknown", 0.2)
    before = play(work, 8, faults=storm, seed=1)

    def never(evidence: Evidence, budget: Budget) -> tuple[Cause, int] | None:
        return None

    monkeypatch.setattr(state, "spent", never)
    after = play(work, 8, faults=storm, seed=1)
    assert (states(before), states(after)) == ({"cell-base": "failed"}, {"cell-base": "done"})
    assert after.attempts["failed"] > before.attempts["failed"]


def test_a_changed_rule_of_what_may_start_changes_what_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    work = {"base": S(3, 1), "a": S(4, 1, ("base",)), "b": S(4, 1, ("base",))}
    cells = {"one": ["base", "a"], "two": ["base", "b"]}
    assert play(work, 8, cells).hours == 7

    def without_inputs(status: StageStatus, inputs: Iterable[StageStatus]) -> bool:
        return status.state is State.PENDING

    monkeypatch.setattr(plan, "is_claimable", without_inputs)
    assert play(work, 8, cells).hours == 4


def test_equal_seeds_give_equal_sweeps() -> None:
    work = {str(n): S(10 + n, 8) for n in range(20)}
    runs = [play(work, 32, checkpoints=HOURLY, faults=table("bad_node", 0.003, 2), seed=n) for n in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def _large(num_cells: int, num_gpus: int, seconds: float) -> None:
    """Cells of 576 GPU-hours each on nodes of 8 GPUs, at a hundred times the measured rate of faults."""
    drawn = random.Random(0)
    chains = {f"cell{n}": ["base", f"train{n}", f"score{n}"] for n in range(num_cells)}
    work = {"base": S(0.1, 1)}
    for n in range(num_cells):
        gpus = drawn.choice([4, 8])
        hours = 560 / gpus * drawn.lognormvariate(0, 0.3)
        work |= {f"train{n}": S(hours, gpus, ("base",)), f"score{n}": S(16 / gpus, gpus, (f"train{n}",))}
    start_s = time.process_time()
    found = play(work, num_gpus, chains, checkpoints=HOURLY, faults=table("bad_node", 0.002, 6))
    assert time.process_time() - start_s < seconds
    assert sum(found.faults.values()) > num_cells / 2
    assert list(itertools.chain(found.cells)) == list(chains)


def test_a_thousand_cells_with_failures_take_seconds() -> None:
    _large(1_000, 800, 15)


@pytest.mark.long
def test_ten_thousand_cells_with_failures_take_less_than_five_minutes() -> None:
    _large(10_000, 8_000, 300)


def test_at_the_budget_what_runs_saves_and_ends_and_nothing_else_starts() -> None:
    work = {str(n): S(10, 2) for n in range(4)}
    budget = SpendingLimit(gpu_hours=50)
    policy = Policy(budget=budget, checkpoint_interval_s=600.0)
    found = play(work, 4, checkpoints=HOURLY, policy=policy)
    assert found.attempts == {"succeeded": 2, "released": 2}
    assert found.goodput is not None
    assert found.goodput.total == pytest.approx(50 * 3600 + 4 * 60, rel=1e-4)  # one save of two jobs
    assert sorted(states(found).values()) == ["blocked", "blocked", "done", "done"]
    assert "policy.budget.gpu_hours=50 are spent" in found.cells["cell-3"].reason


def test_near_the_budget_no_stage_starts_that_could_not_reach_a_checkpoint() -> None:
    policy = Policy(budget=SpendingLimit(gpu_hours=10.5))
    found = play({"a": S(5, 2), "b": S(4, 2)}, 2, checkpoints=HOURLY, policy=policy)
    assert (states(found), found.hours) == ({"cell-a": "done", "cell-b": "blocked"}, 5)


def test_after_the_end_of_the_budget_nothing_starts() -> None:
    policy = Policy(budget=SpendingLimit(until="2026-01-01T03:00+00:00"))
    start_at = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    found = play({"a": S(2, 1), "b": S(4, 1)}, 8, checkpoints=HOURLY, policy=policy, start_at=start_at)
    assert states(found) == {"cell-a": "done", "cell-b": "blocked"}
    assert found.hours == pytest.approx(3, abs=0.02)


GATED = {"rehearse": S(1, 1), "a": S(2, 1), "b": S(4, 1), "c": S(3, 1)}
CELLS = {"one": ["a"], "two": ["b"], "three": ["c"]}


def test_jobs_hold_their_gpus_while_the_gate_of_their_cell_runs() -> None:
    gates = gates_of(GATED, {"one": ("rehearse", "a"), "two": ("rehearse", "b")})
    found = play(GATED, 2, CELLS, gates=gates)
    assert found.attempts == {"succeeded": 4}
    assert found.hours == 6  # rehearse beside b, which waits; then b beside c and a
    assert found.goodput is not None
    assert found.goodput.parts["idle"] == pytest.approx(3600)
    assert play(GATED, 2, {**CELLS, "four": ["rehearse"]}).hours == 5


def test_a_worker_that_waits_runs_the_gate_itself_if_nobody_else_can() -> None:
    gates = gates_of(GATED, {"one": ("rehearse", "a"), "two": ("rehearse", "b")})
    flaky = FaultKind(name="flaky", cause=Cause.BAD_NODE, after_s=600.0, stage="rehearse", node=0)
    storm = FaultTable(source="", gpu_hours=1, faults=(flaky,))
    found = play(GATED, 2, CELLS, gates=gates, gpus_per_node=1, faults=storm)
    assert set(states(found).values()) == {"done"}
    assert found.attempts == {"failed": 1, "succeeded": 4}


def test_stages_wait_for_gates_of_other_cells_where_gates_come_first() -> None:
    work = {**GATED, "second": S(2, 1)}
    gates = gates_of(work, {"one": ("rehearse", "a"), "two": ("second", "b")})._replace(are_first=True)
    found = play(work, 4, CELLS, gates=gates)
    assert found.attempts == {"succeeded": 5}
    assert found.hours == 6  # b after the longer gate, and a too, though its own gate was done before
    assert found.goodput is not None and found.goodput.parts["idle"] > 0


def test_a_gate_that_fails_blocks_the_stages_that_wait_for_it_and_no_other() -> None:
    gates = gates_of(GATED, {"one": ("rehearse", "a"), "two": ("rehearse", "b")})
    storm = FaultTable(source="", gpu_hours=1, faults=(FaultKind(name="bug", count=1, cause=Cause.CODE),))
    seed = next(
        n
        for n in range(99)
        if play({"rehearse": S(1, 1)}, 1, {"one": ["rehearse"]}, faults=storm, seed=n).faults
    )
    found = play(GATED, 2, CELLS, gates=gates, faults=storm, seed=seed)
    assert states(found)["one"] == states(found)["two"] == "blocked"
    assert found.attempts["failed"] == sum(found.faults.values())
    assert "rehearse is failed" in found.cells["one"].reason


def test_a_mistake_hurts_the_cells_that_it_meets_and_costs_what_they_had_done() -> None:
    bug = FaultKind(name="bad row", cause=Cause.DATA, after_s=1800.0, stage="a")
    storm = FaultTable(source="", gpu_hours=1, faults=(bug,))
    found = play({"a": S(2, 4), "b": S(3, 4)}, 8, faults=storm)
    assert states(found) == {"cell-a": "failed", "cell-b": "done"}
    assert found.goodput is not None
    assert found.goodput.lost_by == {"data": 4 * 1800.0}


def test_a_rule_that_looks_at_all_stages_holds_back_simulated_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    bug = FaultKind(name="bad row", cause=Cause.DATA, after_s=1800.0, stage="a")
    storm = FaultTable(source="", gpu_hours=1, faults=(bug,))
    work = {f"a-{n}": S(2 + n, 1) for n in range(6)}
    assert play(work, 1, faults=storm).attempts == {"failed": 6}

    def after_two(records: SweepRecords) -> Holds:
        failed = [d for d in records.unfinished if records.status(d).state is State.FAILED]
        cells = records.sweep.cells if len(failed) > 1 else ()
        return Holds({cell.id: Hold("two failed") for cell in cells})

    monkeypatch.setattr(holding, "RULES", (after_two,))
    found = play(work, 1, faults=storm)
    assert found.attempts == {"failed": 2}
    assert sorted(states(found).values()) == ["blocked"] * 4 + ["failed"] * 2


def test_the_next_attempts_of_a_class_start_with_the_remedy_and_only_its_first_failures_cost() -> None:
    spec = StageSpec(
        run="m:f",
        uses=("micro_batch", "accumulation"),
        remedies={"oom_gpu": ({"halve": "micro_batch", "double": "accumulation", "times": 2},)},
    )
    oom = FaultKind(name="out of memory", cause=Cause.OOM_GPU, after_s=60.0, cured_at=2)
    found = play(
        {f"train-{n}": S(2, 1) for n in range(6)},
        2,
        specs={"train": spec},
        config={"micro_batch": 8, "accumulation": 1},
        policy=Policy(retries={"oom_gpu": 0}),
        faults=FaultTable(source="", gpu_hours=1, faults=(oom,)),
    )
    assert set(states(found).values()) == {"done"}
    assert found.attempts == {"succeeded": 6, "failed": 4}  # two at once on rung 0, the same two on rung 1
    assert found.num_remedied == 8


@pytest.mark.parametrize(("breaker", "failed"), [(3, 3), (0, 6)])
def test_the_breaker_holds_back_the_cells_that_a_mistake_would_hurt_next(breaker: int, failed: int) -> None:
    bug = FaultKind(name="bad row", cause=Cause.DATA, after_s=1800.0, axes={"task": "math"})
    cells = {f"{task}{n}": {"task": task, "seed": str(n)} for task in ("math", "code") for n in range(6)}
    found = play(
        {f"train-{cell}": S(2, 1) for cell in cells},
        1,
        {cell: [f"train-{cell}"] for cell in cells},
        axes=cells,
        policy=Policy(breaker=breaker),
        faults=FaultTable(source="", gpu_hours=1, faults=(bug,)),
    )
    assert found.attempts == {"failed": failed, "succeeded": 6}
    counts = Counter(states(found).values())
    assert counts == {"failed": failed, "done": 6, **({"blocked": 6 - failed} if failed < 6 else {})}


def test_a_node_that_kills_every_attempt_is_left_out_and_hurts_few() -> None:
    killer = FaultKind(name="killed", cause=Cause.BAD_NODE, after_s=5.0, node=0)
    storm = FaultTable(source="", gpu_hours=1, faults=(killer,))
    work = {f"a-{n}": S(2, 4) for n in range(6)}
    failed = {}
    for quarantine_s in (0.0, 86_400.0):
        policy = Policy(retries={"bad_node": 3}, quarantine_s=quarantine_s)
        found = play(work, 8, gpus_per_node=4, policy=policy, faults=storm)
        failed[quarantine_s] = found.attempts["failed"]
        assert (found.num_left_out > 0) == (quarantine_s > 0)
        assert (found.away_gpu_hours > 3 * found.hours) == (quarantine_s > 0)
    assert set(states(found).values()) == {"done"}
    assert failed == {0.0: 20, 86_400.0: 2}  # without it five cells spend their retries there


def full(*, is_taken: bool = False) -> FaultTable:
    """A table by which the disk is full from hour 4 to hour 6."""
    fault = FaultKind(
        name="No space left on device", cause=Cause.STORAGE, full_hours=(4.0, 6.0), is_taken=is_taken
    )
    return FaultTable(source="ours", gpu_hours=1.0, faults=(fault,))


def test_stages_that_have_saved_go_on_while_the_disk_is_full_and_nothing_else_starts() -> None:
    policy = replace(POLICY, retries={"storage": 1})
    work = {"long": S(8, 4), "ends": S(5, 2), "other": S(4.5, 2)}
    found = play(work, 8, checkpoints=HOURLY, faults=full(), policy=policy)
    assert found.attempts == {"succeeded": 3} and found.hours == 8  # each has saved twice by then
    found = play({**work, "late": S(1, 2)}, 8, faults=full(), policy=policy)
    assert set(states(found).values()) == {"done"}
    assert found.attempts == {"failed": 2, "succeeded": 4}  # `late` does not start in the place of `other`
    assert found.hours == 6 + 5  # without a checkpoint `ends` begins again


def test_what_others_take_of_a_full_disk_costs_the_work_since_the_last_checkpoint() -> None:
    policy = replace(POLICY, retries={"storage": 1})
    found = play({"ends": S(5.5, 2)}, 8, checkpoints=HOURLY, faults=full(is_taken=True), policy=policy)
    assert found.attempts == {"failed": 1, "succeeded": 1}
    assert found.goodput is not None
    assert found.goodput.lost_by["storage"] == pytest.approx(2 * 1.5 * 3600)  # since the one of hour 4
    assert found.hours == pytest.approx(6 + 1.5 + (30 + RESTART_S) / 3600)


def with_room(number: int, stage: str) -> FaultTable:
    """A table of a disk that has room for so many stages of a name at once."""
    fault = FaultKind(name="No space left on device", cause=Cause.STORAGE, stage=stage, room=number)
    return FaultTable(source="ours", gpu_hours=1.0, faults=(fault,))


@pytest.mark.parametrize("room", [1, 2, 3])
@pytest.mark.parametrize("equal", [True, False])
def test_on_a_disk_with_room_for_some_stages_all_end_since_they_run_alone_in_the_end(
    room: int, equal: bool
) -> None:
    """Equal pauses let equal stages start together until no retry is left."""
    policy = replace(POLICY, retries={"storage": 2})
    work = {f"fit-{n}": S(1.0 if equal else 1 + n / 8, 2) for n in range(6)} | {"other": S(9, 2)}
    found = play(work, 16, faults=with_room(room, "fit"), policy=policy)
    assert set(states(found).values()) == {"done"}
    assert found.attempts["failed"] <= 12, "two each at most"
    assert found.hours < 2 * 1.75 + 6 * 1.75 + 1
