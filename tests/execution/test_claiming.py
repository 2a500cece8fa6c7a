"""Rules 3 and 9: what a worker claims, when it claims no more, and what a store's hiccups do to it."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.failure import Cause
from orchestrator.core.gates import gates_of
from orchestrator.core.records import Heartbeat, Owner, Request
from orchestrator.core.sweep import GateFacts
from orchestrator.count import COUNT
from orchestrator.execution import main as worker_main
from orchestrator.execution.assignment import this_owner
from orchestrator.jobs.nodes import NodeReports
from orchestrator.jobs.records import BROKEN_NODE, OTHER_CODE, REFUSED, TOO_SHORT, JobContext
from orchestrator.provenance import process_of
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger
from tests.execution import stages
from tests.execution.faults import order_for
from tests.execution.here import work
from tests.store.builders import (
    claim,
    end,
    instance_of,
    ledger_at,
    make_product,
    owner,
    seal,
    sweep_of,
)
from tests.store.stores import TroubledStore, no_answer

ELSEWHERE = "00000000-0000-0000-0000-000000000000"


def test_a_claim_that_wins_after_the_product_appeared_ends_already_done(store: Path) -> None:
    """Rule 3: another finished between the look and the claim; the winner runs nothing."""
    sweep = sweep_of(1)
    revision, instance = seal(store, sweep), instance_of(sweep)

    def trouble(when: str, operation: str, key: str) -> None:
        if (when, operation) == ("before", "create") and key.endswith("1/claim.json"):
            make_product(ledger_at(store), instance, attempt=7)

    worked = work(Ledger(TroubledStore(store, trouble)), revision, order_for(store, sweep.name))
    attempt = ledger_at(store).attempt(instance, 1)
    assert worked.code == 0 and attempt is not None and attempt.end is not None
    assert (attempt.end.outcome, attempt.end.why) == ("released", "already_done")
    assert attempt.start is None and not (store / "payload/count" / instance.digest / "1").exists()


def test_a_product_that_appeared_before_the_claim_costs_no_attempt(store: Path) -> None:
    """Rule 3: the index of products is read before the attempts; an attempt that ended between is no loss."""
    sweep = sweep_of(1)
    revision, instance = seal(store, sweep), instance_of(sweep)
    plain = ledger_at(store)
    plain.claim(instance, 1, claim())
    ended: list[str] = []

    def trouble(when: str, operation: str, key: str) -> None:
        if operation == "get" and key.endswith("1/claim.json") and not ended:
            ended.append(key)
            make_product(plain, instance)
            plain.end(instance, 1, end("succeeded"))

    assert work(Ledger(TroubledStore(store, trouble)), revision, order_for(store, sweep.name)).code == 0
    assert ended and plain.numbers(instance) == [1]


def test_an_owner_that_beats_again_between_the_look_and_the_claim_is_not_superseded(store: Path) -> None:
    """Rule 4: it was only slow; the watcher's proof is of a counter that does not hold any more."""
    sweep = sweep_of(1)
    revision, instance = seal(store, sweep), instance_of(sweep)
    plain = ledger_at(store)
    plain.claim(instance, 1, claim(owner=owner(boot=ELSEWHERE), lease_s=1.0))
    plain.put(instance, 1, layout.HEARTBEAT, Heartbeat(counter=1, phase="running"))
    looks, beats = [0], [1]

    def trouble(when: str, operation: str, key: str) -> None:
        """Beats when a scan looks at the attempts for a second time: it is about to claim."""
        if operation != "list":
            return
        if key == layout.requests(sweep.name):
            looks[0] = 0
        elif key == layout.attempts(instance):
            looks[0] += 1
            if looks[0] == 2:
                beats[0] += 1
                plain.put(instance, 1, layout.HEARTBEAT, Heartbeat(counter=beats[0], phase="running"))

    order = order_for(store, sweep.name)
    work(
        Ledger(TroubledStore(store, trouble)),
        revision,
        order,
        stop_asked=lambda: "enough" if beats[0] > 1 else "",
    )
    assert plain.numbers(instance) == [1]


