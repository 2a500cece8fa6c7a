"""What a person may change from the terminal: the same requests as `sweep rerun` and `sweep cancel` make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from orchestrator.api.launching import CheckedLaunch, run_settings_of
from orchestrator.api.overview import Watched
from orchestrator.api.run import cancel_cells, start
from orchestrator.api.state import SweepState
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import UserError, counted
from orchestrator.store.opening import following

MAX_NAMED = 6
"""Cells that a question names."""


class Question(NamedTuple):
    """A change that is not made before somebody confirms it.

    Attributes:
        title: what would be done, with the number of cells.
        lines: which cells these are.
        do: makes the change, and returns a line on it.
    """

    title: str
    lines: tuple[str, ...]
    do: Callable[[], str]


def ask(watched: Watched, verb: Literal["rerun", "cancel"], ids: Sequence[str]) -> Question:
    """Check a change and return it as a question. Nothing is recorded.

    Args:
        watched: the sweep.
        verb: which change.
        ids: of the cells; those that are done stay as they are.

    Raises:
        UserError: there is nothing to change, or a rerun would be refused.
        InfrastructureError: the store or the scheduler does not answer.
    """
    with watched.lock, following(watched.view.ledger.objects.url):
        view = watched.view.fresh()
        if not view.sealed:
            raise UserError(f"{view.sweep.name} was never launched here")
        wanted = set(ids)
        cells = [c for c in view.sweep.cells if c.id in wanted and view.cells[c.id].state is not State.DONE]
        if not cells:
            raise UserError(f"nothing to {verb}: {counted(len(wanted), 'cell')}, all done")
        do = _rerun(view, cells) if verb == "rerun" else _cancel(view, cells)
        counts = Counter(view.cells[cell.id].state for cell in cells)
        states = ", ".join(f"{number} {state}" for state, number in counts.items())
        named = [cell.id for cell in cells[:MAX_NAMED]]
        more = [f"and {len(cells) - MAX_NAMED} more"] if len(cells) > MAX_NAMED else []
        title = f"{verb} {counted(len(cells), 'cell')} of {view.title}?"
        return Question(title, (states, *named, *more), do)


def _rerun(view: SweepState, cells: Sequence[Cell]) -> Callable[[], str]:
    view.check()
    settings, import_paths = run_settings_of(view, None)
    # The checks come before the question, so that nobody confirms what is then refused.
    checked = CheckedLaunch(
        verb="rerun", view=view, cells=cells, settings=settings, import_paths=import_paths
    )

    def do() -> str:
        with following(view.ledger.objects.url):
            run = start(checked)
        where = f"; its output: {run.log}" if run.log else ""
        return f"rerun of {counted(len(cells), 'cell')} recorded and started{where}"

    return do


def _cancel(view: SweepState, cells: Sequence[Cell]) -> Callable[[], str]:
    def do() -> str:
        with following(view.ledger.objects.url):
            found = cancel_cells(view.fresh(), cells)
        kept = f"; {counted(len(found.kept), 'cell')} go on in the current revision" if found.kept else ""
        return "; ".join([f"{counted(len(found.cells), 'cell')} cancelled{kept}", *found.lines])

    return do
