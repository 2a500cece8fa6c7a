"""Rule 8: launch, rerun, cancel and discard are records; what they mean for cells, budgets and attempts."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.evidence import Attempt, Budget, Evidence, spent
from orchestrator.core.failure import Cause
from orchestrator.core.plan import summarize_requests
from orchestrator.core.records import Request
from orchestrator.core.state import State, stage_status
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from tests.execution.faults import Start, finish, order_for
from tests.execution.stages import spec
from tests.execution.waiting import pid_in, until
from tests.store.builders import claim, end, instance_of, ledger_at, seal, sweep_of

CELLS = ("a", "b", "c")


def request(verb: str, *cells: str, after: dict[str, int] | None = None, number: int = 0) -> Request:
    return Request(
        nonce=new_nonce(),
        number=number,
        verb=verb,  # type: ignore[arg-type]
        revision=1,
        cells=cells or None,
        after=after or {},
    )


REQUESTS = st.builds(
    request,
    st.sampled_from(["launch", "rerun", "cancel", "discard"]),
    st.sampled_from(CELLS),
    after=st.dictionaries(st.sampled_from(["x", "y"]), st.integers(0, 9)),
)


@given(st.lists(REQUESTS, max_size=6), st.data())
def test_two_equal_requests_in_a_row_are_one(requests: list[Request], data: st.DataObject) -> None:
    if not requests:
        return
    at = data.draw(st.integers(0, len(requests) - 1))
    twice = [*requests[: at + 1], msgspec.structs.replace(requests[at], nonce="other"), *requests[at + 1 :]]
    assert summarize_requests(requests, CELLS) == summarize_requests(twice, CELLS)


@given(st.lists(REQUESTS, max_size=8))
def test_a_boundary_never_goes_back(requests: list[Request]) -> None:
    before = summarize_requests(requests[:-1], CELLS)
    after = summarize_requests(requests, CELLS)
    for old, new in ((before.after, after.after), (before.after_chance, after.after_chance)):
        assert all(new[digest] >= number for digest, number in old.items())


@pytest.mark.parametrize("verb", ["launch", "rerun"])
def test_the_last_word_on_a_cell_holds(verb: str) -> None:
    assert summarize_requests([request("cancel", "a", "b"), request(verb, "a")], CELLS).cancelled == {"b"}
    assert summarize_requests([request(verb, "a"), request("cancel")], CELLS).cancelled == set(CELLS)
    assert summarize_requests([request("cancel"), request("discard", "a")], CELLS).cancelled == set(CELLS)


def tried(*outcomes: Cause) -> Evidence:
    """A stage whose attempts failed by these causes."""
    attempts = (Attempt(n, claim(), None, None, end("failed", cause)) for n, cause in enumerate(outcomes, 1))
    return Evidence(attempts=tuple(attempts))


RETRIES = {"unknown": 1, "data": 0}


def test_only_attempts_after_the_rerun_count_against_budgets() -> None:
    evidence = tried(Cause.UNKNOWN, Cause.UNKNOWN)
    assert spent(evidence, Budget(RETRIES)) == (Cause.UNKNOWN, 2)
    summary = summarize_requests([request("rerun", "a", after={"x": 2})], CELLS)
    assert spent(evidence, summary.budget("x", RETRIES)) is None
    assert spent(evidence, summary.budget("another", RETRIES)) == (Cause.UNKNOWN, 2)
    later = tried(*[Cause.UNKNOWN] * 4)
    assert spent(later, summary.budget("x", RETRIES)) == (Cause.UNKNOWN, 2)


def test_a_launch_gives_a_fresh_budget_to_chance_and_none_to_a_fault_of_the_user() -> None:
    summary = summarize_requests([request("launch", after={"x": 9})], CELLS)
    assert spent(tried(Cause.UNKNOWN, Cause.UNKNOWN), summary.budget("x", RETRIES)) is None
    assert spent(tried(Cause.DATA), summary.budget("x", RETRIES)) == (Cause.DATA, 1)
    rerun = summarize_requests([request("rerun", after={"x": 9})], CELLS)
    assert stage_status(tried(Cause.DATA), rerun.budget("x", RETRIES)).state is State.PENDING


def test_requests_are_numbered_in_order_whatever_else_lies_there(store: Path) -> None:
    """A file that an editor or a file system left is no request, and does not stop the next one."""
    ledger = ledger_at(store)
    ledger.add_request("s", request("launch"))
    folder = store / layout.requests("s")
    for name in ("000007.json~", "notes.txt", "x.json"):
        (folder / name).write_text("not ours")
    second = ledger.add_request("s", request("cancel"))
    assert second.number == 2
    assert [r.verb for r in ledger.requests("s")] == ["launch", "cancel"]


def test_a_process_reads_each_request_once(store: Path) -> None:
    """Workers look for requests every second, and in a bucket each read costs money."""
    ledger = ledger_at(store)
    ledger.add_request("s", request("launch"))
    assert [r.verb for r in ledger.requests("s")] == ["launch"]
    (store / layout.request("s", 1)).write_text("{")
    ledger.add_request("s", request("cancel"))
    assert [r.verb for r in ledger.requests("s")] == ["launch", "cancel"]
    problems: list[str] = []
    assert [r.verb for r in ledger_at(store).requests("s", problems)] == ["cancel"]
    assert "000001.json" in problems[0]


# Real workers


def test_a_cancel_stops_its_sweep_and_another_that_shares_the_stage_goes_on_at_once(
    store: Path, start: Start
) -> None:
    """Cancel is per (sweep, cell). The other goes on from the checkpoint of the one that was cancelled."""
    one = sweep_of(1, {"count": spec("waiting")}, name="one")
    two = msgspec.structs.replace(one, name="two")
    for sweep in (one, two):
        seal(store, sweep)
    ledger, instance, go = ledger_at(store), instance_of(one), store.parent / "go"
    orders = [order_for(store, name, env={"TEST_GO": str(go)}) for name in ("one", "two")]
    first = start(orders[0])
    pid_in(store / layout.payload(instance, 1) / "runs")
    second = start(orders[1])
    ledger.add_request("one", request("cancel", "seed0"))
    assert first.wait() == 0, first.output
    cancelled = ledger.attempt(instance, 1)
    assert cancelled is not None and cancelled.end is not None
    assert (cancelled.end.outcome, cancelled.end.why) == ("released", "cancelled")
    until(lambda: ledger.is_claimed(instance, 2))
    go.touch()
    assert second.wait() == 0, second.output
    last = ledger.attempt(instance, 2)
    assert last is not None and last.claim is not None and last.claim.sweep == "two"
    assert last.start is not None and last.start.parent is not None and last.start.parent.attempt == 1
    assert last.end is not None and last.end.outcome == "succeeded"


def test_a_cancel_of_one_cell_does_not_stop_a_stage_that_another_cell_wants(
    store: Path, start: Start
) -> None:
    sweep = sweep_of(1, {"count": spec("waiting")})
    twin = msgspec.structs.replace(sweep.cells[0], id="twin")
    sweep = msgspec.structs.replace(sweep, cells=(*sweep.cells, twin))
    seal(store, sweep)
    ledger, instance, go = ledger_at(store), instance_of(sweep), store.parent / "go"
    worker = start(order_for(store, sweep.name, env={"TEST_GO": str(go)}))
    pid_in(store / layout.payload(instance, 1) / "runs")
    ledger.add_request(sweep.name, request("cancel", "seed0"))
    with pytest.raises(AssertionError, match="come about"):
        until(
            lambda: (store / layout.attempt(instance, 1, layout.END)).exists(),
            timeout_s=2.5,
        )
    go.touch()
    assert worker.wait() == 0, worker.output
    assert ledger.numbers(instance) == [1]


def test_cancelled_cells_are_not_claimed_until_they_are_launched_again(store: Path, start: Start) -> None:
    sweep = sweep_of(2)
    seal(store, sweep)
    ledger, order = ledger_at(store), order_for(store, sweep.name)
    ledger.add_request(sweep.name, request("cancel", "seed1"))
    finish(start, order)
    done = ledger.generations(layout.done_index("count"))
    assert set(done) == {instance_of(sweep, 0).digest}
    ledger.add_request(sweep.name, request("launch"))
    finish(start, order)
    assert len(ledger.generations(layout.done_index("count"))) == 2
