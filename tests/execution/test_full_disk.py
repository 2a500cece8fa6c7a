"""A store on a disk that fills up: the failure is named `storage`, nothing is lost, a rerun finishes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from orchestrator.core.evidence import Attempt, Hold, Holds
from orchestrator.core.failure import Cause
from orchestrator.core.records import End
from orchestrator.core.settings import StoreSettings
from orchestrator.errors import InfrastructureError
from orchestrator.execution import main as worker_main
from orchestrator.execution.assignment import (
    NO_SPACE,
    Assignment,
    ChildOutcome,
    drop_half,
    this_owner,
    write_outcome,
)
from orchestrator.execution.checkpoints import UNREAD, drop_partial
from orchestrator.execution.command import FailedCommand, run_command
from orchestrator.execution.conclude import Conclusion, Facts, conclude
from orchestrator.execution.liveness import Idleness, Watcher
from orchestrator.jobs.records import REFUSED, JobContext
from orchestrator.saving import MANIFEST
from orchestrator.stage import Config, Context, Inputs, StageSpec
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger
from tests.execution.faults import Start, fill, finish, order_for
from tests.execution.stages import spec
from tests.execution.waiting import until
from tests.store.builders import claim, counted, instance_of, ledger_at, seal, sweep_of

LARGE_KIB = 4096

SOON = {"space_pause_s": 0.5}
"""A policy by which stages wait for less than a minute after one lacked space."""


def test_a_stage_whose_product_fills_the_disk_fails_by_storage_and_a_later_attempt_resumes(
    disk: Path, start: Start
) -> None:
    store = disk / "store"
    sweep = sweep_of(1, {"count": spec("filling")}, num_steps=2)
    seal(store, sweep)
    ledger, instance = ledger_at(store), instance_of(sweep)
    env = {"TEST_FILL": "product", "TEST_FILL_KIB": str(LARGE_KIB)}
    finish(start, order_for(store, sweep.name, env=env, policy={"retries": {}, **SOON}))
    first = ledger.attempt(instance, 1)
    assert first is not None and first.end is not None
    assert first.end.cause is Cause.STORAGE and "No space left" in first.end.message
    assert not (store / layout.payload(instance, 1) / layout.OUTPUT).exists()  # it would take all space
    assert_finishes(start, ledger, order_for(store, sweep.name, policy=SOON))


def test_a_checkpoint_that_fills_the_disk_is_skipped_and_the_stage_ends_well(
    disk: Path, start: Start
) -> None:
    store = disk / "store"
    sweep = sweep_of(1, {"count": spec("filling")}, num_steps=3)
    seal(store, sweep)
    ledger, instance = ledger_at(store), instance_of(sweep)
    env = {"TEST_FILL": "checkpoint", "TEST_FILL_KIB": str(LARGE_KIB)}
    finish(
        start, order_for(store, sweep.name, env=env, policy={"retries": {}, "keep_checkpoints": True, **SOON})
    )
    product, _ = ledger.product(instance, 1)
    assert product is not None and product.attempt == 1
    folder = store / layout.payload(instance, 1)
    assert "checkpoint 00000002 is skipped (1 so far): [Errno 28]" in (folder / layout.LOG).read_text()
    assert (folder / "output/count.txt").read_text() == counted(0, 3)
    assert (folder / layout.CHECKPOINTS / "00000003" / MANIFEST).exists()  # the next ones are saved


def test_a_full_disk_holds_all_stages_back_until_there_is_space(disk: Path, start: Start) -> None:
    """It has cost one attempt, and goes on by itself."""
    store, go = disk / "store", disk.parent / "go"
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)  # 82 KB are scarce
    sweep = sweep_of(3, {"count": spec("filling")}, num_steps=2)
    seal(store, sweep)
    ledger = ledger_at(store)
    instances = [instance_of(sweep, cell=index) for index in range(3)]
    env = {"TEST_FILL": "product", "TEST_FILL_KIB": "128", "TEST_GO": str(go)}
    running = start(order_for(store, sweep.name, env=env, policy={"retries": {"storage": 1}, **SOON}))
    runs = store / layout.payload(instances[0], 1) / "runs"
    until(lambda: runs.exists() and runs.read_text())
    others = fill(disk)
    os.truncate(others, others.stat().st_size - 64 * 1024)  # enough for records alone
    go.touch()
    until(lambda: (first := ledger.attempt(instances[0], 1)) is not None and first.end is not None)
    time.sleep(2.5)  # the pause before a retry is 1 s
    assert [len(ledger.attempts(instance)) for instance in instances] == [1, 0, 0]
    others.unlink()
    assert running.wait() == 0, running.output
    assert [len(ledger.attempts(instance)) for instance in instances] == [2, 1, 1]
    assert all(ledger.product(instance, 1)[0] is not None for instance in instances)


def test_a_worker_waits_for_space_a_while_but_not_with_the_gpus_of_a_job(tmp_path: Path) -> None:
    plain = order_for(tmp_path, "s")
    me = this_owner(plain, os.getpid())
    local = Idleness(
        Watcher(me), replace(plain, settings=replace(plain.settings, store=StoreSettings(outage_s=0.1)))
    )
    full = "the disk is full"
    assert local.why_leave(lambda _: full) == ""
    time.sleep(0.11)
    assert local.why_leave(lambda _: "") == ""
    assert local.why_leave(lambda _: full) == full
    in_job = replace(plain, job=JobContext(cluster="c", job="7"))
    assert Idleness(Watcher(me), in_job).why_leave(lambda _: full) == full


@pytest.mark.parametrize(("max_idle_s", "most_s"), [(90.0, 90.0), (None, 600.0)])
def test_a_job_waits_for_a_pause_no_longer_than_it_would_stay_idle(
    tmp_path: Path, max_idle_s: float | None, most_s: float
) -> None:
    order = replace(order_for(tmp_path, "s"), job=JobContext(cluster="c", job="7"), max_idle_s=max_idle_s)

    def why(pause_s: float) -> str:
        paused = Holds(stages={"x": Hold("a pause", False, Cause.STORAGE, pause_s=pause_s)})
        idleness = Idleness(Watcher(this_owner(order, os.getpid())), order)
        return idleness.why_leave(paused.lack_of_space)

    assert (why(most_s), why(most_s + 1)) == ("", "a pause")


def test_an_outcome_that_cannot_be_written_is_a_failure_of_storage(disk: Path, start: Start) -> None:
    """Others filled the disk; space comes back before the worker gives up its `end`."""
    store = disk / "store"
    sweep = sweep_of(1, {"count": spec("waiting")}, num_steps=2)
    seal(store, sweep)
    ledger, instance, go = ledger_at(store), instance_of(sweep), disk.parent / "go"
    order = order_for(
        store, sweep.name, env={"TEST_GO": str(go)}, policy={"retries": {}, "lease_s": 60.0, **SOON}
    )
    running = start(order)
    runs = store / layout.payload(instance, 1) / "runs"
    until(lambda: runs.exists() and runs.read_text())
    pid = int(runs.read_text())
    others = fill(disk)
    go.touch()
    until(lambda: not Path(f"/proc/{pid}").exists())
    others.unlink()
    assert running.wait() == 0, running.output
    first = ledger.attempt(instance, 1)
    assert first is not None and first.end is not None and first.end.cause is Cause.STORAGE, first
    assert "No space left" in first.end.message  # so that others wait, and its output is deleted
    assert_finishes(start, ledger, order_for(store, sweep.name, env={"TEST_GO": str(go)}, policy=SOON))


def assert_finishes(start: Start, ledger: Ledger, order: Assignment) -> None:
    """With space and a budget, the next attempt goes on from the checkpoint that was saved."""
    sweep = ledger.revision(order.sweep, 1).sweep
    instance = instance_of(sweep)
    finish(start, order)
    product, _ = ledger.product(instance, 1)
    assert product is not None
    folder = ledger.objects.folder(layout.payload(instance, product.attempt))
    assert (folder / "output/count.txt").read_text() == counted(0)
    last = ledger.attempt(instance, product.attempt)
    assert last is not None and last.start is not None and last.start.parent is not None
    assert last.start.parent.step == 1


def test_a_worker_on_a_full_disk_claims_nothing_and_says_why(
    disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rule 9: it proves that the store can be written before its first claim."""
    store = disk / "store"
    sweep = sweep_of(1)
    seal(store, sweep)
    fill(disk)
    file, order = tmp_path / "order.json", order_for(store, sweep.name)
    order = replace(order, settings=replace(order.settings, store=StoreSettings(outage_s=0.0)))
    in_job = replace(order, job=JobContext(cluster="c", job="7"))
    for each, code in ((order, REFUSED), (in_job, InfrastructureError.exit_code)):
        file.write_bytes(msgspec.json.encode(each))
        assert worker_main.main([str(file)]) == code
        assert "No space left on device" in capfd.readouterr().out
    assert not (store / "records").exists()


