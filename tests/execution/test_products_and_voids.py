"""Rules 2 and 7: what makes a stage done, what undoes that, and what is never deleted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.core.evidence import Budget, Evidence
from orchestrator.core.records import StartRecord, Void
from orchestrator.core.state import State, stage_status
from orchestrator.core.sweep import ComposedSweep, StageInstance
from orchestrator.count import COUNT
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger
from tests.execution.faults import Start, finish, order_for
from tests.execution.here import work
from tests.execution.waiting import lives, pid_in, until
from tests.store.builders import (
    claim,
    counted,
    end,
    instance_of,
    ledger_at,
    make_product,
    seal,
    sweep_of,
    void,
)
from tests.store.stores import TroubledStore

NODE = instance_of(sweep_of(1))
ADDED = {"run": "tests.execution.stages:adding", "reads": ("seed",)}
ADD = StageSpec(**ADDED, after=("count",))  # type: ignore[arg-type]


def look(ledger: Ledger, instance: StageInstance = NODE) -> Evidence:
    return EvidenceReader(ledger, [instance]).evidence(instance.digest)


def state(evidence: Evidence) -> State:
    return stage_status(evidence, Budget({"storage": 1})).state


def test_the_highest_generation_that_is_not_void_is_the_product(store: Path) -> None:
    ledger = ledger_at(store)
    make_product(ledger, NODE, attempt=1, generation=1)
    ledger.void(NODE, void(1))
    second = make_product(ledger, NODE, attempt=3, generation=2)
    assert (look(ledger).done, look(ledger).generation) == (second, 2)


def test_a_void_of_the_highest_generation_makes_the_stage_undone(store: Path) -> None:
    """A lower generation is no substitute, whether it is void itself or not."""
    ledger = ledger_at(store)
    make_product(ledger, NODE, generation=1)
    make_product(ledger, NODE, generation=2)
    ledger.void(NODE, void(2))
    assert (look(ledger).done, look(ledger).generation) == (None, 3)


def test_a_void_without_a_product_counts(store: Path) -> None:
    """It was discarded while it was made: what its attempt still creates does not count."""
    ledger = ledger_at(store)
    ledger.void(NODE, void(1))
    assert look(ledger).generation == 2
    make_product(ledger, NODE, generation=1)
    assert (look(ledger).done, look(ledger).generation) == (None, 2)


def test_a_product_without_an_end_is_done(store: Path) -> None:
    ledger = ledger_at(store)
    ledger.claim(NODE, 1, claim())
    make_product(ledger, NODE)
    assert state(look(ledger)) is State.DONE


def test_a_product_that_appears_while_one_looks_is_seen(store: Path) -> None:
    """The index is read before the attempts: an end that came between must not look like a lost product."""
    plain = ledger_at(store)
    plain.claim(NODE, 1, claim())

    def trouble(when: str, operation: str, key: str) -> None:
        if operation == "get" and key.endswith(layout.CLAIM) and not (store / "done").exists():
            make_product(plain, NODE)
            plain.end(NODE, 1, end("succeeded"))

    assert state(look(Ledger(TroubledStore(store, trouble)))) is State.DONE


def test_an_end_without_a_product_is_not_done(store: Path) -> None:
    ledger = ledger_at(store)
    ledger.claim(NODE, 1, claim())
    ledger.end(NODE, 1, end("succeeded"))
    assert state(look(ledger)) is State.PENDING


def product_file(
    store: Path, instance: StageInstance = NODE, attempt: int = 1, name: str = "file.txt"
) -> Path:
    return store / layout.payload(instance, attempt) / layout.OUTPUT / name


HARMS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "has 2 bytes instead of": lambda path: path.write_text("wh"),
    "missing ": lambda path: shutil.rmtree(path.parent.parent),
}


@pytest.mark.parametrize("problem", HARMS)
def test_a_damaged_product_is_seen_and_named_and_not_voided_by_looking(store: Path, problem: str) -> None:
    ledger = ledger_at(store)
    make_product(ledger, NODE)
    HARMS[problem](product_file(store))
    evidence = look(ledger)
    assert evidence.done is None and evidence.damaged and evidence.generation == 1
    assert problem.strip() in evidence.problem
    assert not (store / "void").exists()


def test_a_done_record_that_cannot_be_read_is_damage(store: Path) -> None:
    ledger = ledger_at(store)
    make_product(ledger, NODE)
    (store / layout.done(NODE, 1)).write_bytes(b'{"nonce": "')
    evidence = look(ledger_at(store))
    assert evidence.damaged and "unreadable" in evidence.problem


# Real workers


def chained() -> ComposedSweep:
    """Two stages, the second takes the first's product."""
    return sweep_of(1, {"count": COUNT, "add": ADD})


