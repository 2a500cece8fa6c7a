"""A worker killed at every single step between claim and product, and a child at every one of its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchestrator.core.state import Budget, State, stage_status
from orchestrator.core.sweep import Sweep
from orchestrator.store import layout
from orchestrator.store.evidence import Snapshot
from tests.store.builders import counted, ledger_at, seal, sweep_of
from tests.worker.faults import Start, finish, order_for
from tests.worker.stages import spec

MAX_STEPS = 80


def assert_each_is_done_once(root: Path, sweep: Sweep, num_steps: int = 2) -> None:
    """One product a stage, none void, the digest chain right, and every attempt accounted for."""
    ledger = ledger_at(root)
    snapshot = Snapshot(ledger, sweep.nodes.values())
    done = ledger.generations(layout.done_index("count"))
    assert ledger.generations(layout.void_index("count")) == {}
    for cell in sweep.cells:
        node = sweep.nodes[cell.chain[0]]
        assert done[node.digest] == {1}
        assert stage_status(snapshot.evidence(node.digest), Budget({})).state is State.DONE
        product, _ = ledger.product(node, 1)
        assert product is not None
        folder = root / layout.payload(node.stage, node.digest, product.attempt) / "output"
        assert (folder / "count.txt").read_text() == counted(cell.config["seed"], num_steps)
        attempts = ledger.attempts(node)
        assert [attempt.number for attempt in attempts] == list(range(1, len(attempts) + 1))
        explained = {a.claim.supersedes.attempt for a in attempts if a.claim and a.claim.supersedes}
        for attempt in attempts:
            assert attempt.problem == ""
            assert attempt.end or attempt.number in explained | {product.attempt}, f"{cell.cell}: {attempt}"


def test_a_worker_killed_at_any_step_leaves_nothing_that_another_cannot_finish(
    store: Path, start: Start
) -> None:
    """Rules 1 to 5: kill -9 of the worker at its k-th change to the store, for each k until there is no k-th.

    Each k has a cell of its own; the first also makes the store's folders. One successor finishes them all,
    and waits for nobody: it sees that those processes are gone.
    """
    sweep = sweep_of(MAX_STEPS)
    seal(store, sweep)
    for k in range(1, MAX_STEPS + 1):
        cell = f"seed{k - 1}"
        running = start(order_for(store, sweep.name, cells=(cell,), policy={"lease_s": 60.0}), at=k)
        if running.wait() == 0:
            break
        assert running.process.returncode == -9, running.output
    else:
        pytest.fail("there was always one more step")
    assert k > 15
    said = finish(
        start,
        order_for(store, sweep.name, cells=tuple(f"seed{i}" for i in range(k)), policy={"lease_s": 60.0}),
    )
    assert_each_is_done_once(store, sweep_of(k))
    assert said.count("released already_done") == 0


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.long)])
def test_a_node_that_dies_at_any_point_of_a_checkpoint_loses_at_most_that_checkpoint(
    store: Path, start: Start, stride: int
) -> None:
    """Rule 6: the child kills its worker and itself before its k-th change to a file, another resumes."""
    num_steps = 3
    sweep = sweep_of(120, {"count": spec("dying")}, num_steps=num_steps)
    seal(store, sweep)
    for k in range(1, 120, stride):
        order = order_for(
            store, sweep.name, cells=(f"seed{k}",), env={"TEST_AT": str(k)}, policy={"lease_s": 60.0}
        )
        running = start(order)
        if running.wait() == 0:
            break
        assert running.process.returncode == -9, running.output
    else:
        pytest.fail("there was always one more change")
    assert k > 20
    killed = range(1, k + 1, stride)
    finish(
        start,
        order_for(store, sweep.name, cells=tuple(f"seed{i}" for i in killed), policy={"lease_s": 60.0}),
    )
    whole = sweep_of(120, {"count": spec("dying")}, num_steps=num_steps)
    cells = tuple(whole.cells[i] for i in killed)
    assert_each_is_done_once(store, msgspec.structs.replace(whole, cells=cells), num_steps)