def test_stages_that_fail_at_once_do_not_look_like_a_worker_that_cannot_start_any(store: Path) -> None:
    """Rule 9 is about attempts that fail before the stage is called, not about a stage that fails quickly."""
    bad = sweep_of(4, fail={"how": "data", "step": 1, "attempts": 99})
    good = sweep_of(2, first_seed=10)
    sweep = msgspec.structs.replace(bad, stages={**bad.stages, **good.stages}, cells=bad.cells + good.cells)
    worked = work(ledger_at(store), seal(store, sweep), order_for(store, sweep.name))
    assert worked.code == 0, worked.lines
    done = ledger_at(store).generations(layout.done_index("count"))
    assert sorted(done) == sorted(cell.stage_digests[0] for cell in good.cells)


@pytest.mark.long
def test_stages_that_die_at_once_do_not_look_like_a_worker_that_cannot_start_any(store: Path) -> None:
    bad = sweep_of(4, fail={"how": "exit", "step": 1, "attempts": 99})
    good = sweep_of(2, first_seed=10)
    sweep = msgspec.structs.replace(bad, stages={**bad.stages, **good.stages}, cells=bad.cells + good.cells)
    order = order_for(store, sweep.name, policy={"retries": {}})
    worked = work(ledger_at(store), seal(store, sweep), order)
    assert worked.code == 0, worked.lines
    done = ledger_at(store).generations(layout.done_index("count"))
    assert sorted(done) == sorted(cell.stage_digests[0] for cell in good.cells)


def test_a_worker_stops_claiming_after_two_attempts_that_failed_before_their_stage_was_called(
    store: Path,
) -> None:
    """Rule 9: the child cannot open its log, as on a broken node; the third cell is left to others."""
    sweep = sweep_of(3)
    revision = seal(store, sweep)
    for cell in range(3):
        instance = instance_of(sweep, cell)
        (store / layout.payload(instance, 1) / layout.LOG).mkdir(parents=True)
    order = order_for(store, sweep.name, policy={"retries": {}})
    worked = work(ledger_at(store), revision, order)
    assert worked.code == REFUSED, worked.lines
    assert [len(ledger_at(store).numbers(instance_of(sweep, cell))) for cell in range(3)] == [1, 1, 0]


def test_a_worker_on_a_bad_node_claims_no_more_and_the_stage_is_left_to_others(store: Path) -> None:
    sweep = sweep_of(2, {"count": stages.spec("blind")})
    revision = seal(store, sweep)
    # Without a quarantine, since these workers of jobs on three machines all run on this one.
    policy = {"retries": {"bad_node": 1}, "quarantine_s": 0}
    order = order_for(store, sweep.name, policy=policy, job=JobContext(cluster="lab", job="7"))
    worked = work(ledger_at(store), revision, order)
    assert worked.code == REFUSED, worked.lines
    assert [ledger_at(store).numbers(instance_of(sweep, cell)) for cell in range(2)] == [[1], []]
    assert work(ledger_at(store), revision, order).code == REFUSED  # a worker elsewhere
    assert [ledger_at(store).numbers(instance_of(sweep, cell)) for cell in range(2)] == [[1, 2], []]
    assert work(ledger_at(store), revision, order).code == REFUSED
    assert [ledger_at(store).numbers(instance_of(sweep, cell)) for cell in range(2)] == [[1, 2], [1]]


def test_a_worker_whose_code_is_not_that_of_the_launch_claims_nothing(store: Path, tmp_path: Path) -> None:
    """Rule 9."""
    sweep = sweep_of(1)
    seal(store, sweep)
    order = order_for(store, sweep.name, code_digest="0" * 64)
    file = tmp_path / "order.json"
    file.write_bytes(msgspec.json.encode(order))
    assert worker_main.main([str(file)]) == OTHER_CODE
    assert not (store / "records").exists()


