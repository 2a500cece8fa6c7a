"""What a launch would do: a sweep composed or sealed, its settings, and the next step of each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.api.state import (
    SweepState,
    current_revision,
    naming_the_store,
    parse_reference,
    sealed_view,
    split_store,
    store_url,
)
from orchestrator.compose import Composition, compose, engine_settings, engine_with
from orchestrator.compose.files import locate
from orchestrator.core.plan import Action, Step, decide
from orchestrator.core.settings import RunSettings
from orchestrator.core.sweep import Cell
from orchestrator.errors import UserError
from orchestrator.execution.inheritance import foresee
from orchestrator.store.ledger import Ledger, content_digest, open_ledger

MAX_LOOKS = 200
"""Stages in a bucket of which it is looked up what they would go on from."""


def planned(
    word: str,
    overrides: Sequence[str],
    name: str | None = None,
    *,
    progress: Callable[[int, int], None] = lambda number, of: None,
) -> tuple[SweepState, Composition | None]:
    """Composes a sweep and looks it up in the store; ``SWEEP@k`` is read from the store instead.

    Raises:
        UserError: whatever is wrong with the sweep or its overrides.
    """
    url, rest = split_store(overrides)
    ledger = open_ledger(store_url(url))
    number = _sealed_number(ledger, word)
    if number is not None:
        sweep = parse_reference(word).name
        if name:
            raise UserError(f"{sweep}@{number} is sealed under its name", fix="--name goes with a sweep file")
        view = sealed_view(ledger, sweep, number)
        engine_of(view, None, rest)  # what is sealed cannot be changed, how it is run can
        return view, None
    with naming_the_store(ledger):
        composition = compose(word, overrides, name=name, progress=progress)
    ledger = open_ledger(store_url(composition.engine.store.url))
    return as_view(ledger, composition), composition


def engine_of(
    view: SweepState, composition: Composition | None, overrides: Sequence[str] = ()
) -> tuple[RunSettings, tuple[str, ...]]:
    """Returns settings and import paths: as composed, or for a sealed revision those of its last launch.

    Args:
        view: the revision.
        composition: what was composed, None for a sealed revision.
        overrides: of the engine, on top of those of the last launch.

    Raises:
        UserError: an override of something else than the engine.
    """
    if composition is not None:
        return composition.engine, composition.import_paths
    for request in reversed(view.requests):
        if request.settings:
            return engine_with(
                request.settings, overrides
            ) if overrides else request.settings, request.import_paths
    return engine_settings(overrides), ()


def _sealed_number(ledger: Ledger, word: str) -> int | None:
    """Returns the revision that ``SWEEP@k`` names, or the current one of a variant without a file."""
    reference = parse_reference(word)
    if reference.revision is None:
        try:
            locate(word, Path.cwd())
        except UserError:
            return current_revision(ledger, reference.name)
    return reference.revision


def as_view(ledger: Ledger, composition: Composition) -> SweepState:
    """Finds the revision that has the composition's content, or the number that it would get."""
    sweep = composition.sweep
    number = ledger.find_content(sweep.name, content_digest(sweep))
    if number is not None:
        return sealed_view(ledger, sweep.name, number)
    return SweepState(ledger, sweep, max(ledger.revision_numbers(sweep.name), default=0) + 1, sealed=False)


def steps_of(view: SweepState, cells: Sequence[Cell]) -> dict[str, dict[str, Step]]:
    """Returns by cell and digest what a launch would do; of stages that were tried before, what they go on
    from.

    Whether there is a checkpoint, a work folder or an output to read again is looked up in the store. Each
    look costs requests in a bucket, so that beyond some number a stage's step stays as its state alone says.
    """
    steps = {cell.cell: decide(cell, view.cells[cell.cell]) for cell in cells}
    looked: dict[str, str] = {}
    for cell in cells:
        for digest, step in [*steps[cell.cell].items()]:
            status, node = view.cells[cell.cell].stages[digest], view.sweep.nodes[digest]
            spec = view.sweep.specs[node.stage]
            if step.action not in (Action.RUN, Action.RESUME) or not (status.attempts or status.going_on):
                continue
            if digest not in looked and status.attempts:
                if not view.ledger.objects.in_place and len(looked) >= MAX_LOOKS:
                    continue
                looked[digest] = foresee(view.ledger, node, spec, view.attempts(node))
            found = looked.get(digest) or status.going_on
            action, reason = Action.RESUME if found else Action.RUN, step.reason
            if not (found and reason.startswith(found)):
                reason = f"{found or 'starts from nothing'}: {reason}"
            steps[cell.cell][digest] = Step(action, reason)
    return steps
