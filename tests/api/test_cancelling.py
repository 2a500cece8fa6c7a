"""A cancel: which cells it takes, what it counts, and which jobs have nothing else to do."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from orchestrator.api.run import _is_for_nothing_else, cancel_cells
from orchestrator.api.state import SweepState
from orchestrator.core.records import Request
from orchestrator.errors import UserError
from orchestrator.store.access import new_nonce
from tests.store.builders import claim, end, instance_of, ledger_at, make_product, seal, sweep_of

STATES = ("done", "running", "failed", "pending", "cancelled")


@pytest.fixture
def view(tmp_path: Path) -> SweepState:
    """A cell in each state, in the order of `STATES`."""
    sweep, ledger = sweep_of(len(STATES)), ledger_at(tmp_path)
    seal(tmp_path, sweep)
    done, running, failed, *_ = (instance_of(sweep, cell) for cell in range(len(STATES)))
    for instance in (done, running, failed):
        ledger.claim(instance, 1, claim())
    make_product(ledger, done)
    ledger.end(done, 1, end("succeeded"))
    for attempt in range(2, 5):
        ledger.end(failed, attempt - 1, end())
        ledger.claim(failed, attempt, claim())
    ledger.end(failed, 4, end())
    ledger.add_request(sweep.name, Request(nonce=new_nonce(), number=0, verb="launch", revision=1))
    cells = (sweep.cells[-1].id,)
    ledger.add_request(
        sweep.name, Request(nonce=new_nonce(), number=0, verb="cancel", revision=1, cells=cells)
    )
    view = SweepState(ledger, sweep, 1, sealed=True)
    assert tuple(str(view.cells[cell.id].state) for cell in sweep.cells) == STATES
    return view


def test_a_cancel_takes_what_is_not_done_and_counts_what_runs(view: SweepState) -> None:
    found = cancel_cells(view, view.sweep.cells)
    assert [cell.id for cell in found.cells] == ["seed1", "seed2", "seed3", "seed4"]
    assert (found.num_running, found.kept, found.lines, found.request) == (1, set(), [], 3)
    states = {name: status.state for name, status in view.fresh().cells.items()}
    after = {"running": "running", "pending": "cancelled"}  # the running one until its worker has read it
    assert [*states.values()] == [after.get(state, state) for state in STATES]


def test_a_cancel_of_what_is_done_records_nothing(view: SweepState) -> None:
    found = cancel_cells(view, view.sweep.cells[:1])
    assert (found.cells, found.num_running, found.request) == ([], 0, None)
    assert len(view.fresh().requests) == 2


def test_what_was_never_launched_cannot_be_cancelled(view: SweepState) -> None:
    with pytest.raises(UserError, match="never launched"):
        cancel_cells(SweepState(view.ledger, view.sweep, 1, sealed=False), view.sweep.cells)


def test_a_job_is_for_nothing_else_if_all_its_cells_are_cancelled_or_done_and_one_is_cancelled_now(
    view: SweepState,
) -> None:
    state_of = dict(zip((cell.id for cell in view.sweep.cells), STATES, strict=True))
    jobs = [job for number in (1, 2, 3) for job in itertools.combinations(state_of, number)]
    for now in (set(), {"seed1"}, {"seed3"}, {"seed1", "seed2"}):
        for job in jobs:
            is_over = all(cell in now or state_of[cell] in ("done", "cancelled") for cell in job)
            assert _is_for_nothing_else(view, job, now) == (is_over and bool(now & {*job})), (job, now)
    assert not _is_for_nothing_else(view, ("seed1", "of another revision"), {"seed1"})