def test_a_damaged_product_is_voided_by_a_worker_and_made_again_as_the_next_generation(
    store: Path, start: Start
) -> None:
    sweep = sweep_of(1)
    seal(store, sweep)
    instance = instance_of(sweep)
    order = order_for(store, sweep.name)
    finish(start, order)
    product_file(store, instance, name="count.txt").unlink()
    finish(start, order)
    ledger = ledger_at(store)
    found, _ = ledger.read(layout.void(instance, 1), Void)
    assert found is not None and found.kind == "damaged" and "count.txt is missing" in found.reason
    product, _ = ledger.product(instance, 2)
    assert product is not None and product.attempt == 2
    second = ledger.attempt(instance, 2)
    assert second is not None and second.claim is not None and second.claim.generation == 2
    assert product_file(store, instance, 2, "count.txt").read_text() == counted(0)


def test_a_product_whose_content_changed_is_never_given_to_the_next_stage(store: Path, start: Start) -> None:
    """Of equal size: only those who take it read all of it."""
    sweep = chained()
    seal(store, sweep)
    first, second = (sweep.stages[digest] for digest in sweep.cells[0].stage_digests)
    ledger, order = ledger_at(store), order_for(store, sweep.name)
    finish(start, order)
    ledger.void(second, void(1))
    file = product_file(store, first, name="count.txt")
    file.write_text("x" * file.stat().st_size)
    finish(start, order)
    product, _ = ledger.product(second, 2)
    assert product is not None and product.inputs == {first.digest: 2}
    text = product_file(store, second, product.attempt, "sum.txt").read_text()
    assert text == f"{counted(0)}and 0\n"


@pytest.mark.parametrize("is_claiming", [False, True])
def test_damage_that_is_gone_at_the_second_look_voids_nothing(store: Path, is_claiming: bool) -> None:
    """A network file system may show a file late: while the evidence is read, or before the void."""
    sweep = chained()
    revision = seal(store, sweep)
    first, second = (sweep.stages[digest] for digest in sweep.cells[0].stage_digests)
    plain, order = ledger_at(store), order_for(store, sweep.name)
    work(plain, revision, order)
    plain.void(second, void(1))
    file = product_file(store, first, name="count.txt")
    hidden = file.with_name("hidden")
    file.rename(hidden)

    def worked(line: str) -> None:
        raise AssertionError(line)

    def trouble(when: str, operation: str, key: str) -> None:
        """The file appears after the first look: its damage was seen when the attempts are read."""
        seen_at = layout.NODES if is_claiming else layout.attempts(first)
        if operation == "list" and key == seen_at and hidden.exists():
            hidden.rename(file)

    assert work(Ledger(TroubledStore(store, trouble)), revision, order).code == 0
    assert plain.generations(layout.void_index("count")) == {}
    assert plain.numbers(first) == [1]


def test_an_input_that_goes_away_between_two_attempts_of_a_worker_is_made_again(store: Path) -> None:
    """It was verified before the first of them; the second must not take that on trust."""
    share = StageSpec(run="tests.execution.stages:sharing", reads=("shared",))
    sweep = sweep_of(2, {"count": share, "add": ADD})
    one = instance_of(sweep)  # both cells take the same product
    shared = sweep.stages[one.inputs[0].digest]
    assert len(sweep.stages) == 3
    revision = seal(store, sweep)
    ends: list[str] = []

    def trouble(when: str, operation: str, key: str) -> None:
        if (when, operation) == ("after", "create") and key.endswith("end.json"):
            ends.append(key)
            if len(ends) == 2:
                product_file(store, shared, name="count.txt").unlink()

    assert work(Ledger(TroubledStore(store, trouble)), revision, order_for(store, sweep.name)).code == 0
    ledger = ledger_at(store)
    assert sorted(ledger.generations(layout.done_index("add"))) == sorted(
        cell.stage_digests[-1] for cell in sweep.cells
    )
    assert ledger.generations(layout.done_index("count")) == {shared.digest: {1, 2}}


def test_what_was_made_from_an_input_that_was_discarded_meanwhile_does_not_count(
    store: Path, start: Start
) -> None:
    sweep = chained()
    seal(store, sweep)
    first, second = (sweep.stages[digest] for digest in sweep.cells[0].stage_digests)
    go = store.parent / "go"
    order = order_for(store, sweep.name, env={"TEST_GO": str(go)}, policy={"lease_s": 60.0})
    worker = start(order)
    child = pid_in(store / layout.payload(second, 1) / "runs")
    ledger = ledger_at(store)
    ledger.void(first, void(1, "discarded"))
    go.touch()
    assert worker.wait() == 0, worker.output
    assert not lives(child)
    product, _ = ledger.product(second, 1)
    assert product is not None and product.attempt == 2 and product.inputs == {first.digest: 2}


