"""The record of what an attempt starts from: before anything is taken over, and before each thing is.

It is written before each, so that whoever comes next knows where what it finds came from, whenever its
predecessor died.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from orchestrator import provenance
from orchestrator.core.cell import uses_of
from orchestrator.core.records import Start
from orchestrator.core.sweep import Cell
from orchestrator.stage import StageSpec
from orchestrator.worker.command import command_facts
from orchestrator.worker.inherit import Inherited
from orchestrator.worker.order import WorkerOrder, git_of


def started(order: WorkerOrder, spec: StageSpec, cell: Cell, generations: Mapping[str, int]) -> Start:
    """Return the record of a start from nothing.

    Args:
        order: the worker's.
        spec: of the stage.
        cell: on whose behalf.
        generations: digest of each input to the generation of its product.
    """
    facts = provenance.of_attempt(order.code_digest, git_of(order))
    return Start(
        parent=None,
        uses=uses_of(spec, cell.config),
        provenance=facts | command_facts(spec, order.import_paths),
        inputs=dict(generations),
        at=provenance.now(),
    )


def going_on(start: Start, taken: Inherited) -> Start:
    """Return the record of a start with what is taken over."""
    return replace(start, parent=taken.parent, work=taken.work, unread=taken.unread)
