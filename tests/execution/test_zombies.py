"""Workers that freeze past their lease, are succeeded, and go on as if nothing had happened (rules 4, 5)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchestrator.core.sweep import ComposedSweep
from orchestrator.store import layout
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger
from tests.execution.faults import Running, Start, finish, order_for, steps_of
from tests.execution.test_kill_points import AT_ONCE, assert_each_is_done_once
from tests.execution.waiting import until
from tests.store.builders import instance_of, ledger_at, seal, sweep_of, void


def freeze(store: Path, start: Start, sweep: ComposedSweep, *, stride: int, how: str) -> dict[int, Running]:
    """Starts a worker for each k-th step, on a cell of its own, and returns those that froze, by cell."""
    warm_up = [finish(start, order_for(store, sweep.name, cells=(f"seed{i}",))) for i in (0, 1)]
    workers: dict[int, Running] = {}
    for k in range(1, steps_of(warm_up[1]) + 1, stride):
        cell = len(workers) + 2
        workers[cell] = start(order_for(store, sweep.name, cells=(f"seed{cell}",)), at=k, how=how)
        if len(workers) >= AT_ONCE:
            until(lambda w=workers[cell - AT_ONCE + 1]: w.is_stopped() or w.has_ended())  # type: ignore[misc]
    until(lambda: all(w.is_stopped() or w.has_ended() for w in workers.values()))
    return {cell: worker for cell, worker in workers.items() if worker.is_stopped()}


def assert_zombies_gave_up(ledger: Ledger, sweep: ComposedSweep, zombies: dict[int, Running]) -> None:
    """Each ended by itself; it is `released` unless its own product stands, and its own end says so."""
    for cell, worker in zombies.items():
        assert worker.wait() == 0, worker.output
        instance = instance_of(sweep, cell)
        product, _ = ledger.product(instance, 1)
        first = ledger.attempt(instance, 1)
        assert product is not None and first is not None
        if first.end is None or (first.claim and first.claim.owner.process.pid != worker.process.pid):
            assert "attempt 1" not in worker.output  # it froze before its claim: another's came first
        elif product.attempt == 1:
            assert first.end.outcome == "succeeded"
        else:
            assert first.end.outcome == "released", first.end
            assert first.end.why in ("superseded", "already_done")


@pytest.mark.parametrize(
    ("how", "stride"),
    [
        ("stop", 3),
        pytest.param("stop", 1, marks=pytest.mark.long),
        pytest.param("stop worker", 1, marks=pytest.mark.long),
    ],
)
def test_a_worker_that_froze_at_any_step_and_wakes_after_its_successor_ended_changes_nothing(
    store: Path, start: Start, how: str, stride: int
) -> None:
    sweep = sweep_of(40)
    seal(store, sweep)
    zombies = freeze(store, start, sweep, stride=stride, how=how)
    assert len(zombies) > 15 // stride
    cells = ("seed0", "seed1", *(f"seed{cell}" for cell in zombies))
    finish(start, order_for(store, sweep.name, cells=cells))
    mine = msgspec.structs.replace(sweep, cells=tuple(c for c in sweep.cells if c.id in cells))
    assert_each_is_done_once(store, mine)
    products = {path: path.read_bytes() for path in (store / "done").rglob("*.json")}
    for worker in zombies.values():
        worker.go_on()
    assert_zombies_gave_up(ledger_at(store), sweep, zombies)
    assert_each_is_done_once(store, mine)
    assert products == {path: path.read_bytes() for path in (store / "done").rglob("*.json")}


@pytest.mark.long
@pytest.mark.parametrize("how", ["stop", "stop worker"])
def test_a_worker_that_froze_at_any_step_and_wakes_beside_its_successor_does_no_harm(
    store: Path, start: Start, how: str
) -> None:
    """Whoever creates `done` first made the product; the other is released."""
    sweep = sweep_of(40, num_steps=4, step_s=0.1)
    seal(store, sweep)
    zombies = freeze(store, start, sweep, stride=1, how=how)
    cells = tuple(f"seed{cell}" for cell in zombies)
    successor = start(order_for(store, sweep.name, cells=cells))
    ledger = ledger_at(store)
    for cell, worker in zombies.items():
        instance = instance_of(sweep, cell)
        until(
            lambda n=instance, c=cell: (
                ledger.is_claimed(n, 2)
                or f"seed{c} " in successor.output  # type: ignore[misc]
                or ledger.is_done_or_void(n, 1)
            )
        )
        worker.go_on()
    assert successor.wait() == 0, successor.output
    for worker in zombies.values():
        assert worker.wait() == 0, worker.output
    mine = msgspec.structs.replace(sweep, cells=tuple(c for c in sweep.cells if c.id in cells))
    assert_each_is_done_once(store, mine, 4)
    for cell in zombies:
        instance = instance_of(sweep, cell)
        product, _ = ledger.product(instance, 1)
        assert product is not None
        for attempt in ledger.attempts(instance):
            if attempt.number != product.attempt:
                assert attempt.end is not None and attempt.end.outcome == "released", attempt


def test_a_zombie_of_a_void_generation_can_only_finish_its_own(store: Path, start: Start) -> None:
    """Rule 2: discarded while it froze just before `done`; what it then creates is of a void generation."""
    sweep = sweep_of(1)
    seal(store, sweep)
    ledger, instance = ledger_at(store), instance_of(sweep)
    zombie = start(order_for(store, sweep.name), at=1, how="stop", key="done/")
    until(zombie.is_stopped)
    assert not ledger.is_done_or_void(instance, 1)
    ledger.void(instance, void(1, "discarded"))
    finish(start, order_for(store, sweep.name))
    product, _ = ledger.product(instance, 2)
    assert product is not None and product.attempt == 2
    zombie.go_on()
    assert zombie.wait() == 0, zombie.output
    assert ledger.generations(layout.done_index("count"))[instance.digest] == {1, 2}
    evidence = EvidenceReader(ledger, [instance]).evidence(instance.digest)
    assert evidence.done == product and evidence.generation == 2
