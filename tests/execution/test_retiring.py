"""Rule 7: what is retired, when, and in which order; who still wants it; and who comes upon half of it."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.evidence import Budget, Evidence
from orchestrator.core.records import Done, Request, Retired, Revision
from orchestrator.core.state import CellStatus, State, cell_status, stage_status
from orchestrator.core.sweep import ComposedSweep, StageInstance
from orchestrator.manifest import file_digest
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger
from orchestrator.store.retention import delete, drop_work, leftovers
from tests.execution.faults import Start, finish, order_for
from tests.execution.here import work
from tests.execution.test_kill_points import AT_ONCE
from tests.execution.waiting import pid_in
from tests.store.builders import claim, end, ledger_at, make_product, seal, sweep_of, void

STORE = StageSpec(run="tests.execution.stages:storing", reads=("shared",))
CHOOSE = StageSpec(run="tests.execution.stages:choosing", reads=("seed",), after=("count",))
ADD = StageSpec(run="tests.execution.stages:adding", reads=("seed",), after=("count",))
ALL = ("count.txt", "epochs/1", "epochs/2", "epochs/3")
FILES = {
    "all": ALL,
    "best": ("count.txt", "epochs/1", "epochs/2"),  # of two takers, one likes the first and one the second
    "none": (),
}


def choices(num_cells: int = 2, **rest: Any) -> ComposedSweep:
    """Cells that share a product and like an epoch each, the first cell the first."""
    return sweep_of(num_cells, {"count": STORE, "choose": CHOOSE}, **rest)


def source_of(sweep: ComposedSweep) -> StageInstance:
    return sweep.stages[sweep.cells[0].stage_digests[0]]


def look(root: Path, sweep: ComposedSweep, instance: StageInstance | None = None) -> Evidence:
    reader = EvidenceReader(ledger_at(root), sweep.stages.values())
    return reader.evidence((instance or source_of(sweep)).digest)


def product_of(root: Path, sweep: ComposedSweep) -> Done:
    done = look(root, sweep).done
    assert done is not None, look(root, sweep)
    return done


def files(root: Path, sweep: ComposedSweep) -> tuple[str, ...]:
    """What is there of the shared product."""
    source = source_of(sweep)
    number = product_of(root, sweep).attempt
    folder = root / layout.payload(source, number) / layout.OUTPUT
    return tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()))


def states(root: Path, sweep: ComposedSweep) -> list[CellStatus]:
    reader = EvidenceReader(ledger_at(root), sweep.stages.values())
    found = {digest: stage_status(reader.evidence(digest), Budget({})) for digest in sweep.stages}
    return [cell_status(cell, sweep.stages, found, cancelled=False) for cell in sweep.cells]


def run(root: Path, revision: Revision, policy: str, **rest: Any) -> list[str]:
    """Runs a worker in this process; returns its lines."""
    order = order_for(root, revision.sweep.name, policy={"retention": policy}, **rest)
    worked = work(ledger_at(root), revision, order)
    assert worked.code == 0, worked.lines
    return worked.lines


@pytest.mark.parametrize("policy", FILES)
def test_what_no_taker_wants_under_the_policy_is_recorded_and_deleted(store: Path, policy: str) -> None:
    sweep = choices()
    run(store, seal(store, sweep), policy)
    assert files(store, sweep) == FILES[policy]
    retired = look(store, sweep).retired
    assert [file.path for r in retired for file in r.files] == [p for p in ALL if p not in FILES[policy]]
    assert all(r.policy == policy and "choose" in r.why and r.by for r in retired)
    assert (store / "retired").exists() == (policy != "all")
    assert [status.state for status in states(store, sweep)] == [State.DONE] * 2
    assert len(product_of(store, sweep).files) == len(ALL)


def test_a_product_stays_whole_until_the_last_stage_that_takes_it_is_done(store: Path) -> None:
    sweep = choices(3)
    revision = seal(store, sweep)
    for cells in (("seed0",), ("seed2",)):
        run(store, revision, "none", cells=cells)
        assert files(store, sweep) == ALL and not look(store, sweep).retired
    run(store, revision, "none", cells=("seed1",))
    assert files(store, sweep) == FILES["none"]


def test_a_taker_that_says_nothing_keeps_everything(store: Path) -> None:
    sweep = sweep_of(1, {"count": STORE, "choose": CHOOSE, "add": ADD})
    run(store, seal(store, sweep), "none")
    assert files(store, sweep) == ALL and not look(store, sweep).retired


def test_a_later_policy_lets_go_more_and_never_brings_anything_back(store: Path) -> None:
    sweep = choices()
    revision = seal(store, sweep)
    for policy, left in (("all", ALL), ("best", FILES["best"]), ("none", FILES["none"])):
        run(store, revision, policy)
        assert files(store, sweep) == left
    for policy in ("all", "best"):
        run(store, revision, policy)
        assert files(store, sweep) == FILES["none"]
    assert [len(record.files) for record in look(store, sweep).retired] == [1, 3]
    assert states(store, sweep)[0].state is State.DONE


def test_nothing_keeps_a_link_to_what_was_retired(store: Path) -> None:
    """The first attempt died with checkpoints that the second adopted and linked into its product."""
    sweep = choices()
    run(store, seal(store, sweep), "none", env={"TEST_DIE": "1"})
    source = source_of(sweep)
    assert product_of(store, sweep).attempt == 2
    gone = {file.sha256 for record in look(store, sweep).retired for file in record.files}
    assert len(gone) == len(ALL)
    assert not gone & {file_digest(path) for path in (store / "payload").rglob("*") if path.is_file()}
    first = store / layout.payload(source, 1)
    assert (first / layout.LOG).exists() and (first / layout.OUTCOME).exists() is False


def test_a_retired_file_is_no_damage_and_a_missing_one_that_is_not_recorded_is(store: Path) -> None:
    sweep = choices()
    revision = seal(store, sweep)
    run(store, revision, "best")
    source, done = source_of(sweep), product_of(store, sweep)
    assert run(store, revision, "best") == []
    assert not (store / "void").exists()
    folder = store / layout.payload(source, done.attempt) / layout.OUTPUT
    kept = (folder / "epochs/1").rename(folder / "hidden")
    evidence = look(store, sweep)
    assert evidence.damaged and "epochs/1 is missing" in evidence.problem
    kept.rename(folder / "epochs/1")
    record = store / layout.retired(source, "best", 1)
    for spoil in (lambda: record.write_text("{"), record.unlink):
        spoil()
        evidence = look(store, sweep)
        assert evidence.damaged and "epochs/3 is missing" in evidence.problem


def test_a_worker_killed_at_any_step_of_a_retirement_leaves_what_the_next_finishes(
    tmp_path: Path, store: Path, start: Start
) -> None:
    """The record is there before the first file goes; whoever comes next deletes the rest."""
    sweep = choices()
    revision = seal(store, sweep)
    run(store, revision, "all")
    halves, k, ended = 0, 1, False
    while not ended:
        roots = {k + n: tmp_path / f"store{k + n}" for n in range(AT_ONCE)}
        workers = {}
        for at, root in roots.items():
            shutil.copytree(store, root)
            workers[at] = start(order_for(root, sweep.name, policy={"retention": "none"}), at=at)
        for at, root in roots.items():
            code = workers[at].wait()
            assert code in (0, -signal.SIGKILL), workers[at].output
            ended |= code == 0
            left, retired = files(root, sweep), look(root, sweep).retired
            assert retired or left == ALL
            halves += bool(retired) and len(left) > 0
            run(root, revision, "all")
            assert files(root, sweep) == (FILES["none"] if retired else ALL)
            run(root, revision, "none")
            assert files(root, sweep) == FILES["none"]
            assert not (root / "void").exists() and ledger_at(root).numbers(source_of(sweep)) == [1]
        k += AT_ONCE
    assert k > AT_ONCE + 1 and halves > 2


@pytest.mark.long
def test_two_workers_that_finish_the_last_two_takers_retire_once(store: Path, start: Start) -> None:
    sweep = choices(4)
    revision = seal(store, sweep)
    finish(start, order_for(store, sweep.name, cells=("seed0", "seed1")))
    order = {"policy": {"retention": "none"}}
    workers = [start(order_for(store, sweep.name, cells=(f"seed{n}",), **order)) for n in (2, 3)]
    for worker in workers:
        assert worker.wait() == 0, worker.output
    said = "".join(worker.output for worker in workers)
    assert said.count("retired 4 files") == 1
    assert files(store, sweep) == FILES["none"]
    assert run(store, revision, "none") == []


def test_what_takes_a_retired_product_is_blocked_and_never_claimed_until_it_is_made_again(
    store: Path,
) -> None:
    sweep = choices()
    run(store, seal(store, sweep), "none")
    other = sweep_of(1, {"count": STORE, "add": ADD}, name="other")
    revision = seal(store, other)
    assert other.cells[0].stage_digests[0] == sweep.cells[0].stage_digests[0]
    assert run(store, revision, "all") == []
    assert ledger_at(store).numbers(other.stages[other.cells[0].stage_digests[1]]) == []
    status = states(store, other)[0]
    assert status.state is State.BLOCKED and "count were retired (4 files under policy none)" in status.reason
    assert "--stage count" in status.reason
    ledger_at(store).void(source_of(sweep), void(1, "discarded"))
    run(store, revision, "none")  # its own taker keeps all
    assert states(store, other)[0].state is State.DONE
    assert look(store, other).generation == 2 and files(store, other) == ALL


@pytest.mark.parametrize("policy", ["best", "none"])
def test_an_attempt_of_another_sweep_whose_input_is_retired_meanwhile_is_no_failure(
    store: Path, start: Start, policy: str
) -> None:
    """Under none its file is gone and it fails; under best it succeeds, but nobody knows what it saw."""
    sweep = choices()
    other = sweep_of(1, {"count": STORE, "add": ADD}, name="other")
    revision = seal(store, sweep)
    seal(store, other)
    go = store.parent / "go"
    policies = {"lease_s": 60.0}
    worker = start(order_for(store, other.name, env={"TEST_GO": str(go)}, policy=policies))
    taker = other.stages[other.cells[0].stage_digests[1]]
    pid_in(store / layout.payload(taker, 1) / "runs")
    run(store, revision, policy)
    go.touch()
    assert worker.wait() == 0, worker.output
    first = ledger_at(store).attempt(taker, 1)
    assert first is not None and first.end is not None
    assert (first.end.outcome, first.end.why) == ("released", "input_retired"), first.end
    assert ("count.txt" in first.end.message) == (policy == "none")
    assert ledger_at(store).numbers(taker) == [1]


def test_another_generation_than_the_takers_used_is_not_retired_by_their_word(store: Path) -> None:
    """It was damaged and made again after they were done: what they named were files of the former."""
    sweep = choices()
    revision = seal(store, sweep)
    run(store, revision, "all")
    source = source_of(sweep)
    (store / layout.payload(source, 1) / "output/epochs/2").unlink()
    run(store, revision, "none")
    assert look(store, sweep).generation == 2
    assert files(store, sweep) == ALL and not look(store, sweep).retired


def test_a_newer_revision_of_the_sweep_is_not_robbed_by_workers_of_an_older_one(store: Path) -> None:
    sweep = choices()
    revision = seal(store, sweep)
    ledger = ledger_at(store)
    ledger.add_request(sweep.name, Request(nonce="a", number=0, verb="launch", revision=2))
    run(store, revision, "none")
    assert files(store, sweep) == ALL
    ledger.add_request(sweep.name, Request(nonce="b", number=0, verb="launch", revision=1))
    run(store, revision, "none")
    assert files(store, sweep) == FILES["none"]


def test_a_wish_that_names_no_input_or_no_list_fails_the_stage(store: Path) -> None:
    wrong = StageSpec(run="tests.execution.stages:retiring_wrongly", reads=("seed",), after=("count",))
    sweep = sweep_of(2, {"count": STORE, "wrong": wrong})
    run(store, seal(store, sweep), "none")
    ledger = ledger_at(store)
    messages = []
    for cell in sweep.cells:
        last = ledger.attempts(sweep.stages[cell.stage_digests[-1]])[-1]
        assert last.end is not None and str(last.end.cause) == "code"
        messages.append(last.end.message)
    assert "retire('cuont') names no input" in messages[0]
    assert "a list of patterns" in messages[1]
    assert files(store, sweep) == ALL


def test_a_worker_that_froze_while_it_deleted_spares_what_a_later_generation_left(store: Path) -> None:
    """Attempt 2 makes, or made, generation 2: its output is no half of generation 1."""
    ledger, instance = ledger_at(store), source_of(choices())
    for number, generation in ((1, 1), (2, 1), (3, 2)):
        ledger.claim(instance, number, claim(generation=generation))
        make_product(ledger, instance, attempt=number, generation=generation)
    folders = [store / layout.payload(instance, n) / layout.OUTPUT for n in (1, 2, 3)]
    drop_work(ledger, instance, ledger.attempts(instance), generation=1)
    assert [folder.exists() for folder in folders] == [True, False, True]


def test_the_first_record_of_a_policy_stands(store: Path) -> None:
    """A frozen worker that wakes with another opinion deletes what stands, not what it thought."""
    sweep = choices()
    run(store, seal(store, sweep), "best")
    ledger: Ledger = ledger_at(store)
    (before,) = look(store, sweep).retired
    mine = Retired(
        nonce="mine",
        generation=1,
        attempt=1,
        policy="best",
        files=product_of(store, sweep).files,
        why="",
        by="",
    )
    assert not ledger.retire(source_of(sweep), mine)
    assert look(store, sweep).retired == (before,)


def test_what_is_counted_as_left_over_is_what_a_deletion_removes(store: Path) -> None:
    sweep = sweep_of(2)
    seal(store, sweep)
    ledger, (done, tried) = ledger_at(store), (sweep.stages[cell.stage_digests[0]] for cell in sweep.cells)
    make_product(ledger, done)
    for instance, number in ((done, 1), (tried, 1), (tried, 2)):
        ledger.claim(instance, number, claim())
        ledger.end(instance, number, end())
        for name in (
            "checkpoints/5/state",
            "scratch/a/b",
            "work/x",
            "log.txt",
            "metrics.jsonl",
            "nodes/0/log.txt",
        ):
            file = store / layout.payload(instance, number) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name)
    before = {path: path.stat().st_size for path in store.rglob("*") if path.is_file()}
    found = leftovers(ledger, [done, tried])
    assert {path: path.stat().st_size for path in store.rglob("*") if path.is_file()} == before
    delete(ledger, found, by="test")
    gone = {path: size for path, size in before.items() if not path.exists()}
    assert {path.name for path in gone} == {"file.txt", "state", "b", "x"}
    for left in found:
        sizes = [size for path, size in gone.items() if left.instance.digest in str(path)]
        assert (left.num_files, left.num_bytes) == (len(sizes), sum(sizes))
    assert leftovers(ledger, [done, tried]) == []