@pytest.mark.parametrize("left_s, num_claims", [(30, 0), (3600, 1)])
def test_a_worker_starts_nothing_in_a_job_that_ends_too_soon(
    store: Path, left_s: float, num_claims: int
) -> None:
    """Rule 4 of jobs."""
    sweep = sweep_of(1)
    revision = seal(store, sweep)
    job = JobContext(cluster="here", job="7", end_at=time.time() + left_s, min_left_s=60.0)
    worked = work(ledger_at(store), revision, order_for(store, sweep.name, job=job))
    assert len(ledger_at(store).numbers(instance_of(sweep))) == num_claims, worked.lines
    assert worked.code == (0 if num_claims else TOO_SHORT)


@pytest.mark.parametrize("operation", ["workspace", "put"])
def test_a_store_that_refuses_at_the_start_of_an_attempt_is_a_failure_of_storage(
    store: Path, operation: str
) -> None:
    """Rule 9: it becomes an `end` with a cause, not an attempt without one; the retry then works."""
    sweep = sweep_of(1)
    revision, instance = seal(store, sweep), instance_of(sweep)
    refused: list[str] = []

    def trouble(when: str, now: str, key: str) -> None:
        if now == operation and instance.digest in key and not refused:
            refused.append(key)
            no_answer()

    worked = work(Ledger(TroubledStore(store, trouble)), revision, order_for(store, sweep.name))
    first = ledger_at(store).attempt(instance, 1)
    assert worked.code == 0 and first is not None and first.end is not None
    assert (first.end.outcome, first.end.cause) == ("failed", Cause.STORAGE)
    assert ledger_at(store).generations(layout.done_index("count")) == {instance.digest: {1}}


@pytest.mark.parametrize("operation", ["list", "get", "put"])
def test_a_store_that_does_not_answer_for_a_while_costs_a_running_attempt_nothing(
    store: Path, operation: str
) -> None:
    """While the stage runs, what its worker cannot read or write is asked again later."""
    sweep = sweep_of(1, {"count": stages.spec("waiting")}, num_steps=3)
    revision, instance = seal(store, sweep), instance_of(sweep)
    running, go = store / layout.payload(instance, 1) / "runs", store.parent / "go"
    left = [3]

    def trouble(when: str, now: str, key: str) -> None:
        if now == operation and running.exists():
            if left[0]:
                left[0] -= 1
                no_answer()
            go.touch()

    order = order_for(store, sweep.name, env={"TEST_GO": str(go)})
    worked = work(Ledger(TroubledStore(store, trouble)), revision, order)
    assert worked.code == 0 and left == [0]
    attempts = ledger_at(store).attempts(instance)
    assert [a.end and a.end.outcome for a in attempts] == ["succeeded"]


def test_a_worker_names_itself_so_that_others_can_see_it_gone() -> None:
    me = owner().process
    assert process_of(me.pid) == me


def test_a_worker_is_on_the_node_that_its_job_names_and_else_on_this_machine(tmp_path: Path) -> None:
    def made(job: JobContext | None) -> Owner:
        return this_owner(order_for(tmp_path, "counts", slot=3, job=job), os.getpid())

    assert made(None) == owner(host=platform.node(), slot=3)
    where = {"cluster": "lab", "job": "7", "array_index": 2, "restart_count": 1}
    assert made(JobContext(**where)) == owner(host=platform.node(), slot=3, **where)
    assert made(JobContext(**where, node="gpu7")) == owner(host="gpu7", slot=3, **where)


