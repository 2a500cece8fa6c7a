"""The state of a sweep's cells, as one value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from orchestrator.api.drift import code_versions
from orchestrator.api.state import SweepState
from orchestrator.core.state import CellStatus
from orchestrator.core.sweep import Cell


def notes_of(view: SweepState, cells: Sequence[Cell]) -> Counter[str]:
    """Return the remarks that stages returned in the column `notes`, each with the number of its cells."""
    notes: Counter[str] = Counter()
    for cell in cells:
        found = [view.snapshot.evidence(digest).done for digest in cell.chain]
        rows = [row for done in found if done is not None for row in done.rows]
        notes.update({note for row in rows if isinstance(note := row.get("notes"), str) and note})
    return notes


def retries_of(status: CellStatus) -> int:
    """Return how often stages of a cell were started again. The first start of a stage is no retry."""
    return sum(max(0, stage.attempts - 1) for stage in status.stages.values())


def as_json(view: SweepState, cells: Sequence[Cell]) -> dict[str, object]:
    """Return the stable machine-readable form of the states.

    `seconds` of a stage is the wall time of its last attempt.
    """
    counts = Counter(view.cells[cell.cell].state for cell in cells)
    rows = []
    for cell in cells:
        status = view.cells[cell.cell]
        stages = [
            {
                "stage": view.sweep.nodes[digest].name,
                "digest": digest,
                "state": stage.state,
                "cause": stage.cause,
                "attempts": stage.attempts,
                "seconds": stage.seconds,
                "reason": stage.reason,
            }
            for digest, stage in status.stages.items()
        ]
        rows.append(
            {
                "cell": cell.cell,
                "axes": cell.axes,
                "state": status.state,
                "cause": status.cause,
                "reason": status.reason,
                "attempts": status.attempts,
                "retries": retries_of(status),
                "stages": stages,
            }
        )
    return {
        "sweep": view.sweep.name,
        "revision": view.number,
        "counts": {str(state): n for state, n in counts.items()},
        "code": dict(code_versions(view, cells)),
        "problems": view.problems,
        "cells": rows,
    }