def test_a_product_does_not_count_when_one_that_it_was_made_from_was_discarded(
    store: Path, start: Start
) -> None:
    """A discard that was cut off after its first void, or that ran beside the end of the other attempt."""
    sweep = sweep_of(
        1, {"count": COUNT, "add": ADD, "more": StageSpec(**{**ADDED, "after": ("count", "add")})}
    )
    seal(store, sweep)
    instances = [sweep.stages[digest] for digest in sweep.cells[0].stage_digests]
    ledger, order = ledger_at(store), order_for(store, sweep.name)
    finish(start, order)
    ledger.void(instances[0], void(1, "discarded"))
    reader = EvidenceReader(ledger, instances)
    found = [reader.evidence(instance.digest) for instance in instances]
    assert [state(evidence) for evidence in found] == [State.PENDING] * 3
    assert "discarded" in found[1].problem and not (store / "void/add").exists()
    finish(start, order)
    for instance in instances:
        product, _ = ledger.product(instance, 2)
        assert product is not None and set(product.inputs.values()) <= {2}


@pytest.mark.parametrize(("kind", "expected"), [("discarded", State.PENDING), ("damaged", State.FAILED)])
def test_a_discard_spends_no_retry_of_what_it_voids_or_what_was_made_from_it(
    store: Path, kind: str, expected: State
) -> None:
    """Whatever becomes of the discard's request: it may be cut off, or be one of another sweep."""
    sweep, ledger = chained(), ledger_at(store)
    instances = [sweep.stages[digest] for digest in sweep.cells[0].stage_digests]
    for instance in instances:
        ledger.claim(instance, 1, claim())
        inputs = {taken.digest: 1 for taken in instance.inputs}
        ledger.put(instance, 1, layout.START, StartRecord(parent=None, provenance={}, uses={}, inputs=inputs))
        make_product(ledger, instance, inputs=inputs)
        ledger.end(instance, 1, end("succeeded"))

    def states() -> list[State]:
        reader = EvidenceReader(ledger, instances)
        return [stage_status(reader.evidence(one.digest), Budget({})).state for one in instances]

    ledger.void(instances[0], void(1, kind))
    assert states() == [expected, State.PENDING if kind == "discarded" else State.DONE]
    ledger.void(instances[1], void(1, kind))
    assert states() == [expected, expected]


# Rule 7


def test_of_a_finished_stage_only_checkpoints_are_deleted(store: Path, start: Start) -> None:
    sweep = sweep_of(1, fail={"how": "exit", "step": 2, "attempts": 1})
    seal(store, sweep)
    instance = instance_of(sweep)
    finish(start, order_for(store, sweep.name))
    folder = store / layout.payload(instance, 2)
    assert not (folder / layout.CHECKPOINTS).exists() and not (folder / "scratch").exists()
    assert product_file(store, instance, 2, "count.txt").read_text() == counted(0)
    assert (folder / layout.LOG).exists() and (folder / layout.METRICS).exists()
    for number in (1, 2):
        records = store / layout.attempts(instance) / str(number)
        assert {path.name for path in records.iterdir()} == {
            layout.CLAIM,
            layout.START,
            layout.HEARTBEAT,
            layout.END,
        }


def test_checkpoints_stay_when_the_policy_says_so(store: Path, start: Start) -> None:
    sweep = sweep_of(1)
    seal(store, sweep)
    instance = instance_of(sweep)
    finish(start, order_for(store, sweep.name, policy={"keep_checkpoints": True}))
    folder = store / layout.payload(instance, 1) / layout.CHECKPOINTS
    assert [path.name for path in sorted(folder.iterdir())] == ["00000001", "00000002"]


def test_a_number_is_never_used_twice_though_payload_and_product_are_gone(store: Path, start: Start) -> None:
    sweep = sweep_of(1)
    seal(store, sweep)
    instance, order = instance_of(sweep), order_for(store, sweep.name)
    ledger = ledger_at(store)
    for number in (1, 2, 3):
        finish(start, order)
        assert ledger.numbers(instance) == list(range(1, number + 1))
        ledger.objects.delete(layout.payload(instance, number))
    until(lambda: ledger.generations(layout.done_index("count")) == {instance.digest: {1, 2, 3}})
