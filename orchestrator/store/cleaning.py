"""Deletes the payload of stages that no revision in use names, and the code that no launch of one names.

Records stay, so no number is used again.

A product's files are first recorded as retired, as retention does (rule 7): whoever looks at the old revision
finds them absent by decision, and `sweep discard` has them made again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from orchestrator import provenance
from orchestrator.core.records import Done, Retired
from orchestrator.core.retention import without
from orchestrator.core.settings import RETIRING
from orchestrator.core.state import Evidence, Liveness
from orchestrator.core.sweep import Node
from orchestrator.store import layout
from orchestrator.store.evidence import Snapshot
from orchestrator.store.ledger import Ledger, new_nonce

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

    node: Node
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


def leftovers(ledger: Ledger, nodes: Sequence[Node]) -> list[Leftover]:
    """Return the stages, of some, that have payload to delete."""
    prefixes = {node.digest: f"payload/{node.stage}/{node.digest}" for node in nodes}
    trees = ledger.objects.trees(prefixes.values())
    found = []
    snapshot = Snapshot(ledger, nodes, check_files=False)
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


def _retired(ledger: Ledger, node: Node, done: Done, before: tuple[Retired, ...], by: str) -> bool:
    """Record that all files of a product are absent by decision; False when no record is left for it."""
    files = without(done.files, before)
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