def test_a_worker_that_starts_on_a_full_disk_waits_for_space(disk: Path, tmp_path: Path) -> None:
    store = disk / "store"
    sweep = sweep_of(1)
    seal(store, sweep)
    others, file = fill(disk), tmp_path / "order.json"
    file.write_bytes(msgspec.json.encode(order_for(store, sweep.name)))
    command = [sys.executable, "-u", "-m", "orchestrator.execution.main", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert "waiting for space" in running.stdout.readline()
        others.unlink()
        assert "attempt 1 succeeded" in running.stdout.read()
    assert running.returncode == 0


def test_what_an_attempt_left_unfinished_is_deleted_before_the_next_one(tmp_path: Path) -> None:
    """But not what that reads, nor what may still be published, nor what may be an earlier product."""
    ledger, instance = ledger_at(tmp_path), instance_of(sweep_of(1))
    failed = End(nonce="", outcome="failed", cause=Cause.OOM_HOST)
    ends = [failed, replace(failed, outcome="released"), replace(failed, exception=UNREAD), None]
    ends += [failed, failed]  # of another product, and after an outcome that the store could not take
    claims = [claim(generation=1 if number == 5 else 2) for number in range(1, 7)]
    attempts = [Attempt(n, claims[n - 1], end=ends[n - 1]) for n in range(1, 7)]
    kinds = (layout.OUTPUT, layout.SCRATCH, layout.WORK)
    folders = {
        (n, kind): tmp_path / layout.payload(instance, n) / kind for n in range(1, 7) for kind in kinds
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    for number in (1, 6):
        unread = number if number == 6 else None
        outcome = ChildOutcome(outcome="failed", cause=Cause.DATA, unread=unread)
        assert write_outcome(tmp_path / layout.payload(instance, number), outcome, print) == 0
    drop_partial(ledger, instance, attempts, generation=2)
    gone = {key for key, folder in folders.items() if not folder.exists()}
    assert gone == {(n, kind) for n in (1, 2) for kind in (layout.OUTPUT, layout.SCRATCH)}


def written(disk: Path, outcome: ChildOutcome) -> tuple[int, bool]:
    """The exit code of a child whose output fills the disk, and whether the output is there afterwards."""
    (disk / "output").mkdir()
    fill(disk / "output")
    return write_outcome(disk, outcome, lambda text: None), (disk / "output").exists()


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        (f"head -c {LARGE_KIB}k /dev/zero > {{output}}/x", "storage"),
        ("false", "unknown"),
        ("rm -r {output}/..; false", "unknown"),
    ],
)
def test_a_command_without_a_reason_in_its_log_failed_by_storage_if_nothing_can_be_written_beside_it(
    disk: Path, command: str, cause: str
) -> None:
    context = Context(disk / "attempt")
    with pytest.raises(FailedCommand) as failure:
        run_command(StageSpec(command=command, shell=True), Config({}), Inputs({}), context)
    assert failure.value.cause == cause
    assert ("No space left on device" in str(failure.value)) is (cause == "storage")


