"""What an attempt starts from: its inputs, what it takes over from earlier ones, and the start record.

The record is written before anything is taken over, and again before each takeover. Whenever the attempt
dies, its successor can read where the contents of the folder came from::

    start {}  ->  start {work: 2}  ->  rename attempt 2's work folder  ->  start {work: 2, parent: 1}  -> ...
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from orchestrator import provenance
from orchestrator.core.evidence import Attempt, Evidence, Former, remaining_files
from orchestrator.core.gates import Gates
from orchestrator.core.records import Parent, Void
from orchestrator.core.settings import Policy
from orchestrator.core.sweep import ComposedSweep, StageInstance
from orchestrator.execution.checkpoints import candidates, find_unread, is_discarded
from orchestrator.execution.history import Remedies
from orchestrator.execution.liveness import Watcher
from orchestrator.execution.work import take_over
from orchestrator.manifest import File, copy_file, damage, fsync_path, fsync_tree
from orchestrator.saving import MANIFEST
from orchestrator.stage import Checkpoint, StageSpec
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.evidence import EvidenceReader, examine
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import Keepalive, idle
from orchestrator.store.retention import retain

FOLDER = "former"
"""Subfolder of the attempt's scratch folder."""


def adopt_former(ledger: Ledger, former: Former | None, folder: Path, *, keepalive: Keepalive) -> Path | None:
    """Link the product of an earlier version into an attempt's folder; return None if it is damaged.

    Args:
        ledger: the store.
        former: the product; None for none.
        folder: the attempt's own payload folder.
        keepalive: called before each file, to keep the lease.

    Raises:
        OSError: the store did not answer.
    """
    if former is None or former.done is None:
        return None
    files = former.done.files
    prefix = layout.output(former.instance, former.done.attempt)
    source = ledger.objects.fetch(prefix, files, keepalive=keepalive)
    target = folder / layout.SCRATCH / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    return target if _bring(files, source, target, keepalive) else None


def adopt_unread(
    ledger: Ledger,
    instance: StageInstance,
    attempts: Sequence[Attempt],
    folder: Path,
    *,
    keepalive: Keepalive = idle,
    taking: Callable[[int], object] = lambda number: None,
) -> int | None:
    """Link the output of an earlier attempt with a finished command, but unread results, into this folder.

    Args:
        ledger: the store.
        instance: the stage instance.
        attempts: all earlier attempts.
        folder: this attempt's own payload folder.
        keepalive: called before each file, to keep the lease.
        taking: called with the number of the attempt before any of its files lies in the folder.

    Returns:
        The number of that attempt. None if there is none, if a later attempt tried to read its output in
            vain, or if the output is incomplete.
    """
    sound = [attempt for attempt in attempts if not is_discarded(ledger, instance, attempt)]
    found = find_unread(ledger, instance, sound)
    if found is None:
        return None
    attempt, outcome = found
    key, target = layout.payload(instance, attempt.number), folder / layout.OUTPUT
    source = ledger.objects.fetch(f"{key}/{layout.OUTPUT}", outcome.files, keepalive=keepalive)
    taking(attempt.number)
    if not _bring(outcome.files, source, target, keepalive):
        return None
    printed = folder / layout.SCRATCH / layout.LOG  # its results may be in what it printed
    printed.parent.mkdir(parents=True, exist_ok=True)
    printed.write_bytes(ledger.objects.get(f"{key}/{layout.LOG}") or b"")
    return attempt.number


def adopt_checkpoint(
    ledger: Ledger,
    instance: StageInstance,
    attempts: Sequence[Attempt],
    folder: Path,
    *,
    is_copied: bool = False,
    keepalive: Keepalive = idle,
    taking: Callable[[Parent], object] = lambda parent: None,
) -> tuple[Checkpoint, Parent] | None:
    """Bring the newest checkpoint that verifies into the attempt's folder.

    Its owner may still live and rotate it away at any time. So the files are fetched if necessary, linked or
    copied, and verified in the new place. If one is missing there, the next candidate is tried.

    Args:
        ledger: the store.
        instance: the stage instance.
        attempts: all earlier attempts.
        folder: this attempt's own payload folder.
        is_copied: whether to copy instead of link, because the stage may write into its checkpoint and must
            not change the original.
        keepalive: called before each file, since large ones take longer than a lease.
        taking: called with the choice before any of its files lies in the folder.

    Returns:
        The checkpoint in its new place and its origin, or None to start from nothing.

    Raises:
        OSError: the store did not answer.
    """
    for candidate in candidates(ledger, instance, attempts):
        target = folder / layout.CHECKPOINTS / candidate.prefix.rpartition("/")[2]
        manifest = candidate.decoded()
        if manifest is None:
            continue
        # An outage is no reason to resume from an older checkpoint, so its error is not caught.
        source = ledger.objects.fetch(candidate.prefix, manifest.files, keepalive=keepalive)
        parent = Parent(attempt=candidate.attempt, step=candidate.step)
        taking(parent)
        if _bring(manifest.files, source, target, keepalive, is_copied=is_copied):
            # The files must be on disk before the manifest that declares them complete.
            fsync_tree(target)
            (target / MANIFEST).write_bytes(candidate.manifest)
            fsync_path(target / MANIFEST)
            fsync_tree(target)
            return Checkpoint(candidate.step, target), parent
    return None


