"""What an attempt takes over from earlier ones: the output of a command that was through, a checkpoint, the
work; and what an earlier version of the stage made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.records import Parent
from orchestrator.core.state import Attempt
from orchestrator.core.sweep import Node
from orchestrator.stage import Checkpoint, StageSpec
from orchestrator.store.ledger import Ledger
from orchestrator.worker.former import Basis, adopt_former
from orchestrator.worker.resume import adopt
from orchestrator.worker.unread import adopt_unread
from orchestrator.worker.work import take_over


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
    basis: Basis,
    pulse: Callable[[], object],
) -> Inherited:
    """Brings what earlier attempts left into an attempt's own folder.

    Args:
        ledger: the store.
        node: the stage.
        spec: of the stage.
        earlier: all earlier attempts.
        folder: the attempt's own payload folder.
        basis: what the attempt's product will be made of.
        pulse: called often meanwhile.

    Raises:
        OSError: the store did not answer, or a former owner still writes into its work folder.
    """
    former = adopt_former(ledger, node, spec, folder, basis=basis, pulse=pulse)
    if not earlier:
        return Inherited(former=former)
    work = take_over(ledger, node, earlier, folder, pulse=pulse)
    if spec.command is not None:
        unread = adopt_unread(ledger, node, earlier, folder, pulse=pulse)
        if unread is not None:
            return Inherited(unread=unread, work=work)
    checkpoint, parent = adopt(ledger, node, earlier, folder, pulse=pulse) or (None, None)
    return Inherited(checkpoint, parent, None, work, former)
