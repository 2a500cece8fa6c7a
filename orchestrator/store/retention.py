"""Retention (rule 7): files that nobody needs any more are recorded as retired, durably, and then deleted.

It deletes payload only, of stages that are done, and knows no more of the files than what the stages that
took them said. Every step may be repeated: whoever comes next finishes what another began.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from orchestrator import provenance
from orchestrator.core.records import Done, Retired
from orchestrator.core.retention import remaining_files, removable_files
from orchestrator.core.settings import RETIRING, Policy
from orchestrator.core.state import Attempt, Evidence, Liveness
from orchestrator.core.sweep import StageInstance, Sweep
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger

_PAYLOAD = (layout.OUTPUT, layout.CHECKPOINTS, layout.SCRATCH, layout.WORK)
"""What is deleted of an attempt; its log and metrics stay."""


class Leftover(NamedTuple):
    """A stage of which there is payload to delete.

    Attributes:
        node: the stage.
        evidence: what the store says of it.
        num_files: that would be deleted.
        num_bytes: of these files.
    """

    node: StageInstance
    evidence: Evidence
    num_files: int
    num_bytes: int

    @property
    def is_open(self) -> bool:
        """Whether an attempt of it may still be at work."""
        attempts = self.evidence.attempts
        is_ended = self.evidence.done is not None or not attempts or attempts[-1].end is not None
        return not is_ended and self.evidence.liveness is not Liveness.GONE


class UnusedCode(NamedTuple):
    """A code snapshot, or what a launch that died left of one, that nothing in use names."""

    digest: str
    num_files: int
    num_bytes: int


def unused_code(ledger: Ledger, used: Collection[str]) -> list[UnusedCode]:
    """Return the code snapshots in a store but for those whose digests are given."""
    listing = ledger.objects.list(layout.CODE)
    names = {name.partition(".")[0] for name in (*listing.files, *listing.folders)}
    digests = sorted(names - set(used))
    trees = ledger.objects.trees(place for digest in digests for place in _places(digest))
    return [
        UnusedCode(digest, len(sizes), sum(sizes))
        for digest in digests
        if (sizes := [size for place in _places(digest) for size in trees[place].values()])
    ]


def delete_code(ledger: Ledger, found: Iterable[UnusedCode]) -> None:
    """Delete code snapshots, first what makes one count: a launch that needs it meanwhile stores it anew."""
    for code in found:
        for key in (layout.code_record(code.digest), *_places(code.digest)):
            ledger.objects.delete(key)


def _places(digest: str) -> tuple[str, str]:
    return layout.code(digest), layout.code_archive(digest)


def leftovers(ledger: Ledger, nodes: Sequence[StageInstance]) -> list[Leftover]:
    """Return the stages, of some, that have payload to delete."""
    prefixes = {node.digest: f"payload/{node.stage}/{node.digest}" for node in nodes}
    trees = ledger.objects.trees(prefixes.values())
    found = []
    snapshot = EvidenceReader(ledger, nodes, check_files=False)
    for node in nodes:
        sizes = [
            size
            for path, size in trees.get(prefixes[node.digest], {}).items()
            if len(parts := path.split("/")) > 2 and parts[1] in _PAYLOAD
        ]
        evidence = snapshot.evidence(node.digest)
        left = Leftover(node, evidence, len(sizes), sum(sizes))
        if sizes or left.is_open:
            found.append(left)
    return found


def delete(ledger: Ledger, found: Iterable[Leftover], *, by: str) -> None:
    """Delete the payload of stages none of which has an attempt at work.

    Args:
        ledger: the store.
        found: what `leftovers` returned.
        by: who asks, for the record.
    """
    for node, evidence, _, _ in found:
        kept: set[int] = set()
        if evidence.done is not None and not _retired(ledger, node, evidence.done, evidence.retired, by):
            kept.add(evidence.done.attempt)
        for number in ledger.numbers(node):
            for name in _PAYLOAD if number not in kept else _PAYLOAD[1:]:
                ledger.objects.delete(f"{layout.payload(node.stage, node.digest, number)}/{name}")


def _retired(ledger: Ledger, node: StageInstance, done: Done, before: tuple[Retired, ...], by: str) -> bool:
    """Record that all files of a product are absent by decision; False when no record is left for it."""
    files = remaining_files(done.files, before)
    if not files:
        return True
    taken = {record.policy for record in before}
    for policy in reversed(RETIRING):
        if policy in taken:
            continue
        record = Retired(
            nonce=new_nonce(),
            generation=done.generation,
            attempt=done.attempt,
            policy=policy,
            files=files,
            why="no revision in use names this stage",
            by=by,
            at=provenance.now(),
        )
        if ledger.retire(node, record):
            return True
    return False


def retain(
    ledger: Ledger,
    sweep: Sweep,
    policy: Policy,
    *,
    by: str,
    sources: Collection[str] | None = None,
    trusted: set[tuple[str, int]] | None = None,
) -> list[Retired]:
    """Retires what the policy lets go of products whose takers in the sweep are all done.

    Deletions that another recorded and did not finish are finished, whatever the policy.

    Args:
        ledger: the store.
        sweep: whose stages may still need a product; another sweep that does is told by its own evidence.
        policy: what is kept.
        by: who asks, for the record.
        sources: digests of the products to look at; None for all that are taken by a stage.
        trusted: products whose files were compared before.

    Returns:
        What this call was the first to retire.
    """
    takers: dict[str, list[StageInstance]] = {}
    for node in sweep.nodes.values():
        for taken in node.inputs:
            takers.setdefault(taken.digest, []).append(node)
    snapshot = EvidenceReader(ledger, sweep.nodes.values(), count_attempts=False, trusted=trusted)
    news = []
    for digest in takers if sources is None else sources:
        source, evidence = sweep.nodes[digest], snapshot.evidence(digest)
        if evidence.done is None:
            continue
        retired = evidence.retired
        decided = _decide(snapshot, source, evidence.done, takers[digest], policy, retired=retired, by=by)
        if decided is not None:
            if ledger.retire(source, decided):
                news.append(decided)
            retired = ledger.retired(source, evidence.generation)  # what stands, whoever wrote it
        for record in retired:
            _delete(ledger, source, record, keep_checkpoints=policy.keep_checkpoints)
    return news


def _decide(
    snapshot: EvidenceReader,
    source: StageInstance,
    product: Done,
    takers: list[StageInstance],
    policy: Policy,
    *,
    retired: tuple[Retired, ...],
    by: str,
) -> Retired | None:
    """Returns the record to make, None while a taker is not done or wants to keep what there is."""
    if policy.retention == "all" or any(record.policy == policy.retention for record in retired):
        return None
    made: list[Done] = []
    for taker in takers:
        done = snapshot.evidence(taker.digest).done
        if done is None:
            return None
        made.append(done)
    files = remaining_files(removable_files(product, made, policy.retention), retired)
    if not files:
        return None
    names = ", ".join(dict.fromkeys(taker.name for taker in takers))
    return Retired(
        nonce=new_nonce(),
        generation=product.generation,
        attempt=product.attempt,
        policy=policy.retention,
        files=files,
        why=f"all that takes it is done ({names}) and needs these files no more",
        by=by,
        at=provenance.now(),
    )


def _delete(ledger: Ledger, source: StageInstance, retired: Retired, *, keep_checkpoints: bool) -> None:
    """Deletes what a record names, in its order: when the last file is gone, so are the others."""
    if not retired.files:
        return
    output = layout.output(source.stage, source.digest, retired.attempt)
    folder, _, name = f"{output}/{retired.files[-1].path}".rpartition("/")
    if name not in ledger.objects.list(folder).files:
        return
    if not keep_checkpoints:
        drop_work(ledger, source, ledger.attempts(source), generation=retired.generation)
    for file in retired.files:
        ledger.objects.delete(f"{output}/{file.path}")


def drop_work(ledger: Ledger, node: StageInstance, attempts: Iterable[Attempt], *, generation: int) -> None:
    """Deletes what attempts of a finished stage left that is no product: checkpoints, scratch, work, half
    outputs.

    These may be hard links to the product's files: while they stay, deleting those would free nothing.

    Args:
        ledger: the store.
        node: the stage, which is done.
        attempts: of the stage; those that make a later generation are left alone.
        generation: of its product.
    """
    named = set()
    for earlier in range(1, generation + 1):
        done, problem = ledger.product(node, earlier)
        if problem:
            return  # unreadable: any output may be what it names
        named.update([done.attempt] if done else [])
    for attempt in attempts:
        if attempt.claim is None or attempt.claim.generation > generation:
            continue
        key = layout.payload(node.stage, node.digest, attempt.number)
        output = () if attempt.number in named else (layout.OUTPUT,)
        for name in (layout.CHECKPOINTS, layout.SCRATCH, layout.WORK, *output):
            ledger.objects.delete(f"{key}/{name}")
