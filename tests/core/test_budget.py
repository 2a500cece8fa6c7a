"""A budget lets a stage start if it can reach a checkpoint, and says how to raise it when it cannot."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.evidence import NO_HOLDS, Budget, Evidence, Spending, budget_hold, over_budget
from orchestrator.core.holding import SweepRecords, within_budget
from orchestrator.core.plan import RequestSummary
from orchestrator.core.settings import Policy, SpendingLimit, engine_from
from orchestrator.core.state import stage_status
from orchestrator.errors import UserError
from tests.store.builders import sweep_of

NOON = "2026-12-24T12:00+01:00"
NOON_S = datetime.fromisoformat(NOON).timestamp()
TEN_HOURS = SpendingLimit(gpu_hours=10)


@pytest.mark.parametrize(
    ("spent_hours", "running", "starts", "waits"),
    [
        (3, 4, True, False),
        (3, 12, False, True),
        (8.5, 0, False, False),
        (10, 0, False, False),
        (8, 0, True, False),
    ],
)
def test_a_stage_starts_if_all_that_run_can_reach_a_checkpoint(
    spent_hours: float, running: float, starts: bool, waits: bool
) -> None:
    spending = Spending(3600 * spent_hours, running, checkpoint_s=1800)
    hold = budget_hold(TEN_HOURS, spending, num_gpus=4, now=0.0, sweep="s")
    assert (hold is None) == starts
    assert hold is None or hold.is_final != waits
    assert hold is None or "sweep launch s policy.budget.gpu_hours=" in hold.reason


def test_workers_without_gpus_spend_nothing() -> None:
    spent = Spending(3600 * 20, 0, 60)
    assert budget_hold(TEN_HOURS, spending=spent, num_gpus=0, now=0.0) is None
    assert budget_hold(TEN_HOURS, spending=spent, num_gpus=1, now=0.0) is not None


def test_without_a_limit_nothing_is_held() -> None:
    assert budget_hold(SpendingLimit(), Spending(1e12, 8, 60), num_gpus=8, now=1e12) is None
    assert over_budget(SpendingLimit(), Spending(1e12, 8, 60), now=1e12) == ""


def test_time_ends_a_budget_for_all_workers() -> None:
    limit = SpendingLimit(until=NOON)
    nothing = Spending(0.0, 0, 60)
    assert budget_hold(limit, nothing, num_gpus=0, now=NOON_S - 1) is None
    hold = budget_hold(limit, nothing, num_gpus=0, now=NOON_S)
    assert hold is not None and hold.is_final and "until" in hold.reason
    assert over_budget(limit, nothing, now=NOON_S) != ""


@given(st.floats(0, 20), st.integers(0, 64), st.floats(0, 1e4), st.integers(1, 8), st.floats(0, 5))
def test_what_was_spent_never_frees_a_stage(
    hours: float, running: int, checkpoint_s: float, gpus: int, more: float
) -> None:
    before = budget_hold(TEN_HOURS, Spending(3600 * hours, running, checkpoint_s), num_gpus=gpus, now=0.0)
    after = budget_hold(
        TEN_HOURS, Spending(3600 * (hours + more), running, checkpoint_s), num_gpus=gpus, now=0.0
    )
    assert before is None or after is not None


@pytest.mark.parametrize(
    "budget",
    [{"gpu_hours": -1}, {"gpu_hours": float("nan")}, {"until": "noon"}, {"until": "2026-12-24T12:00"}],
)
def test_a_budget_that_means_nothing_is_refused(budget: dict[str, object]) -> None:
    tree = {"launcher": {"name": "local"}, "tracker": {}, "store": {}, "policy": {"budget": budget}}
    with pytest.raises(UserError, match=r"policy\.budget"):
        engine_from(tree)


@pytest.mark.parametrize("spent_hours", [0, 8.9, 10])
def test_the_rule_of_a_sweep_holds_every_stage_and_nobody_waits(spent_hours: float) -> None:
    sweep = sweep_of(3)
    records = SweepRecords(
        sweep=sweep,
        evidence=lambda digest: Evidence(),
        status=lambda digest: stage_status(Evidence(), Budget({})),
        unfinished=(),
        requests=RequestSummary(frozenset(), {}, {}),
        policy=Policy(budget=TEN_HOURS),
        codes={},
        spending=Spending(3600 * spent_hours, 4, checkpoint_s=3600, worker_gpus=1),
    )
    found = within_budget(records)
    if spent_hours == 0:
        assert found == NO_HOLDS
    else:
        assert set(found.stages) == set(sweep.stages)
        assert all(hold.is_final for hold in found.stages.values())
    assert within_budget(records._replace(spending=None)) == NO_HOLDS