@pytest.mark.parametrize(
    ("job", "max_idle_s", "is_started"), [("7", None, True), ("7", 0.1, False), (None, 0.1, False)]
)
def test_only_a_job_that_may_not_leave_starts_a_stage_while_a_gate_of_other_cells_runs(
    store: Path, job: str | None, max_idle_s: float | None, is_started: bool
) -> None:
    """Its GPUs would be held and idle; elsewhere the other gate's result may hold this stage back too."""
    gate, work_ = (
        StageSpec(command="true", reads=("seed",)),
        msgspec.structs.replace(COUNT, gated_by=("gate",)),
    )
    sweep = sweep_of(2, {"gate": gate, "count": work_})
    facts = GateFacts(code="c", packages="p", device="cpu", num_gpus=0)
    revision, ledger = seal(store, sweep), ledger_at(store)
    ledger.add_request(sweep.name, Request(nonce="n", number=0, verb="launch", revision=1, gates=facts))
    gates = gates_of(sweep, facts)
    first, second = (gates.instances[gates.cells[cell.id][0].digest] for cell in sweep.cells)
    make_product(ledger, first)
    ledger.claim(second, 1, claim(owner=owner(boot=ELSEWHERE), lease_s=60.0))
    context = None if job is None else JobContext(cluster="lab", job=job)
    order = order_for(store, sweep.name, request=1, cells=("seed0",), job=context, max_idle_s=max_idle_s)
    until_s = time.monotonic() + 40
    worked = work(ledger, revision, order, stop_asked=lambda: "late" if time.monotonic() > until_s else "")
    assert worked.code == 0
    assert ledger.numbers(instance_of(sweep, 0)) == [1] * is_started


@pytest.mark.long
def test_a_worker_that_may_leave_when_idle_stays_to_find_an_owner_elsewhere_dead(store: Path) -> None:
    sweep = sweep_of(1)
    revision, instance = seal(store, sweep), instance_of(sweep)
    plain = ledger_at(store)
    plain.claim(instance, 1, claim(owner=owner(boot=ELSEWHERE), lease_s=3.0))
    plain.put(instance, 1, layout.HEARTBEAT, Heartbeat(counter=1, phase="running"))
    worked = work(plain, revision, order_for(store, sweep.name, max_idle_s=0.5))
    assert worked.code == 0 and plain.numbers(instance) == [1, 2]


def test_a_worker_that_may_leave_when_idle_does_so_while_another_beats(store: Path) -> None:
    sweep = sweep_of(1)
    revision, instance = seal(store, sweep), instance_of(sweep)
    plain, beats = ledger_at(store), [1]
    plain.claim(instance, 1, claim(owner=owner(boot=ELSEWHERE), lease_s=60.0))

    def trouble(when: str, operation: str, key: str) -> None:
        if operation == "list" and key == layout.requests(sweep.name):
            beats[0] += 1
            plain.put(instance, 1, layout.HEARTBEAT, Heartbeat(counter=beats[0], phase="running"))

    ledger = Ledger(TroubledStore(store, trouble))
    worked = work(ledger, revision, order_for(store, sweep.name, max_idle_s=0.5))
    assert worked.code == 0 and plain.numbers(instance) == [1]
    assert "this worker leaves" in worked.lines[-1]


@pytest.mark.long
def test_two_attempts_that_failed_before_their_stage_was_called_are_reported_of_the_node(store: Path) -> None:
    sweep = sweep_of(3)
    revision = seal(store, sweep)
    for cell in range(3):
        (store / layout.payload(instance_of(sweep, cell), 1) / layout.LOG).mkdir(parents=True)
    order = order_for(store, sweep.name, policy={"retries": {}})
    assert work(ledger_at(store), revision, order).code == REFUSED
    reports = NodeReports(ledger_at(store), 3600.0)
    assert [(each.kind, each.node) for each in reports.read()] == [("failed", platform.node())] * 2
    assert list(reports.left_out()) == [("local", platform.node())]
    second = work(ledger_at(store), revision, order)
    assert second.code == BROKEN_NODE and "sweep nodes --clear" in second.lines[-1]
    assert ledger_at(store).numbers(instance_of(sweep, 2)) == []
