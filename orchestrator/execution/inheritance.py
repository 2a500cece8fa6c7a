"""The record of what an attempt starts from: before anything is taken over, and before each thing is.

It is written before each, so that whoever comes next knows where what it finds came from, whenever its
predecessor died.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from orchestrator import formats, provenance
from orchestrator.core.cell import uses_of
from orchestrator.core.records import Parent, StartRecord
from orchestrator.core.state import Attempt, Former
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.execution.assignment import Assignment, ChildOutcome, git_of
from orchestrator.execution.command import command_facts
from orchestrator.execution.resume import adopt, candidates, is_discarded, is_whole, link
from orchestrator.execution.work import take_over, work_of
from orchestrator.manifest import damage
from orchestrator.stage import MANIFEST, Checkpoint, StageSpec
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger

FOLDER = "former"
"""Beneath the attempt's scratch folder."""


def adopt_former(
    ledger: Ledger, former: Former | None, folder: Path, *, pulse: Callable[[], object]
) -> Path | None:
    """Bring the product of an earlier version into an attempt's folder; None where it is not whole.

    Args:
        ledger: the store.
        former: the product; None for none.
        folder: the attempt's own payload folder.
        pulse: called before each file.

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
        return None  # it went away
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
    """Brings the output of an earlier attempt whose command was through into this attempt's folder.

    Args:
        ledger: the store.
        node: the stage.
        attempts: all earlier attempts.
        folder: this attempt's own payload folder.
        pulse: called before each file.
        taking: called with the number of the attempt before anything of it lies in the folder.

    Returns:
        The number of that attempt; None when there is none, when its output was read again since and in vain,
        or is no longer whole.
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
        pass  # it went away: seen below
    if damage(target, outcome.files) is None:
        return attempt.number
    shutil.rmtree(target, ignore_errors=True)
    return None


def find_unread(
    ledger: Ledger, node: StageInstance, attempts: Sequence[Attempt]
) -> tuple[Attempt, ChildOutcome] | None:
    """Finds the attempt whose output the next one should read, and what it left.

    Args:
        ledger: the store.
        node: the stage.
        attempts: the earlier ones, without those that must not be used.
    """
    for attempt in reversed(attempts):
        outcome = _outcome(ledger, layout.payload(node.stage, node.digest, attempt.number))
        if outcome is not None:  # else it read again what an earlier one left, or ran and failed
            return (attempt, outcome) if outcome.unread == attempt.number else None
    return None


def _outcome(ledger: Ledger, key: str) -> ChildOutcome | None:
    data = ledger.objects.get(f"{key}/{layout.OUTCOME}")
    try:
        outcome = None if data is None else formats.decode(data, ChildOutcome)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return outcome if outcome is not None and outcome.outcome == "failed" else None


class Inherited(NamedTuple):
    """What an attempt starts with.

    Attributes:
        checkpoint: to go on from, and `parent`, where it came from; None for a start from nothing.
        unread: the attempt whose output only needs to be read; None to run the stage.
        work: the attempt whose work folder it was; None for an empty one.
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
    """Brings what earlier attempts left into an attempt's own folder.

    Args:
        ledger: the store.
        node: the stage.
        spec: of the stage.
        earlier: all earlier attempts.
        folder: the attempt's own payload folder.
        former: the product of an earlier version of the stage; None for none.
        pulse: called often meanwhile.
        record: called with what is about to be taken, before it is: who dies of it is still known to have it.

    Raises:
        OSError: the store did not answer, or a former owner still writes into its work folder.
    """
    kept = adopt_former(ledger, former, folder, pulse=pulse)
    if not earlier:
        return Inherited(former=kept)
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
    is_ours = spec.run is not None and spec.run.startswith("orchestrator.")  # writes into none of them
    found = adopt(
        *(ledger, node, earlier, folder),
        is_copied=not is_ours,
        pulse=pulse,
        taking=lambda parent: record(Inherited(parent=parent, work=work)),
    )
    checkpoint, parent = found or (None, None)
    return Inherited(checkpoint, parent, None, work, kept)


def foresee(ledger: Ledger, node: StageInstance, spec: StageSpec, earlier: Sequence[Attempt]) -> str:
    """Returns what the next attempt would go on from, in words; "" for a start from nothing. Changes nothing.

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
    with_work = [a.number for a in sound if work_of(ledger, node, a).is_dir()] if sound else []
    if with_work and ledger.objects.in_place:
        parts.append(f"the work folder of attempt {with_work[-1]}")
    return f"goes on from {' and '.join(parts)}" if parts else ""


def has_progressed(folder: Path, *, num_adopted: int) -> bool:
    """Returns whether an attempt left something to go on from that it did not adopt itself."""
    checkpoints = list(folder.glob(f"{layout.CHECKPOINTS}/*/{MANIFEST}"))
    return len(checkpoints) > num_adopted or any((folder / layout.WORK).glob("*"))


def started(order: Assignment, spec: StageSpec, cell: Cell, generations: Mapping[str, int]) -> StartRecord:
    """Return the record of a start from nothing.

    Args:
        order: the worker's.
        spec: of the stage.
        cell: on whose behalf.
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
    """Return the record of a start with what is taken over."""
    return replace(start, parent=taken.parent, work=taken.work, unread=taken.unread)
