"""A worker that reads only what may have changed finds what one finds that reads all records again."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.core.evidence import Attempt, Liveness
from orchestrator.core.failure import Cause
from orchestrator.core.gates import Gate, Gates
from orchestrator.core.plan import ReadyIndex, RequestSummary
from orchestrator.core.records import Claim, Done, End, Owner, Process, Retired, Void
from orchestrator.core.state import StageStatus, stage_status
from orchestrator.core.sweep import Cell, Input, StageInstance
from orchestrator.execution.scanning import StoreScanner
from orchestrator.manifest import File
from orchestrator.store.access import new_nonce
from orchestrator.store.evidence import EvidenceReader, OwnerReport
from orchestrator.store.ledger import Ledger
from tests.store.schedules import Memory, Schedule

INPUTS = {"a": "", "b": "a", "c": "ab", "d": "a"}
INSTANCES = {
    digest: StageInstance(
        stage="ad" if digest in "ad" else digest,
        digest=digest,
        reads={},
        inputs=tuple(Input("ad" if taken == "a" else taken, "", taken) for taken in inputs),
    )
    for digest, inputs in INPUTS.items()
}
CELLS = tuple(
    Cell(id=name, axes={}, columns={}, config={}, stage_digests=tuple(chain))
    for name, chain in {"one": "abc", "two": "ad"}.items()
)
RETRIES = {"unknown": 2, "storage": 2, "node_lost": 2}
WHATS = [
    "make",
    "make",
    "make",
    "void",
    "void",
    "retire",
    "claim",
    "succeed",
    "fail",
    "release",
    "lose",
    "rerun",
]
STEPS = st.one_of(
    st.tuples(st.sampled_from(WHATS), st.sampled_from("aabbcd")),
    st.tuples(st.just("cancel"), st.sampled_from(["one", "two"])),
)


class _Store:
    """A store in memory, changed one record at a time, and the worker that searches it."""

    def __init__(self, *, in_place: bool) -> None:
        self.ledger = Ledger(Memory(Schedule([]), in_place=in_place))  # type: ignore[arg-type]
        self.lost: set[tuple[str, int]] = set()
        self.summary = RequestSummary(frozenset(), {}, {})
        self.num_read = 0

    def reader(self) -> EvidenceReader:
        return EvidenceReader(self.ledger, INSTANCES.values(), observer=self._observe, count_attempts=False)

    def _observe(self, instance: StageInstance, attempt: Attempt) -> OwnerReport:
        is_gone = (instance.digest, attempt.number) in self.lost
        return OwnerReport(Liveness.GONE if is_gone else Liveness.ALIVE, "seen")

    def status(self, reader: EvidenceReader, summary: RequestSummary, digest: str) -> StageStatus:
        self.num_read += 1
        return stage_status(reader.evidence(digest), summary.budget(digest, RETRIES))

    def change(self, what: str, name: str) -> None:
        """Makes one change if it is possible now."""
        if what == "cancel":
            self.summary = self.summary._replace(cancelled=self.summary.cancelled ^ {name})
            return
        if what == "make":
            self.change("claim", name)
            self.change("succeed", name)
            return
        instance = INSTANCES[name]
        attempts, evidence = self.ledger.attempts(instance), self.reader().evidence(name)
        last = attempts[-1] if attempts else None
        if what == "rerun":
            self.summary = self.summary._replace(after={**self.summary.after, name: len(attempts)})
        elif what == "claim" and evidence.done is None:
            self._claim(instance, len(attempts) + 1, evidence.generation)
        elif what == "void" and (evidence.done is not None or evidence.damaged):
            void = Void(
                nonce=new_nonce(), generation=evidence.generation, kind="discarded", reason="r", by=""
            )
            self.ledger.void(instance, void)
        elif what == "retire" and evidence.done is not None:
            self._retire(instance, evidence.done)
        elif what == "lose" and last is not None:
            self.lost.add((name, last.number))
        elif last is not None and last.claim is not None and last.end is None:
            if what == "succeed":
                self.ledger.finish(self._done(instance, last.number, last.claim.generation))
            outcomes: Any = {"succeed": "succeeded", "fail": "failed", "release": "released"}
            if what in outcomes:
                cause = Cause.UNKNOWN if what == "fail" else None
                end = End(nonce=new_nonce(), outcome=outcomes[what], cause=cause)
                self.ledger.end(instance, last.number, end)

    def _claim(self, instance: StageInstance, number: int, generation: int) -> None:
        owner = Owner(host="h", process=Process(boot_id="", namespace="", pid=1, start=""))
        claim = Claim(
            nonce=new_nonce(), owner=owner, lease_s=1.0, generation=generation, sweep="s", cell="one"
        )
        assert self.ledger.claim(instance, number, claim)

    def _done(self, instance: StageInstance, number: int, generation: int) -> Done:
        reader = self.reader()
        return Done(
            nonce=new_nonce(),
            stage=instance.stage,
            digest=instance.digest,
            generation=generation,
            attempt=number,
            files=(),
            rows=(),
            seconds=1.0,
            inputs={i.digest: reader.evidence(i.digest).generation for i in instance.inputs},
        )

    def _retire(self, instance: StageInstance, done: Done) -> None:
        record = Retired(
            nonce=new_nonce(),
            generation=done.generation,
            attempt=done.attempt,
            policy="best",
            files=(File("w", 1, ""),),
            why="",
            by="",
        )
        self.ledger.retire(instance, record)


@given(st.lists(STEPS, min_size=20, max_size=40), st.booleans())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
def test_after_any_records_the_worker_finds_what_a_full_scan_finds(
    steps: list[tuple[str, str]], in_place: bool
) -> None:
    store = _Store(in_place=in_place)
    worker = StoreScanner(CELLS, INSTANCES, store.status)
    for what, name in steps:
        store.change(what, name)
        reader = store.reader()
        found = ReadyIndex(CELLS, INSTANCES).next_stage(
            lambda digest, r=reader: store.status(r, store.summary, digest),  # type: ignore[misc]
            cancelled=store.summary.cancelled,
        )
        assert worker.next_stage(store.reader(), store.summary) == found
        assert worker.count(store.reader(), store.summary)[1] == found.waiting


def test_what_is_done_or_never_began_is_not_read_again() -> None:
    store = _Store(in_place=True)
    worker = StoreScanner(CELLS, INSTANCES, store.status)
    for digest in "ab":
        worker.next_stage(store.reader(), store.summary)
        store.change("claim", digest)
        store.change("succeed", digest)
    store.num_read = 0
    scan = worker.next_stage(store.reader(), store.summary)
    assert scan.claimable is not None and scan.claimable.instance.digest == "c"
    first, store.num_read = store.num_read, 0
    assert worker.next_stage(store.reader(), store.summary) == scan
    assert (first, store.num_read) == (2, 0)  # b, which is done now, and what takes it


def test_a_stage_is_wanted_while_a_cell_that_is_not_cancelled_takes_it_or_waits_for_a_gate_that_does() -> (
    None
):
    store = _Store(in_place=True)
    gate = StageInstance(stage="gate", digest="g", reads={}, inputs=(Input("ad", "", "d"),))
    instances = {**INSTANCES, "g": gate}
    gates = Gates({"g": gate}, {"g": ("a", "d", "g")}, {"one": (Gate("g", ("c",)),)})
    worker = StoreScanner(CELLS, instances, store.status, gates)

    def wanted(*cancelled: str) -> set[str]:
        reader = EvidenceReader(store.ledger, instances.values(), count_attempts=False)
        worker.next_stage(reader, store.summary)
        return {digest for digest in instances if worker.is_wanted(digest, cancelled)}

    assert wanted() == set("abcdg")
    assert wanted("two") == set("abcdg")  # the gate of the other cell takes d
    assert wanted("one") == set("ad")
    assert wanted("one", "two") == set()
    for digest in "abc":
        store.change("make", digest)
    assert wanted("two") == set("abc")  # nothing waits for the gate any more