def test_an_outcome_makes_room_for_itself_by_half_a_product(disk: Path) -> None:
    """Its cause need not be the disk: a program prints what it likes about a failed write."""
    assert written(disk, ChildOutcome(outcome="failed", cause=Cause.CODE)) == (0, False)
    assert written(disk, ChildOutcome(outcome="released", why="stopped")) == (0, False)


@pytest.mark.parametrize(("unread", "is_kept"), [(1, True), (None, False)])
def test_half_a_product_goes_whatever_ended_its_attempt_unless_it_is_read_later(
    tmp_path: Path, unread: int | None, is_kept: bool
) -> None:
    """The store may have refused the end of an attempt whose outcome it took."""
    (tmp_path / "output").mkdir()
    assert write_outcome(tmp_path, ChildOutcome(outcome="failed", unread=unread), print) == 0
    drop_half(tmp_path)
    assert (tmp_path / "output").exists() is is_kept


@pytest.mark.long
def test_an_outcome_without_space_is_a_failure_of_storage_and_costs_no_output_that_is_read_later(
    disk: Path,
) -> None:
    assert written(disk, ChildOutcome(outcome="failed", cause=Cause.STORAGE, unread=1)) == (NO_SPACE, True)
    found = conclude(Facts(exit_code=NO_SPACE, superseded=False, retired_input="", shortage=None))
    assert isinstance(found, Conclusion) and "No space left on device" in found.message
