"""What an attempt takes over from earlier ones, and the start record that describes it.

The record is written before anything is taken over, and again before each takeover. Whenever the attempt
dies, its successor can read where the contents of the folder came from::

    start {}  ->  start {work: 2}  ->  rename attempt 2's work folder  ->  start {work: 2, parent: 1}  -> ...
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from orchestrator import formats, provenance
from orchestrator.core.identity import uses_of
from orchestrator.core.records import Parent, StartRecord
from orchestrator.core.state import Attempt, Former
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.execution.assignment import Assignment, ChildOutcome, git_of
from orchestrator.execution.checkpoints import adopt, candidates, is_discarded, is_whole, link
from orchestrator.execution.command_text import command_facts
from orchestrator.execution.work import take_over, work_of
from orchestrator.manifest import damage
from orchestrator.stage import MANIFEST, Checkpoint, StageSpec
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger

FOLDER = "former"
"""Subfolder of the attempt's scratch folder."""


def adopt_former(
    ledger: Ledger, former: Former | None, folder: Path, *, pulse: Callable[[], object]
) -> Path | None:
    """Link the product of an earlier version into an attempt's folder; return None if it is damaged.

    Args:
        ledger: the store.
        former: the product; None for none.
        folder: the attempt's own payload folder.
        pulse: called before each file, to keep the lease.

    Raises:
        OSError: the store did not answer.
    """
    if former is None or former.done is None:
        return None
    files = former.done.files
    prefix = layout.output(former.node.stage, former.node.digest, former.done.attempt)
    source = ledger.objects.fetch(prefix, files, pulse=pulse)
    target = folder / layout.SCRATCH / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        for file in files:
            pulse()
            link(source / file.path, target / file.path)
    except OSError:
        return None  # it was deleted meanwhile: the stage runs without it
    return target if damage(target, files) is None else None


def adopt_unread(
    ledger: Ledger,
    node: StageInstance,
    attempts: Sequence[Attempt],
    folder: Path,
    *,
    pulse: Callable[[], object] = lambda: None,
    taking: Callable[[int], object] = lambda number: None,
) -> int | None:
    """Link the output of an earlier attempt with a finished command, but unread results, into this folder.

    Args:
        ledger: the store.
        node: the stage instance.
        attempts: all earlier attempts.
        folder: this attempt's own payload folder.
        pulse: called before each file, to keep the lease.
        taking: called with the number of the attempt before any of its files lies in the folder.

    Returns:
        The number of that attempt. None if there is none, if a later attempt tried to read its output in
            vain, or if the output is incomplete.
    """
    sound = [attempt for attempt in attempts if not is_discarded(ledger, node, attempt)]
    found = find_unread(ledger, node, sound)
    if found is None:
        return None
    attempt, outcome = found
    key, target = layout.payload(node.stage, node.digest, attempt.number), folder / layout.OUTPUT
    source = ledger.objects.fetch(f"{key}/{layout.OUTPUT}", outcome.files, pulse=pulse)
    taking(attempt.number)
    try:
        for file in outcome.files:
            pulse()
            link(source / file.path, target / file.path)
    except OSError:
        pass  # a file was deleted meanwhile: the check below finds it missing
    if damage(target, outcome.files) is None:
        return attempt.number
    shutil.rmtree(target, ignore_errors=True)
    return None


def find_unread(
    ledger: Ledger, node: StageInstance, attempts: Sequence[Attempt]
) -> tuple[Attempt, ChildOutcome] | None:
    """Return the attempt whose output the next one should read, and its outcome.

    Such an output is read again once. If that attempt fails too, the command runs again::

        attempt 1: command finished, results unread     outcome.unread = 1
        attempt 2: reads the output of 1, in vain       outcome.unread = 1, not 2
        attempt 3: the newest failure is of 2, which made no output: run the command

    Args:
        ledger: the store.
        node: the stage instance.
        attempts: the earlier attempts, without those that must not be used.
    """
    for attempt in reversed(attempts):
        outcome = _outcome(ledger, layout.payload(node.stage, node.digest, attempt.number))
        # Only the newest recorded failure counts: its own output, or the end of the search.
        if outcome is not None:
            return (attempt, outcome) if outcome.unread == attempt.number else None
    return None


