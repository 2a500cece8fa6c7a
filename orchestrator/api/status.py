"""The state of a sweep's cells, as one value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.api.drift import code_versions
from orchestrator.api.explanation import explain, explanation_lines
from orchestrator.api.state import SweepState
from orchestrator.core.state import CellStatus
from orchestrator.core.sweep import Cell

if TYPE_CHECKING:
    import pandas


def notes_of(view: SweepState, cells: Sequence[Cell]) -> Counter[str]:
    """Return the remarks that stages returned in the column `notes`, each with the number of its cells."""
    notes: Counter[str] = Counter()
    for cell in cells:
        found = [view.snapshot.evidence(digest).done for digest in cell.stage_digests]
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
    counts = Counter(view.cells[cell.id].state for cell in cells)
    rows = []
    for cell in cells:
        status = view.cells[cell.id]
        stages = [
            {
                "stage": view.sweep.stages[digest].name,
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
                "cell": cell.id,
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


class CellView:
    """One cell and its state at the time of the look-up.

    Attributes:
        id: such as ``tiny-qwen3.math.en-1a2b3c4d``.
        axes: axis to label.
        config: the resolved config.
        state: of the cell.
        cause: of its failure, one of the causes in docs/design.md; "" if it has not failed.
        reason: for the state, in a few words.
        num_retries: how often stages of the cell were started again.
    """

    def __init__(self, view: SweepState, cell: Cell) -> None:
        status = view.cells[cell.id]
        self._view, self._cell = view, cell
        self.id, self.axes, self.config = cell.id, dict(cell.axes), cell.config
        self.state, self.cause, self.reason = status.state, str(status.cause or ""), status.reason
        self.num_retries = sum(max(0, stage.attempts - 1) for stage in status.stages.values())

    def why(self) -> str:
        """Return the evidence for the state as text. Files of products are read and verified."""
        return "\n".join(explanation_lines(explain(self._view, self._cell)))

    def __repr__(self) -> str:
        return f"<{self.id}: {self.state}>"


class Cells(Mapping[str, CellView]):
    """The cells of a sweep by id. The beginning of an id, or a selector, works too if it matches one cell."""

    def __init__(self, view: SweepState, cells: Sequence[Cell]) -> None:
        self._view, self._cells = view, {cell.id: cell for cell in cells}

    def __getitem__(self, word: str) -> CellView:
        """Return a cell.

        Raises:
            UserError: the word matches no cell, or several.
        """
        return CellView(self._view, self._cells.get(word) or self._view.cell(word))

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __contains__(self, word: object) -> bool:
        return word in self._cells

    def __len__(self) -> int:
        return len(self._cells)


class Status(NamedTuple):
    """The states of a sweep's cells at one moment.

    Attributes:
        counts: state to number of cells; states without cells are left out.
        cells: the cells themselves.
        problems: records in the store that could not be read.
    """

    counts: dict[str, int]
    cells: Cells
    problems: list[str]

    def to_frame(self) -> pandas.DataFrame:
        """Return a table with one row for each cell."""
        import pandas

        return pandas.DataFrame(
            {**c.axes, "cell": c.id, "state": str(c.state), "retries": c.num_retries, "reason": c.reason}
            for c in self.cells.values()
        )


def status_of(view: SweepState, wanted: Sequence[str] | None) -> Status:
    """Return the states of the wanted cells; of all cells for None."""
    chosen = None if wanted is None else set(wanted)
    cells = [cell for cell in view.sweep.cells if chosen is None or cell.id in chosen]
    counts: dict[str, int] = {}
    for cell in cells:
        state = str(view.cells[cell.id].state)
        counts[state] = counts.get(state, 0) + 1
    return Status(counts, Cells(view, cells), view.warnings())
