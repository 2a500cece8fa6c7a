"""Choice of the checkpoint to resume from, and its adoption into the attempt's own folder.

This is rule 6 of the store protocol in docs/design.md.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchestrator import formats
from orchestrator.core.failure import Cause
from orchestrator.core.records import Parent
from orchestrator.core.state import Attempt
from orchestrator.core.sweep import StageInstance
from orchestrator.manifest import copy_file, damage, damage_by_size, fsync_path, fsync_tree, step_of
from orchestrator.saving import MANIFEST, CheckpointManifest
from orchestrator.stage import Checkpoint
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger

UNREAD = "UnreadResults"
"""Recorded exception of a stage that finished, but whose rows could not be read."""

# Failures with these causes can happen whatever a checkpoint holds.
_NOT_ITS_FAULT = frozenset({Cause.PREEMPTED, Cause.NODE_LOST, Cause.COMMUNICATION, Cause.STORAGE})


class Candidate(NamedTuple):
    """A checkpoint that has a manifest; ordered by step, then by attempt.

    Attributes:
        step: its step.
        attempt: the attempt that saved it.
        prefix: its key in the store.
        manifest: content of its manifest file.
    """

    step: int
    attempt: int
    prefix: str
    manifest: bytes


def candidates(ledger: Ledger, node: StageInstance, attempts: Sequence[Attempt]) -> list[Candidate]:
    """Return the checkpoints that an attempt may resume from, best first.

    A checkpoint may itself cause a failure, for example when its weights have diverged. Retries from it would
    then fail for ever. So it is skipped after two failures of attempts whose newest checkpoint it was; after
    a ``nan`` one failure is enough. Lost or preempted attempts do not count::

        attempt 1: saves 100, 200, fails with nan   blame {200: 2}
        attempt 2: resumes from 100 (200 is skipped)

    Nothing is taken from an attempt whose product or input was discarded, because the state may contain the
    bug that led to the discard.
    """
    sound = [attempt for attempt in attempts if not is_discarded(ledger, node, attempt)]
    found = _of_attempts(ledger, node, sound)
    # Until an attempt saves a checkpoint, its newest one is the checkpoint that it resumed from.
    newest = {a.number: a.start.parent.step for a in sound if a.start and a.start.parent}
    for candidate in found:
        newest[candidate.attempt] = max(candidate.step, newest.get(candidate.attempt, 0))
    blame: Counter[int] = Counter()
    for attempt in attempts:
        end = attempt.end
        is_through = end is not None and end.exception == UNREAD
        if end is None or end.outcome != "failed" or end.cause in _NOT_ITS_FAULT or is_through:
            continue
        if attempt.number in newest:
            blame[newest[attempt.number]] += 2 if end.cause is Cause.NAN else 1
    return sorted((c for c in found if blame[c.step] < 2), reverse=True)


def is_discarded(ledger: Ledger, node: StageInstance, attempt: Attempt) -> bool:
    """Return whether an attempt's files must not be used: its product or an input of it was discarded."""
    if attempt.claim is None or (node.inputs and attempt.start is None):
        return True  # a record is missing or unreadable, so its generation or inputs are unknown
    taken = attempt.start.inputs if attempt.start else {}
    return ledger.is_discarded(node, attempt.claim.generation) or any(
        ledger.is_discarded(source, taken[source.digest]) for source in node.inputs if source.digest in taken
    )


def _of_attempts(ledger: Ledger, node: StageInstance, attempts: Sequence[Attempt]) -> list[Candidate]:
    """Return all checkpoints with a manifest, in two requests for all attempts together."""
    numbers = {layout.checkpoints(node.stage, node.digest, a.number): a.number for a in attempts}
    steps = {
        f"{prefix}/{name}": (step, numbers[prefix])
        for prefix, listing in ledger.objects.list_many(numbers).items()
        for name in listing.folders
        if (step := step_of(name)) is not None
    }
    manifests = ledger.objects.get_many(f"{prefix}/{MANIFEST}" for prefix in steps)
    return [
        Candidate(*steps[prefix], prefix, data)
        for prefix in steps
        if (data := manifests[f"{prefix}/{MANIFEST}"]) is not None
    ]


def is_whole(ledger: Ledger, candidate: Candidate) -> bool:
    """Return whether a checkpoint has all files that its manifest names, by their sizes."""
    try:
        manifest = formats.decode(candidate.manifest, CheckpointManifest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    sizes = ledger.objects.trees([candidate.prefix])[candidate.prefix]
    return manifest.step == candidate.step and damage_by_size(sizes, manifest.files) is None


def adopt(
    ledger: Ledger,
    node: StageInstance,
    attempts: Sequence[Attempt],
    folder: Path,
    *,
    is_copied: bool = False,
    pulse: Callable[[], object] = lambda: None,
    taking: Callable[[Parent], object] = lambda parent: None,
) -> tuple[Checkpoint, Parent] | None:
    """Bring the newest checkpoint that verifies into the attempt's folder.

    Its owner may still live and rotate it away at any time. So the files are fetched if necessary, linked or
    copied, and verified in the new place. If one is missing there, the next candidate is tried.

    Args:
        ledger: the store.
        node: the stage instance.
        attempts: all earlier attempts.
        folder: this attempt's own payload folder.
        is_copied: whether to copy instead of link, because the stage may write into its checkpoint and must
            not change the original.
        pulse: called before each file, since large ones take longer than a lease.
        taking: called with the choice before any of its files lies in the folder.

    Returns:
        The checkpoint in its new place and its origin, or None to start from nothing.

    Raises:
        OSError: the store did not answer.
    """
    for candidate in candidates(ledger, node, attempts):
        target = folder / layout.CHECKPOINTS / candidate.prefix.rpartition("/")[2]
        try:
            manifest = formats.decode(candidate.manifest, CheckpointManifest)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if manifest.step != candidate.step:
            continue
        # An outage is no reason to resume from an older checkpoint, so its error is not caught.
        source = ledger.objects.fetch(candidate.prefix, manifest.files, pulse=pulse)
        parent = Parent(attempt=candidate.attempt, step=candidate.step)
        taking(parent)
        try:
            for file in manifest.files:
                pulse()
                if is_copied:
                    (target / file.path).parent.mkdir(parents=True, exist_ok=True)
                    copy_file(source / file.path, target / file.path, pulse)
                else:
                    link(source / file.path, target / file.path)
                if damage(target, [file]) is not None:
                    break
            else:
                # The files must be on disk before the manifest that declares them complete.
                fsync_tree(target)
                (target / MANIFEST).write_bytes(candidate.manifest)
                fsync_path(target / MANIFEST)
                fsync_tree(target)
                return Checkpoint(candidate.step, target), parent
        except OSError:
            pass  # it was deleted or changed meanwhile: try the next candidate
        shutil.rmtree(target, ignore_errors=True)
    return None


def link(source: Path, target: Path) -> None:
    """Hard-link a file that is never written again, or copy it if the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
