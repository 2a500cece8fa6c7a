"""A model of the protocol under random schedules: workers, crashes, false deaths, a discard and retention.

The store is in memory and each of its operations is one step of a schedule; ledger, snapshot and decisions
are the real ones. A worker's body is written out here, in the order of `orchestrator.execution.attempt`.
Stage `a` leaves three files; `b` and `c` take it and let one of them go; `d` of another sweep wants them all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.api import dropping
from orchestrator.core.evidence import Attempt, Budget, Evidence, Liveness
from orchestrator.core.failure import Cause
from orchestrator.core.plan import RequestSummary
from orchestrator.core.records import Claim, Done, End, Owner, Process, StartRecord, Supersedes, Void
from orchestrator.core.settings import Policy
from orchestrator.core.state import State, cell_status, stage_status
from orchestrator.core.sweep import Cell, ComposedSweep, Input, StageInstance
from orchestrator.execution.checkpoints import is_discarded
from orchestrator.execution.scanning import StoreScanner
from orchestrator.manifest import File
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.evidence import EvidenceReader, OwnerReport, examine
from orchestrator.store.ledger import Ledger
from orchestrator.store.retention import drop_work, retain
from tests.store.schedules import Memory, Schedule

A = StageInstance(stage="a", digest="a", reads={})
B, C, D = (StageInstance(stage=s, digest=s, reads={}, inputs=(Input("a", "", "a"),)) for s in "bcd")


def sweep_of(name: str, *instances: StageInstance) -> ComposedSweep:
    """One cell with these stages."""
    chain = tuple(instance.digest for instance in instances)
    cell = Cell(id="cell", axes={}, columns={}, config={}, stage_digests=chain)
    return ComposedSweep(
        name=name, specs={}, stages={instance.digest: instance for instance in instances}, cells=(cell,)
    )


SWEEP, OTHER = sweep_of("sweep", A, B, C), sweep_of("other", A, D)
INSTANCES = SWEEP.stages | OTHER.stages
FILES = ("w1", "w2", "w3")
RETIRE = {"b": {"a": {"best": ("w1",)}}, "c": {"a": {"best": ("w2",)}}}
RETIRED = {"w3"}
POLICY = Policy(retention="best")
BUDGET = Budget({"node_lost": 99, "storage": 99})
NUM_CHECKPOINTS = 2


class Actor:
    """A worker of the model."""

    def __init__(
        self, name: str, memory: Memory, schedule: Schedule, lies: list[bool], sweep: ComposedSweep = SWEEP
    ) -> None:
        self._name, self._schedule, self._lies, self._sweep = name, schedule, lies, sweep
        self._ledger = Ledger(memory)

    def _observe(self, instance: StageInstance, attempt: Attempt) -> OwnerReport:
        """Crashed owners are gone; a false death is drawn while the schedule lasts."""
        assert attempt.claim is not None
        host = attempt.claim.owner.host
        lie = bool(self._lies) and not self._schedule.is_over and self._lies.pop()
        gone = lie or host in self._schedule.crashed or host == self._name
        return OwnerReport(Liveness.GONE if gone else Liveness.UNKNOWN, "looked")

    def __call__(self) -> None:
        instances = self._sweep.stages
        scanner = StoreScanner(
            self._sweep.cells,
            instances,
            lambda reader, _, digest: stage_status(reader.evidence(digest), BUDGET),
        )
        while True:
            reader = EvidenceReader(self._ledger, instances.values(), observer=self._observe)
            scan = scanner.next_stage(reader, RequestSummary(frozenset(), {}, {}))
            if scan.claimable is not None:
                self._try(scan.claimable.instance, reader)
            elif not scan.waiting:
                retain(self._ledger, self._sweep, POLICY, by=self._name)
                return

    def _try(self, instance: StageInstance, reader: EvidenceReader) -> None:
        ledger, evidence = self._ledger, reader.evidence(instance.digest)
        inputs = {i.digest: reader.evidence(i.digest) for i in instance.inputs}
        if evidence.damaged:
            done, _ = ledger.product(instance, evidence.generation)
            assert done is not None
            discarded = ledger.discarded_input(instance, done)
            if discarded or examine(ledger, instance, done, content=False)[0]:
                void = Void(
                    nonce=new_nonce(),
                    generation=evidence.generation,
                    kind="discarded" if discarded else "damaged",
                    reason=discarded,
                    by="",
                )
                ledger.void(instance, void)
            return
        attempts = ledger.attempts(instance)
        if attempts != evidence.attempts or ledger.is_done_or_void(instance, evidence.generation):
            return
        number = len(attempts) + 1
        lost = bool(attempts) and attempts[-1].end is None
        claim = Claim(
            nonce=new_nonce(),
            owner=Owner(host=self._name, process=Process(boot_id="", namespace="", pid=1, start="")),
            lease_s=1.0,
            generation=evidence.generation,
            sweep="s",
            cell="cell",
            supersedes=Supersedes(attempt=number - 1, evidence="", cause=Cause.NODE_LOST) if lost else None,
        )
        if ledger.claim(instance, number, claim):
            why = self._run(instance, number, claim.generation, attempts, inputs)
            end = End(nonce=new_nonce(), outcome="released" if why else "succeeded", why=why)
            ledger.end(instance, number, end)
            if not why:
                earlier = [a for a in ledger.attempts(instance) if a.number <= number]
                drop_work(ledger, instance, earlier, generation=claim.generation)
                retain(
                    ledger, self._sweep, POLICY, by=self._name, sources=[i.digest for i in instance.inputs]
                )

    def _run(
        self,
        instance: StageInstance,
        number: int,
        generation: int,
        earlier: tuple[Attempt, ...],
        inputs: dict[str, Evidence],
    ) -> str:
        """Runs an attempt; returns why it was released, "" when its product stands."""
        ledger = self._ledger
        if ledger.is_done_or_void(instance, generation):
            return "already_done"
        if ledger.retired_input(instance, {digest: e.generation for digest, e in inputs.items()}):
            return "input_retired"
        taken = {digest: evidence.generation for digest, evidence in inputs.items()}
        made = "".join(str(e.done.rows[0]["made"]) for e in inputs.values() if e.done) or f"a{number}"
        step, state = self._resume(instance, earlier)
        state = state or made
        ledger.put(
            instance, number, layout.START, StartRecord(parent=None, uses={}, provenance={}, inputs=taken)
        )
        for now in range(step + 1, NUM_CHECKPOINTS + 1):
            if ledger.is_claimed(instance, number + 1) or ledger.is_done_or_void(instance, generation):
                return "superseded"
            ledger.objects.put(_checkpoint(instance, number), f"{now} {state}".encode())
            if not self._reads_whole(inputs):
                if ledger.is_claimed(instance, number + 1) or ledger.is_done_or_void(instance, generation):
                    return "superseded"
                assert ledger.retired_input(instance, taken), (
                    "a file of an input is gone and nothing says why"
                )
                return "input_retired"
        files = self._write(instance, number, state) if instance is A else ()
        if ledger.retired_input(instance, taken):
            return "input_retired"
        if any(ledger.is_discarded(source, taken[source.digest]) for source in instance.inputs):
            return "superseded"
        done = Done(
            nonce=new_nonce(),
            stage=instance.stage,
            digest=instance.digest,
            generation=generation,
            attempt=number,
            files=files,
            rows=({"made": state},),
            seconds=0.0,
            inputs=taken,
            retire=RETIRE.get(instance.stage, {}),
        )
        return "" if ledger.finish(done) else "superseded"

    def _write(self, instance: StageInstance, number: int, state: str) -> tuple[File, ...]:
        for name in FILES:
            self._ledger.objects.put(_file(instance, number, name), state.encode())
        return tuple(File(name, len(state), "") for name in FILES)

    def _reads_whole(self, inputs: dict[str, Evidence]) -> bool:
        for digest, evidence in inputs.items():
            done = evidence.done
            assert done is not None and not evidence.retired
            for name in FILES:
                data = self._ledger.objects.get(_file(INSTANCES[digest], done.attempt, name))
                if data is None:
                    return False
                assert data.decode() == done.rows[0]["made"]
        return True

    def _resume(self, instance: StageInstance, earlier: tuple[Attempt, ...]) -> tuple[int, str]:
        best = (0, "")
        for attempt in earlier:
            data = self._ledger.objects.get(_checkpoint(instance, attempt.number))
            if data is not None and not is_discarded(self._ledger, instance, attempt):
                step, _, state = data.decode().partition(" ")
                best = max(best, (int(step), state))
        return best


def _checkpoint(instance: StageInstance, number: int) -> str:
    return f"{layout.payload(instance, number)}/{layout.CHECKPOINTS}/newest"


def _file(instance: StageInstance, number: int, name: str) -> str:
    return f"{layout.payload(instance, number)}/{layout.OUTPUT}/{name}"


def discarder(memory: Memory) -> Callable[[], None]:
    """`sweep discard --stage a`, as the verb does it, once `a` is done."""

    def act() -> None:
        ledger = Ledger(memory)
        while EvidenceReader(ledger, [A], check_files=False).evidence("a").done is None:
            pass
        view: Any = SimpleNamespace(ledger=ledger)
        for instance in (A, B, C, D):
            dropping._void(view, instance, "a bug", {"a"})

    return act


def play(
    choices: list[int], lies: list[bool], num_workers: int, *, with_discard: bool, in_place: bool
) -> None:
    """Plays a schedule, then lets a truthful worker finish, then checks what must always hold."""
    schedule = Schedule(choices)
    memory = Memory(schedule, in_place=in_place)
    actors: dict[str, Callable[[], None]] = {
        f"worker {n}": Actor(f"worker {n}", memory, schedule, lies) for n in range(num_workers)
    }
    actors["other"] = Actor("other", memory, schedule, lies, OTHER)
    if with_discard:
        actors["discard"] = discarder(memory)
    schedule.run(actors)
    schedule.crashed = set(actors)
    schedule.is_over = True
    Actor("the last", memory, schedule, [])()
    Actor("the other's last", memory, schedule, [], OTHER)()
    check(Ledger(memory), memory)


def check(ledger: Ledger, memory: Memory) -> None:
    reader = EvidenceReader(
        ledger, INSTANCES.values(), observer=lambda *_: OwnerReport(Liveness.GONE, "all are")
    )
    products = {digest: reader.evidence(digest) for digest in INSTANCES}
    if products["d"].done is None:  # its input lost a file to the sweep's policy before it could be read
        statuses = {digest: stage_status(reader.evidence(digest), BUDGET) for digest in OTHER.stages}
        status = cell_status(OTHER.cells[0], OTHER.stages, statuses, cancelled=False)
        assert status.state is State.BLOCKED and "were retired (1 file" in status.reason, status
        del products["d"]
    for digest, evidence in products.items():
        assert stage_status(evidence, BUDGET).state is State.DONE, digest
        attempts = ledger.attempts(INSTANCES[digest])
        assert [a.number for a in attempts] == list(range(1, len(attempts) + 1))
        done = evidence.done
        assert done is not None
        maker = attempts[done.attempt - 1]
        assert maker.claim is not None and maker.claim.generation == done.generation
        explained = {a.claim.supersedes.attempt for a in attempts if a.claim and a.claim.supersedes}
        for attempt in attempts:
            assert attempt.end or attempt.number in explained | {done.attempt} or attempt is attempts[-1]
    origin = ledger.attempts(A)[int(products["a"].done.rows[0]["made"][1:]) - 1]  # type: ignore[union-attr]
    assert origin.claim is not None and origin.claim.generation == products["a"].generation, (
        "a went on from a checkpoint of what was discarded"
    )
    a = products["a"].done
    assert a is not None
    for digest in products.keys() - {"a"}:
        b = products[digest].done
        assert b is not None
        assert b.inputs == {"a": a.generation}, "made from a product that does not count"
        assert b.rows[0]["made"] == a.rows[0]["made"], "went on from what was made of a discarded product"
    assert {file.path for record in products["a"].retired for file in record.files} == RETIRED
    assert {name for name in FILES if _file(A, a.attempt, name) in memory.records} == set(FILES) - RETIRED
    for key, data in memory.records.items():
        assert not key.startswith("void/") or b'"damaged"' not in data, f"{key}: retired files seen as damage"


def drawn(seed: int) -> tuple[list[int], list[bool]]:
    """A schedule that favours some actors for a while, crashes a few, and tells some lies."""
    rng = random.Random(seed)
    choices: list[int] = []
    while len(choices) < 300:
        favourite = rng.randrange(90)
        choices += [
            favourite if rng.random() < 0.8 else rng.randrange(90) for _ in range(rng.randrange(1, 40))
        ]
        if rng.random() < 0.1:
            choices.append(90 + rng.randrange(10))
    return choices, [rng.random() < 0.5 for _ in range(12)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(2, 3), st.booleans())
def test_two_or_three_workers_with_crashes_and_false_deaths_make_one_product_of_each_stage(
    seed: int, num_workers: int, in_place: bool
) -> None:
    play(*drawn(seed), num_workers, with_discard=False, in_place=in_place)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(1, 2), st.booleans())
def test_a_discard_at_any_moment_leaves_nothing_that_was_made_from_what_it_discarded(
    seed: int, num_workers: int, in_place: bool
) -> None:
    play(*drawn(seed), num_workers, with_discard=True, in_place=in_place)


@pytest.mark.long
@pytest.mark.parametrize("with_discard", [False, True])
def test_ten_thousand_schedules(with_discard: bool) -> None:
    for seed in range(10_000):
        play(*drawn(seed), 1 + seed % 3, with_discard=with_discard, in_place=bool(seed // 3 % 2))