def _outcome(ledger: Ledger, key: str) -> ChildOutcome | None:
    """Return the recorded outcome of a failed attempt; None for any other."""
    data = ledger.objects.get(f"{key}/{layout.OUTCOME}")
    try:
        outcome = None if data is None else formats.decode(data, ChildOutcome)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return outcome if outcome is not None and outcome.outcome == "failed" else None


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
    node: StageInstance,
    spec: StageSpec,
    earlier: Sequence[Attempt],
    folder: Path,
    *,
    former: Former | None,
    pulse: Callable[[], object],
    record: Callable[[Inherited], object],
) -> Inherited:
    """Bring what earlier attempts left into an attempt's own folder.

    Args:
        ledger: the store.
        node: the stage instance.
        spec: its stage in the sweep.
        earlier: all earlier attempts.
        folder: the attempt's own payload folder.
        former: the product of an earlier version of the stage; None for none.
        pulse: called often meanwhile, to keep the lease.
        record: called before each takeover with what is about to be taken, so that a crash leaves it
            recorded.

    Raises:
        OSError: the store did not answer, or an earlier owner still writes into its work folder.
    """
    kept = adopt_former(ledger, former, folder, pulse=pulse)
    if not earlier:
        return Inherited(former=kept)
    # A work folder has moved once it is taken, so all later records must name it too.
    work = take_over(
        ledger, node, earlier, folder, pulse=pulse, taking=lambda number: record(Inherited(work=number))
    )
    if spec.command is not None:
        unread = adopt_unread(
            *(ledger, node, earlier, folder),
            pulse=pulse,
            taking=lambda number: record(Inherited(unread=number, work=work)),
        )
        if unread is not None:
            return Inherited(unread=unread, work=work)
    # Our own stages never write into an adopted checkpoint, so links are safe for them.
    is_ours = spec.run is not None and spec.run.startswith("orchestrator.")
    found = adopt(
        *(ledger, node, earlier, folder),
        is_copied=not is_ours,
        pulse=pulse,
        taking=lambda parent: record(Inherited(parent=parent, work=work)),
    )
    checkpoint, parent = found or (None, None)
    return Inherited(checkpoint, parent, None, work, kept)


def foresee(ledger: Ledger, node: StageInstance, spec: StageSpec, earlier: Sequence[Attempt]) -> str:
    """Return in words what the next attempt would resume from; "" for a start from nothing (read-only).

    The arguments are those of `inherit`.
    """
    sound = [attempt for attempt in earlier if not is_discarded(ledger, node, attempt)]
    if spec.command is not None and (found := find_unread(ledger, node, sound)) is not None:
        return f"reads the output of attempt {found[0].number} again"
    parts = []
    for candidate in candidates(ledger, node, earlier):
        if is_whole(ledger, candidate):
            parts.append(f"step {candidate.step} of attempt {candidate.attempt}")
            break
    # A bucket has no work folders; a folder found there is only in this node's cache.
    with_work = [a.number for a in sound if work_of(ledger, node, a).is_dir()] if sound else []
    if with_work and ledger.objects.in_place:
        parts.append(f"the work folder of attempt {with_work[-1]}")
    return f"goes on from {' and '.join(parts)}" if parts else ""


def has_progressed(folder: Path, *, num_adopted: int) -> bool:
    """Return whether an attempt left something to resume from that it did not adopt itself."""
    checkpoints = list(folder.glob(f"{layout.CHECKPOINTS}/*/{MANIFEST}"))
    return len(checkpoints) > num_adopted or any((folder / layout.WORK).glob("*"))


def started(order: Assignment, spec: StageSpec, cell: Cell, generations: Mapping[str, int]) -> StartRecord:
    """Return the record of a start from nothing.

    Args:
        order: the worker's assignment.
        spec: the stage.
        cell: on whose behalf the attempt runs.
        generations: digest of each input to the generation of its product.
    """
    facts = provenance.of_attempt(order.code_digest, git_of(order))
    return StartRecord(
        parent=None,
        uses=uses_of(spec, cell.config),
        provenance=facts | command_facts(spec, order.import_paths),
        inputs=dict(generations),
        at=provenance.now(),
    )


def going_on(start: StartRecord, taken: Inherited) -> StartRecord:
    """Return the start record, extended by what is taken over."""
    return replace(start, parent=taken.parent, work=taken.work, unread=taken.unread)