def _bring(
    files: Iterable[File], source: Path, target: Path, keepalive: Keepalive, *, is_copied: bool = False
) -> bool:
    """Link or copy files, and verify each; return whether all are whole. Otherwise remove the target."""
    try:
        for file in files:
            keepalive()
            (target / file.path).parent.mkdir(parents=True, exist_ok=True)
            if is_copied:
                copy_file(source / file.path, target / file.path, keepalive)
            else:
                _link(source / file.path, target / file.path)
            if damage(target, [file]) is not None:
                break
        else:
            return True
    except OSError:
        pass  # a file was deleted or changed meanwhile
    shutil.rmtree(target, ignore_errors=True)
    return False


def _link(source: Path, target: Path) -> None:
    """Hard-link a file that is never written again, or copy it if the file system has no links."""
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


class Inherited(NamedTuple):
    """What an attempt starts with.

    Attributes:
        checkpoint, parent: the checkpoint to resume from and its origin; None for a start from nothing.
        unread: the attempt whose output only needs to be read; None to run the stage.
        work: the attempt whose work folder was taken over; None for an empty one.
        former: the product of an earlier version of the stage; None without one.
    """

    checkpoint: Checkpoint | None = None
    parent: Parent | None = None
    unread: int | None = None
    work: int | None = None
    former: Path | None = None


def inherit(
    ledger: Ledger,
    instance: StageInstance,
    spec: StageSpec,
    earlier: Sequence[Attempt],
    folder: Path,
    *,
    former: Former | None,
    keepalive: Keepalive,
    record: Callable[[Inherited], object],
) -> Inherited:
    """Bring what earlier attempts left into an attempt's own folder.

    Args:
        ledger: the store.
        instance: the stage instance.
        spec: its stage in the sweep.
        earlier: all earlier attempts.
        folder: the attempt's own payload folder.
        former: the product of an earlier version of the stage; None for none.
        keepalive: called often meanwhile, to keep the lease.
        record: called before each takeover with what is about to be taken, so that a crash leaves it
            recorded.

    Raises:
        OSError: the store did not answer, or an earlier owner still writes into its work folder.
    """
    kept = adopt_former(ledger, former, folder, keepalive=keepalive)
    # Our own stages never write into an adopted checkpoint, so links are safe for them.
    is_copied = not (spec.run is not None and spec.run.startswith("orchestrator."))
    before = instance.before
    if not earlier:
        found = _of_part(ledger, before, folder, is_copied, keepalive, record, None) if before else None
        return Inherited(*found, former=kept) if found else Inherited(former=kept)
    # A work folder has moved once it is taken, so all later records must name it too.
    work = take_over(
        ledger, instance, earlier, folder, keepalive=keepalive, taking=lambda one: record(Inherited(work=one))
    )
    if spec.command is not None:
        unread = adopt_unread(
            *(ledger, instance, earlier, folder),
            keepalive=keepalive,
            taking=lambda number: record(Inherited(unread=number, work=work)),
        )
        if unread is not None:
            return Inherited(unread=unread, work=work)
    found = adopt_checkpoint(
        *(ledger, instance, earlier, folder),
        is_copied=is_copied,
        keepalive=keepalive,
        taking=lambda parent: record(Inherited(parent=parent, work=work)),
    )
    if found is None and before is not None:
        found = _of_part(ledger, before, folder, is_copied, keepalive, record, work)
    checkpoint, parent = found or (None, None)
    return Inherited(checkpoint, parent, None, work, kept)


def _of_part(
    ledger: Ledger,
    before: StageInstance,
    folder: Path,
    is_copied: bool,
    keepalive: Keepalive,
    record: Callable[[Inherited], object],
    work: int | None,
) -> tuple[Checkpoint, Parent] | None:
    """Bring the newest checkpoint of the part before into an attempt's folder; it is of attempt 0 there."""
    found = adopt_checkpoint(
        *(ledger, before, ledger.attempts(before), folder),
        is_copied=is_copied,
        keepalive=keepalive,
        taking=lambda parent: record(Inherited(parent=replace(parent, attempt=0), work=work)),
    )
    return found and (found[0], replace(found[1], attempt=0))


