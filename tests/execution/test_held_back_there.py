"""The breaker at a worker: rule 9, and one decision for all that read the same store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from orchestrator.core.evidence import Hold, Holds
from orchestrator.core.failure import Cause
from orchestrator.core.plan import summarize_requests
from orchestrator.core.records import End
from orchestrator.core.settings import Policy
from orchestrator.core.state import StageStatus, stage_status
from orchestrator.core.sweep import ComposedSweep
from orchestrator.execution.scanning import HoldReader, StoreScanner
from orchestrator.jobs.records import REFUSED
from orchestrator.provenance import now
from orchestrator.store import layout
from orchestrator.store.evidence import EvidenceReader
from tests.execution.faults import order_for
from tests.execution.here import work
from tests.store.builders import claim, instance_of, ledger_at, seal, sweep_of


def of_two_tasks(num_bad: int, num_good: int, **count: object) -> ComposedSweep:
    """Return a sweep whose first cells are of one task, and the others of another."""
    sweep = sweep_of(num_bad + num_good, **count)
    tasks = ["bad"] * num_bad + ["good"] * num_good
    cells = [
        replace(cell, axes={"task": task, **cell.axes}) for cell, task in zip(sweep.cells, tasks, strict=True)
    ]
    return replace(sweep, cells=tuple(cells))


def break_starts(store: Path, sweep: ComposedSweep, cells: range) -> None:
    """Let the stages of some cells fail before they are called: their child cannot open its log."""
    for cell in cells:
        (store / layout.payload(instance_of(sweep, cell), 1) / layout.LOG).mkdir(parents=True)


def attempts(store: Path, sweep: ComposedSweep) -> list[int]:
    return [len(ledger_at(store).numbers(instance_of(sweep, cell))) for cell in range(len(sweep.cells))]


def test_a_worker_goes_on_after_starts_that_fail_for_what_their_cells_have_in_common(store: Path) -> None:
    """Rule 9: the machine is not to blame, so the worker leaves these cells alone and does the others."""
    sweep = of_two_tasks(5, 2)
    revision = seal(store, sweep)
    break_starts(store, sweep, range(5))
    worked = work(ledger_at(store), revision, order_for(store, sweep.name, policy={"retries": {}}))
    assert worked.code == 0, worked.lines
    assert attempts(store, sweep) == [1, 1, 1, 0, 0, 1, 1]
    assert len(ledger_at(store).generations(layout.done_index("count"))) == 2


def test_a_worker_on_a_machine_that_starts_nothing_stops_soon(store: Path) -> None:
    """Rule 9: soon the failed cells have nothing in common but the machine."""
    sweep = of_two_tasks(5, 5)
    revision = seal(store, sweep)
    break_starts(store, sweep, range(10))
    order = order_for(store, sweep.name, policy={"retries": {}})
    assert work(ledger_at(store), revision, order).code == REFUSED
    assert attempts(store, sweep) == [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.long
def test_without_the_breaker_two_failed_starts_in_a_row_stop_a_worker(store: Path) -> None:
    sweep = of_two_tasks(5, 2)
    revision = seal(store, sweep)
    break_starts(store, sweep, range(5))
    order = order_for(store, sweep.name, policy={"retries": {}, "breaker": 0})
    assert work(ledger_at(store), revision, order).code == REFUSED
    assert attempts(store, sweep) == [1, 1, 0, 0, 0, 0, 0]


def test_all_who_read_the_store_decide_alike(store: Path) -> None:
    """A second worker claims nothing, and a driver counts nothing to start workers for."""
    sweep = of_two_tasks(5, 2, fail={"how": "data", "step": 1, "attempts": 99})
    good = sweep_of(2, first_seed=10).cells
    sweep = replace(
        sweep,
        stages={**sweep.stages, **sweep_of(2, first_seed=10).stages},
        cells=(*sweep.cells[:5], *(replace(c, axes={"task": "good", **c.axes}) for c in good)),
    )
    revision = seal(store, sweep)
    order = order_for(store, sweep.name)
    for _ in range(2):
        worked = work(ledger_at(store), revision, order)
        assert worked.code == 0, worked.lines
        assert attempts(store, sweep) == [1, 1, 1, 0, 0, 1, 1]
    retries, summary = order.settings.policy.retries, summarize_requests([], [])

    def status(reader: EvidenceReader, _: object, digest: str) -> StageStatus:
        return stage_status(reader.evidence(digest), summary.budget(digest, retries))

    for code, number in (("", 0), ("0" * 64, 2)):
        holds = HoldReader(sweep, order.settings.policy, code)
        scanner = StoreScanner(sweep.cells, sweep.stages, status, holds=holds)
        reader = EvidenceReader(ledger_at(store), sweep.stages.values(), count_attempts=False)
        assert scanner.count(reader, summary) == (number, number > 0)


def test_a_stage_that_failed_elsewhere_is_tried_again_only_by_rules_that_saw_it_fail(store: Path) -> None:
    """What is held back is not found out anew at each search, but before a stage is tried again it is."""
    sweep = sweep_of(1)
    seal(store, sweep)
    ledger, instance = ledger_at(store), instance_of(sweep)
    order, summary = (
        order_for(store, sweep.name, policy={"retries": {"storage": 2}}),
        summarize_requests([], []),
    )

    def status(reader: EvidenceReader, _: object, digest: str) -> StageStatus:
        return stage_status(reader.evidence(digest), summary.budget(digest, order.settings.policy.retries))

    holds = HoldReader(sweep, order.settings.policy, "")
    scanner = StoreScanner(sweep.cells, sweep.stages, status, holds=holds)

    def found() -> bool:
        reader = EvidenceReader(ledger, sweep.stages.values(), count_attempts=False)
        return scanner.next_stage(reader, summary).claimable is not None

    assert found()
    assert ledger.claim(instance, 1, claim())
    full = "OSError: [Errno 28] No space left on device"
    ledger.end(instance, 1, End(nonce="", outcome="failed", cause=Cause.STORAGE, message=full, at=now()))
    assert not found() and scanner.stands_s > 50
    assert "the next starts at" in scanner.lacks_space(0) and scanner.lacks_space(60) == ""


def test_a_worker_that_has_waited_takes_turns_in_a_job_as_well(store: Path) -> None:
    """A job is submitted when its cell is alone; but all jobs that wait for a pause wake at one moment."""
    sweep = sweep_of(2)
    seal(store, sweep)
    ledger, summary, policy = (
        ledger_at(store),
        summarize_requests([], []),
        Policy(space_pause_s=20, retries={"storage": 2}),
    )
    ended = f"{datetime.now(UTC) - timedelta(seconds=40 + 5):%Y-%m-%dT%H:%M:%SZ}"
    full = "OSError: [Errno 28] No space left on device"
    for instance in sweep.stages.values():
        for number in (1, 2):
            assert ledger.claim(instance, number, claim())
            ledger.end(
                instance, number, End(nonce="", outcome="failed", cause=Cause.STORAGE, message=full, at=ended)
            )

    def status(reader: EvidenceReader, _: object, digest: str) -> StageStatus:
        return stage_status(reader.evidence(digest), summary.budget(digest, policy.retries))

    def free(*, has_waited: bool) -> int:
        holds = HoldReader(sweep, policy, "", takes_turns=False)
        scanner = StoreScanner(sweep.cells, sweep.stages, status, holds=holds)
        reader = EvidenceReader(ledger, sweep.stages.values(), count_attempts=False)
        if has_waited:
            pause = Holds(stages=dict.fromkeys(sweep.stages, Hold("a pause", is_final=False)))
            assert scanner.next_stage(reader, summary, pause).claimable is None
            holds.expire()
        return scanner.count(reader, summary)[0]

    assert free(has_waited=False) == 2
    assert free(has_waited=True) == 1
