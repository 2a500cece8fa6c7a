"""Finding the checkpoint to go on from, and adopting it into one's own attempt (rule 6)."""

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
from orchestrator.stage import MANIFEST, Checkpoint, CheckpointManifest
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger

UNREAD = "UnreadResults"
"""What is recorded as the exception of a stage that was through, but whose rows cannot be taken."""

_NOT_ITS_FAULT = frozenset({Cause.PREEMPTED, Cause.NODE_LOST, Cause.COMMUNICATION, Cause.STORAGE})


class Candidate(NamedTuple):
    """A checkpoint whose manifest is there; ordered by step, then attempt."""

    step: int
    attempt: int
    prefix: str
    manifest: bytes


def candidates(ledger: Ledger, node: StageInstance, attempts: Sequence[Attempt]) -> list[Candidate]:
    """Lists the checkpoints that an attempt may go on from, best first.

    One from which two attempts failed without reaching a newer one is left out, after ``nan`` already one:
    what it holds is the likely reason. Attempts that were lost or preempted do not count against it. None is
    taken from an attempt whose product or input was discarded: a bug's state must not come back.
    """
    sound = [attempt for attempt in attempts if not is_discarded(ledger, node, attempt)]
    found = _of_attempts(ledger, node, sound)
    # what an attempt went on from is its own newest, until it saves one
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
    """Returns whether what an attempt left must not be used: its product or an input of it was discarded."""
    if attempt.claim is None or (node.inputs and attempt.start is None):
        return True  # unreadable, or not yet written when we looked: nothing says what it worked on
    taken = attempt.start.inputs if attempt.start else {}
    return ledger.is_discarded(node, attempt.claim.generation) or any(
        ledger.is_discarded(source, taken[source.digest]) for source in node.inputs if source.digest in taken
    )


def _of_attempts(ledger: Ledger, node: StageInstance, attempts: Sequence[Attempt]) -> list[Candidate]:
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
    """Returns whether a checkpoint has all the files that its manifest names, judged by their sizes."""
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
    """Brings the newest checkpoint that verifies into the attempt's folder.

    The files are fetched if need be, then linked or copied, and verified there, so that an owner that rotates
    meanwhile can only make us choose again.

    Args:
        ledger: the store.
        node: the stage.
        attempts: all earlier attempts.
        folder: this attempt's own payload folder.
        is_copied: the stage may write into the checkpoint that it goes on from, which must change no other.
        pulse: called before each file: large ones take longer than a lease.
        taking: called with the choice before anything of it lies in the folder.

    Returns:
        The checkpoint in its new place and where it came from, or None to start from nothing.

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
        # a store that does not answer is no reason to go on from an older one: its error is not caught
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
                fsync_tree(target)
                (target / MANIFEST).write_bytes(candidate.manifest)
                fsync_path(target / MANIFEST)
                fsync_tree(target)
                return Checkpoint(candidate.step, target), parent
        except OSError:
            pass  # it went away or was torn: choose again
        shutil.rmtree(target, ignore_errors=True)
    return None


def link(source: Path, target: Path) -> None:
    """Links a file that nobody writes any more, or copies it where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