def has_progressed(folder: Path, *, num_adopted: int) -> bool:
    """Return whether an attempt left something to resume from that it did not adopt itself."""
    checkpoints = list(folder.glob(f"{layout.CHECKPOINTS}/*/{MANIFEST}"))
    return len(checkpoints) > num_adopted or any((folder / layout.WORK).glob("*"))


RECHECK_S = 0.1
"""Least seconds between the two checks of a product before it is voided."""


class Products:
    """The products of a sweep in one worker: those that it has verified, and those that do not count.

    Args:
        ledger: the store.
        sweep: the sealed sweep, with its gates among its stages.
        gates: of the launch.
        by: name of the worker in the records of what it voids and retires.
        log: writes a line to the worker's log.

    Attributes:
        sweep: as given.
        remedies: with which attempts start.
    """

    def __init__(
        self, ledger: Ledger, sweep: ComposedSweep, gates: Gates, *, by: str, log: Callable[[str], None]
    ) -> None:
        self.sweep = sweep
        self._ledger = ledger
        self._by = by
        self._log = log
        self.remedies = Remedies(ledger, sweep, gates)
        self._trusted: set[tuple[str, int]] = set()
        self._verified: set[tuple[str, int]] = set()

    def reader(self, observer: Watcher) -> EvidenceReader:
        """Return a reader of new evidence, which reads it lazily."""
        return EvidenceReader(
            self._ledger,
            self.sweep.stages.values(),
            observer=observer,
            count_attempts=False,
            trusted=self._trusted,
            specs=self.sweep.specs,
        )

    def retain(self, policy: Policy, *, after: str = "", sources: Collection[str] | None = None) -> None:
        """Retire files that no stage needs any more.

        Args:
            policy: which files to keep.
            after: the cell and stage just done, for the record.
            sources: digests of the products to check; None for all.

        Raises:
            OSError: the store did not answer.
        """
        by = f"{self._by}, after {after}" if after else self._by
        for retired in retain(
            self._ledger, self.sweep, policy, by=by, sources=sources, trusted=self._trusted
        ):
            self._log(f"retired {len(retired.files)} files under policy {retired.policy}: {retired.why}")

    def folders(self, instance: StageInstance, reader: EvidenceReader) -> dict[str, dict[str, str]] | None:
        """Return the verified folders of a stage's inputs; None if one does not count.

        Contents are verified the first time only, later sizes alone. A damaged product is voided.
        """
        folders: dict[str, dict[str, str]] = {}
        for taken in instance.inputs:
            source, evidence = self.sweep.stages[taken.digest], reader.evidence(taken.digest)
            if evidence.done is None:
                return None
            prefix = layout.output(source, evidence.done.attempt)
            folder = self._ledger.objects.fetch(prefix, ())  # keeps a cached copy from being evicted
            key = (taken.digest, evidence.generation)
            if damage(folder, remaining_files(evidence.done.files, evidence.retired), content=False):
                self._verified.discard(key)
            if examine(self._ledger, source, evidence.done, content=key not in self._verified)[0]:
                self.void_damaged(source, evidence)
                return None
            self._verified.add(key)
            folders.setdefault(taken.stage, {})[taken.label] = str(folder)
        return folders

    def unpin(self, instance: StageInstance, reader: EvidenceReader) -> None:
        """Allow the cache to evict the copies of a stage's inputs."""
        for source in (self.sweep.stages[taken.digest] for taken in instance.inputs):
            done = reader.evidence(source.digest).done
            if done is not None:
                prefix = layout.payload(source, done.attempt)
                self._ledger.objects.release(prefix)

    def void_damaged(self, instance: StageInstance, evidence: Evidence) -> None:
        """Void a product that a second check finds damaged, or that was made from a discarded one."""
        # Voiding is permanent. A network file system may show that a file is gone, and for a minute not yet
        # the record that says so.
        time.sleep(max(RECHECK_S, self._ledger.objects.unseen_s))
        done, problem = self._ledger.product(instance, evidence.generation)
        discarded = "" if done is None else self._ledger.discarded_input(instance, done)
        if done is not None:
            problem = discarded or examine(self._ledger, instance, done)[0]
            if not problem:
                return
        self._trusted.discard((instance.digest, evidence.generation))
        self._log(f"{instance.name} {instance.digest[:8]}: product does not count: {problem}")
        void = Void(
            nonce=new_nonce(),
            generation=evidence.generation,
            kind="discarded" if discarded else "damaged",
            reason=problem or "its done record is unreadable",
            by=self._by,
            at=provenance.now(),
        )
        self._ledger.void(instance, void)
