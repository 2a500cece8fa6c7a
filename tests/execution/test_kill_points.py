"""A worker killed at every single step between claim and product, and a child at every one of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from orchestrator.api.spent import spent_of
from orchestrator.api.state import SweepState
from orchestrator.core.evidence import Budget
from orchestrator.core.state import State, stage_status
from orchestrator.core.sweep import ComposedSweep
from orchestrator.execution.assignment import Assignment
from orchestrator.jobs.submissions import WorkerRecords
from orchestrator.store import layout
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger
from tests.execution.faults import Running, Start, finish, order_for
from tests.execution.stages import spec
from tests.store.builders import counted, ledger_at, seal, sweep_of

AT_ONCE = 4


def assert_each_is_done_once(root: Path, sweep: ComposedSweep, num_steps: int = 2) -> None:
    """One product a stage, none void, the digest chain right, and every attempt accounted for."""
    ledger = ledger_at(root)
    reader = EvidenceReader(ledger, sweep.stages.values())
    done = ledger.generations(layout.done_index("count"))
    assert ledger.generations(layout.void_index("count")) == {}
    for cell in sweep.cells:
        instance = sweep.stages[cell.stage_digests[0]]
        assert done[instance.digest] == {1}
        assert stage_status(reader.evidence(instance.digest), Budget({})).state is State.DONE
        product, _ = ledger.product(instance, 1)
        assert product is not None
        folder = root / layout.payload(instance, product.attempt) / "output"
        assert (folder / "count.txt").read_text() == counted(cell.config["seed"], num_steps)
        attempts = ledger.attempts(instance)
        assert [attempt.number for attempt in attempts] == list(range(1, len(attempts) + 1))
        explained = {a.claim.supersedes.attempt for a in attempts if a.claim and a.claim.supersedes}
        for attempt in attempts:
            assert attempt.problem == ""
            assert attempt.end or attempt.number in explained | {product.attempt}, f"{cell.id}: {attempt}"
    assert_the_held_time_adds_up(ledger, sweep)


def assert_the_held_time_adds_up(ledger: Ledger, sweep: ComposedSweep) -> None:
    """Each second that a worker recorded is in one part of the sweep's ledger."""
    (found,) = spent_of(SweepState(ledger, sweep, 1, sealed=True))
    assert found.unit == "worker_seconds"
    assert (
        min(found.parts.values()) >= -1e-6 and found.parts["unknown"] < 0.001 * found.num_workers
    )  # records are rounded
    assert sum(found.parts.values()) == pytest.approx(found.total)
    assert found.total >= sum(record.seconds for record in WorkerRecords(ledger, sweep.name).read()) - 1e-6


def kill_each(start: Start, ks: range, worker: Callable[[int], Running]) -> list[int]:
    """Starts the worker of each k, a few at a time, until one ends by itself; returns the ks that began."""
    began: list[int] = []
    for first in range(0, len(ks), AT_ONCE):
        batch = {k: worker(k) for k in ks[first : first + AT_ONCE]}
        began.extend(batch)
        codes = [running.wait() for running in batch.values()]
        assert set(codes) <= {0, -signal.SIGKILL}, [running.output for running in batch.values()]
        if 0 in codes:
            return began
    pytest.fail("there was always one more step")


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.long)])
def test_a_worker_killed_at_any_step_leaves_nothing_that_another_cannot_finish(
    store: Path, start: Start, stride: int
) -> None:
    """Rules 1 to 5: kill -9 of the worker at its k-th change to the store, until there is no k-th.

    Of three steps one is taken; the long test takes all. Each k has a cell of its own. One successor finishes
    them all, and waits for nobody: it sees that those processes are gone.
    """
    sweep = sweep_of(80)
    seal(store, sweep)

    def order(*ks: int) -> Assignment:
        cells = tuple(f"seed{k}" for k in ks)
        return order_for(store, sweep.name, cells=cells, policy={"lease_s": 60.0})

    ks = kill_each(start, range(1, 80, stride), lambda k: start(order(k), at=k))
    assert len(ks) > 15 / stride
    said = finish(start, order(*ks))
    assert_each_is_done_once(store, msgspec.structs.replace(sweep, cells=tuple(sweep.cells[k] for k in ks)))
    assert said.count("already_done") == 0


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.long)])
def test_a_node_that_dies_at_any_point_of_a_checkpoint_loses_at_most_that_checkpoint(
    store: Path, start: Start, stride: int
) -> None:
    """Rule 6: the child kills its worker and itself before its k-th change to a file; another resumes."""
    num_steps = 3
    sweep = sweep_of(120, {"count": spec("dying")}, num_steps=num_steps)
    seal(store, sweep)

    def order(*ks: int) -> Assignment:
        cells, env = tuple(f"seed{k}" for k in ks), {"TEST_AT": str(ks[0])}
        return order_for(store, sweep.name, cells=cells, env=env, policy={"lease_s": 60.0})

    ks = kill_each(start, range(1, 120, stride), lambda k: start(order(k)))
    assert len(ks) > 20 / stride
    finish(start, order_for(store, sweep.name, cells=order(*ks).cells, policy={"lease_s": 60.0}))
    mine = msgspec.structs.replace(sweep, cells=tuple(sweep.cells[k] for k in ks))
    assert_each_is_done_once(store, mine, num_steps)
