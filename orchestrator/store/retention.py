"""Retention (rule 7): record durably which files nobody needs any more, then delete them.

Only payload of finished stages is deleted. Which files go is decided by the stages that took a product: each
of them recorded what it keeps. The record comes first, so that an absent file is never mistaken for damage.
Every step is idempotent, so any process can finish a deletion that another one began::

    1. product of `train`: model.safetensors, optimizer.safetensors
    2. `evaluate` is done, and keeps model.safetensors under policy "best"
    3. write retired/train/best/<digest>.1.json: optimizer.safetensors
    4. delete the file; after a crash here, a later process repeats this step
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from orchestrator import provenance
from orchestrator.core.evidence import Attempt, Evidence, Liveness, remaining_files, removable_files
from orchestrator.core.records import Done, Retired
from orchestrator.core.settings import RETIRING, Policy
from orchestrator.core.sweep import ComposedSweep, StageInstance
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger

_PAYLOAD = (layout.OUTPUT, layout.CHECKPOINTS, layout.SCRATCH, layout.WORK, layout.AUDIT)
"""Folders of an attempt that may be deleted. Its log and metrics stay."""


class Leftover(NamedTuple):
    """A stage with payload to delete, or with an attempt that may still be running.

    Attributes:
        instance: The stage instance.
        evidence: Its evidence in the store.
        num_files: Number of files that would be deleted.
        num_bytes: Their size in bytes.
    """

    instance: StageInstance
    evidence: Evidence
    num_files: int
    num_bytes: int

    @property
    def is_open(self) -> bool:
        """Whether an attempt of the stage may still be running."""
        attempts = self.evidence.attempts
        is_ended = self.evidence.done is not None or not attempts or attempts[-1].end is not None
        return not is_ended and self.evidence.liveness is not Liveness.GONE


class UnusedCode(NamedTuple):
    """A code snapshot that nothing in use names, or the remains of one whose launch died.

    Attributes:
        digest: Digest of the snapshot.
        num_files: Number of its files.
        num_bytes: Their size in bytes.
    """

    digest: str
    num_files: int
    num_bytes: int


def unused_code(ledger: Ledger, used: Collection[str]) -> list[UnusedCode]:
    """Return the code snapshots in a store, except those with the given digests."""
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
    """Delete code snapshots, each record first.

    Without the record, a snapshot does not count. A launch that needs the same code meanwhile then stores it
    again, instead of relying on files that are about to be deleted.
    """
    for code in found:
        for key in (layout.code_record(code.digest), *_places(code.digest)):
            ledger.objects.delete(key)


def _places(digest: str) -> tuple[str, str]:
    return layout.code(digest), layout.code_archive(digest)


def leftovers(ledger: Ledger, instances: Sequence[StageInstance]) -> list[Leftover]:
    """Return those of the given stages that have payload to delete or may still be running."""
    prefixes = {instance.digest: f"payload/{instance.stage}/{instance.digest}" for instance in instances}
    trees = ledger.objects.trees(prefixes.values())
    found = []
    reader = EvidenceReader(ledger, instances, check_files=False)
    for instance in instances:
        sizes = [
            size
            for path, size in trees.get(prefixes[instance.digest], {}).items()
            if len(parts := path.split("/")) > 2 and parts[1] in _PAYLOAD
        ]
        evidence = reader.evidence(instance.digest)
        left = Leftover(instance, evidence, len(sizes), sum(sizes))
        # A running attempt is returned even without files, so that the caller can refuse.
        if sizes or left.is_open:
            found.append(left)
    return found


def delete(ledger: Ledger, found: Iterable[Leftover], *, by: str) -> None:
    """Delete the payload of stages. None of them may have a running attempt.

    Args:
        ledger: The store.
        found: Result of `leftovers`.
        by: User who requested it, for the record.
    """
    for instance, evidence, _, _ in found:
        kept: set[int] = set()
        if evidence.done is not None and not _retired(ledger, instance, evidence.done, evidence.retired, by):
            kept.add(evidence.done.attempt)
        for number in ledger.numbers(instance):
            # A product that could not be retired keeps its output, and loses only the rest.
            for name in _PAYLOAD if number not in kept else _PAYLOAD[1:]:
                ledger.objects.delete(f"{layout.payload(instance, number)}/{name}")


def _retired(
    ledger: Ledger, instance: StageInstance, done: Done, before: tuple[Retired, ...], by: str
) -> bool:
    """Record that all files of a product are absent on purpose.

    A record exists once per policy and is never changed. If the first policy's record is taken, the next one
    is used.

    Returns:
        Whether the files may be deleted; False when every policy has a record that does not cover them.
    """
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
        if ledger.retire(instance, record):
            return True
    return False


def retain(
    ledger: Ledger,
    sweep: ComposedSweep,
    policy: Policy,
    *,
    by: str,
    sources: Collection[str] | None = None,
    trusted: set[tuple[str, int]] | None = None,
) -> list[Retired]:
    """Retire files of products whose consumers in the sweep are all done, as the policy allows.

    Deletions that were recorded earlier and not finished are finished, whatever the policy is now.

    Args:
        ledger: The store.
        sweep: Sweep whose stages may still need a product. Another sweep that takes the product sees the
            `retired` record.
        policy: Which files to keep.
        by: User or worker on whose behalf this runs, for the record.
        sources: Digests of the products to consider; None for all that another stage takes.
        trusted: (digest, generation) of products whose files were compared before.

    Returns:
        The records that this call was the first to write.
    """
    consumers: dict[str, list[StageInstance]] = {}
    for instance in sweep.stages.values():
        for taken in instance.inputs:
            consumers.setdefault(taken.digest, []).append(instance)
    reader = EvidenceReader(ledger, sweep.stages.values(), count_attempts=False, trusted=trusted)
    news = []
    # Products that no stage takes are results, and are always kept.
    for digest in consumers if sources is None else sources:
        source, evidence = sweep.stages[digest], reader.evidence(digest)
        if evidence.done is None:
            continue
        retired = evidence.retired
        decided = _decide(reader, source, evidence.done, consumers[digest], policy, retired=retired, by=by)
        if decided is not None:
            # Another process may win this record; its list of files then applies.
            if ledger.retire(source, decided):
                news.append(decided)
            retired = ledger.retired(source, evidence.generation)  # the record that exists, whoever wrote it
        for record in retired:
            _delete(ledger, source, record, keep_checkpoints=policy.keep_checkpoints)
    return news


def _decide(
    reader: EvidenceReader,
    source: StageInstance,
    product: Done,
    consumers: list[StageInstance],
    policy: Policy,
    *,
    retired: tuple[Retired, ...],
    by: str,
) -> Retired | None:
    """Return the record to write; None while a consumer is not done, or nothing may be deleted."""
    if policy.retention == "all" or any(record.policy == policy.retention for record in retired):
        return None
    made: list[Done] = []
    for consumer in consumers:
        done = reader.evidence(consumer.digest).done
        if done is None:
            return None
        made.append(done)
    files = remaining_files(removable_files(product, made, policy.retention), retired)
    if not files:
        return None
    names = ", ".join(dict.fromkeys(consumer.name for consumer in consumers))
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
    """Delete the files that a record names, in its order; the last one marks the deletion as unfinished."""
    if not retired.files:
        return
    output = layout.output(source, retired.attempt)
    # The last file is deleted last. Once it is absent, the deletion was completed, and one listing shows it.
    folder, _, name = f"{output}/{retired.files[-1].path}".rpartition("/")
    if name not in ledger.objects.list(folder).files:
        return
    if not keep_checkpoints:
        drop_work(ledger, source, ledger.attempts(source), generation=retired.generation)
    for file in retired.files:
        ledger.objects.delete(f"{output}/{file.path}")


def drop_work(
    ledger: Ledger, instance: StageInstance, attempts: Iterable[Attempt], *, generation: int
) -> None:
    """Delete what attempts of a finished stage left besides the product.

    These are checkpoints, scratch and work folders, and partial outputs. They may be hard links to the
    product's files. While they exist, deleting the product's files frees no space.

    Args:
        ledger: The store.
        instance: The stage instance, which is done.
        attempts: Its attempts. Those that make a later generation are left alone.
        generation: Generation of its product.
    """
    named = set()
    for earlier in range(1, generation + 1):
        done, problem = ledger.product(instance, earlier)
        if problem:
            return  # with an unreadable record, any output may belong to a product
        named.update([done.attempt] if done else [])
    for attempt in attempts:
        # A later generation is being made by an attempt that may still run.
        if attempt.claim is None or attempt.claim.generation > generation:
            continue
        key = layout.payload(instance, attempt.number)
        output = () if attempt.number in named else (layout.OUTPUT,)
        for name in (layout.CHECKPOINTS, layout.SCRATCH, layout.WORK, *output):
            ledger.objects.delete(f"{key}/{name}")
