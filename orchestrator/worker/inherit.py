"""What an attempt takes over from earlier ones: the output of a command that was through, a checkpoint, the
work; and what an earlier version of the stage made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.records import Parent
from orchestrator.core.state import Attempt, Former
from orchestrator.core.sweep import Node
from orchestrator.stage import MANIFEST, Checkpoint, StageSpec
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger
from orchestrator.worker.former import adopt_former
from orchestrator.worker.resume import adopt, candidates, is_discarded, is_whole
from orchestrator.worker.unread import adopt_unread, find_unread
from orchestrator.worker.work import take_over, work_of


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
    node: Node,
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


def foresee(ledger: Ledger, node: Node, spec: StageSpec, earlier: Sequence[Attempt]) -> str:
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
