"""A plan: what a launch would do with each stage, what all cost together, and the assumed hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.api.planning import Plan, after_launch, hardware_of, steps_of
from orchestrator.api.rehearsals import planned_facts
from orchestrator.api.state import SweepState
from orchestrator.core.failure import Cause
from orchestrator.core.gates import gates_of
from orchestrator.core.records import Request
from orchestrator.core.settings import HardwareSettings
from orchestrator.costs import ADDED, Estimate, together
from orchestrator.count import COUNT
from orchestrator.errors import UserError
from orchestrator.stage import StageSpec
from orchestrator.store.access import new_nonce
from tests.store.builders import claim, end, ledger_at, make_product, seal, settings, sweep_of


@pytest.mark.parametrize(
    ("cause", "actions"),
    [
        (None, ["run", "run"]),
        (Cause.UNKNOWN, ["run", "run"]),  # today blocked, by a stage that a launch tries again
        (Cause.NODE_LOST, ["run", "run"]),
        (Cause.DATA, ["leave", "leave"]),
        ("done", ["reuse", "run"]),
    ],
)
def test_a_plan_shows_what_a_launch_with_fresh_budgets_would_do_and_why_by_what_is_so_today(
    tmp_path: Path, cause: Cause | str | None, actions: list[str]
) -> None:
    use = StageSpec(command="true", reads=("shared",), after=("count",))
    sweep, ledger = sweep_of(1, {"count": COUNT, "use": use}), ledger_at(tmp_path)
    seal(tmp_path, sweep)
    (cell,) = sweep.cells
    count = sweep.stages[cell.stage_digests[0]]
    chosen = settings(retries={})
    launched = Request(nonce=new_nonce(), number=0, verb="launch", revision=1, settings=chosen)
    ledger.add_request(sweep.name, launched)
    if cause == "done":
        make_product(ledger, count)
    elif cause is not None:
        ledger.claim(count, 1, claim())
        ledger.end(count, 1, end(cause=Cause(cause)))
    view = SweepState(ledger, sweep, 1, sealed=True)
    steps = steps_of(view, after_launch(view, sweep.cells, None, chosen), sweep.cells)[cell.id]
    assert [str(step.action) for step in steps.values()] == actions
    first, second = (step.reason for step in steps.values())
    if isinstance(cause, Cause):
        assert str(cause) in f"{view.cells[cell.id].stages[count.digest].cause}"
        assert ("a fresh budget" in first) == (actions[0] == "run")
        assert ("count" in second) == (actions[1] == "leave")  # what it is blocked by
    assert len(view.requests) == 1


def test_a_plan_of_what_was_launched_has_the_gates_that_ran_then_whatever_hardware_it_assumes(
    tmp_path: Path,
) -> None:
    gate, work = (
        StageSpec(command="true", reads=("seed",)),
        msgspec.structs.replace(COUNT, gated_by=("gate",)),
    )
    sweep, ledger = sweep_of(2, {"gate": gate, "count": work}), ledger_at(tmp_path)
    seal(tmp_path, sweep)
    assumed, chosen = HardwareSettings(device="h100"), settings()

    def planned(num_cells: int) -> set[str]:
        view = SweepState(ledger, sweep, 1, sealed=True)
        plan = Plan(view, sweep.cells[:num_cells], chosen, assumed, (), prefetch="")
        return {*plan.view.gates.instances}

    first, alone = planned(2), planned(1)
    assert len(first) == 2 and alone < first
    facts = planned_facts(SweepState(ledger, sweep, 1, sealed=True), None, chosen, assumed, ())
    assert facts is not None
    ran = msgspec.structs.replace(facts, device="a machine's own GPU")
    request = Request(nonce=new_nonce(), number=0, verb="launch", revision=1, settings=chosen, gates=ran)
    ledger.add_request(sweep.name, request)
    assert planned(2) == {*gates_of(sweep, ran).instances} != first
    assert planned(1) == alone  # a launch of a cell was not that one


def test_the_hardware_of_a_plan_is_that_of_the_settings_but_for_the_options_that_are_given() -> None:
    known = HardwareSettings(device="h100", max_gpus=4)
    assert hardware_of(known, device=None, mfu=None) == known
    assert hardware_of(known, mfu=0.5) == HardwareSettings(device="h100", max_gpus=4, mfu=0.5)
    with pytest.raises(UserError, match="unknown device 'h1000'") as error:
        hardware_of(known, device="h1000", cells_at_once=2)
    assert error.value.where == "--device h1000 --cells-at-once 2"


def test_stages_together_cost_the_sum_and_need_what_the_largest_needs() -> None:
    small: dict[str, Any] = dict.fromkeys(ADDED, 1) | {"wall_hours": 1.0, "disk_gib": 2.0}
    first = Estimate(**small, peak_disk_gib=7.0, memory_gib=3.0, num_gpus=1, assumptions=("a", "b"))
    second = Estimate(
        **small | {"wall_hours": 3.0, "disk_gib": 4.0},
        peak_disk_gib=5.0,
        memory_gib=40.0,
        memory_terms_gib={"weights": 40.0},
        num_gpus=2,
        micro_batch=8,
        micro_batch_tokens=4096,
        recomputes="selective",
        useful_share=0.5,
        lost_s=9.0,
        assumptions=("b", "c"),
        measured=True,
    )
    last = Estimate(**small, micro_batch=1, recomputes=False, num_gpus=1, useful_share=0.9, lost_s=1.0)
    found = together([first, second, last])
    assert {name: getattr(found, name) for name in ADDED} == dict.fromkeys(ADDED, 3) | {
        "wall_hours": 5.0,
        "disk_gib": 8.0,
    }
    assert (found.micro_batch, found.micro_batch_tokens, found.recomputes) == (8, 4096, "selective")
    assert (found.memory_gib, found.memory_terms_gib, found.num_gpus) == (40.0, {"weights": 40.0}, 2)
    assert found.peak_disk_gib == 8.0 + 5.0  # what all leave, and what the first holds meanwhile
    assert found.useful_share == pytest.approx((0.5 * 6 + 0.9 * 1) / 7)
    assert (found.lost_s, found.measured, found.assumptions) == (9.0, True, ("a", "b", "c"))
    assert together([last]).recomputes is False and together([]) == Estimate()
