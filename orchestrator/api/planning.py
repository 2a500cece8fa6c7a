"""What a launch would do: the sweep, composed or sealed, its settings, and the next step of each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.api import estimates
from orchestrator.api.estimates import missing_of, needs_of, told
from orchestrator.api.state import (
    SweepState,
    current_revision,
    naming_the_store,
    parse_reference,
    sealed_view,
    split_store,
    store_url,
)
from orchestrator.compose.files import locate
from orchestrator.compose.main import Composition, compose
from orchestrator.compose.overrides import engine_settings, engine_with
from orchestrator.core.plan import Action, Step, decide
from orchestrator.core.settings import HardwareSettings, RunSettings, check_hardware
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.costs import Estimate, Need
from orchestrator.errors import UserError
from orchestrator.execution.checkpoints import foresee
from orchestrator.store.ledger import Ledger, content_digest, open_ledger

if TYPE_CHECKING:
    import pandas

MAX_LOOKS = 200
"""Most stages in a bucket whose starting point is looked up. Each look-up costs requests."""


def planned(
    word: str,
    overrides: Sequence[str],
    name: str | None = None,
    *,
    progress: Callable[[int, int], None] = lambda number, of: None,
) -> tuple[SweepState, Composition | None]:
    """Compose a sweep and find its revision in the store; ``SWEEP@k`` is read from the store instead.

    Args:
        word: a name, a path to a YAML file, or ``SWEEP@k``.
        overrides: as on the command line.
        name: another name for this variant.
        progress: called with the number of composed points and of all points.

    Returns:
        The revision, and the composition; None for a revision from the store.

    Raises:
        UserError: the sweep or an override is wrong.
    """
    url, rest = split_store(overrides)
    ledger = open_ledger(store_url(url))
    number = _sealed_number(ledger, word)
    if number is not None:
        sweep = parse_reference(word).name
        if name:
            raise UserError(f"{sweep}@{number} is sealed under its name", fix="--name goes with a sweep file")
        view = sealed_view(ledger, sweep, number)
        # A sealed revision cannot be changed, but its run settings can. This call rejects all other
        # overrides.
        engine_of(view, None, rest)
        return view, None
    with naming_the_store(ledger):
        composition = compose(word, overrides, name=name, progress=progress)
    # The sweep file itself may set `store.url`.
    ledger = open_ledger(store_url(composition.engine.store.url))
    return as_view(ledger, composition), composition


def engine_of(
    view: SweepState, composition: Composition | None, overrides: Sequence[str] = ()
) -> tuple[RunSettings, tuple[str, ...]]:
    """Return run settings and import paths: as composed, or for a sealed revision those of its last launch.

    Args:
        view: the revision.
        composition: what was composed; None for a sealed revision.
        overrides: of run settings, applied to those of the last launch.

    Raises:
        UserError: an override changes something other than run settings.
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
    """Return the revision that ``SWEEP@k`` names, else the current one if the sweep has no file."""
    reference = parse_reference(word)
    if reference.revision is None:
        try:
            locate(word, Path.cwd())
        except UserError:
            return current_revision(ledger, reference.name)
    return reference.revision


def as_view(ledger: Ledger, composition: Composition) -> SweepState:
    """Return the sealed revision with this content, else an unsealed one with the next number."""
    sweep = composition.sweep
    number = ledger.find_content(sweep.name, content_digest(sweep))
    if number is not None:
        return sealed_view(ledger, sweep.name, number)
    return SweepState(ledger, sweep, max(ledger.revision_numbers(sweep.name), default=0) + 1, sealed=False)


def steps_of(view: SweepState, cells: Sequence[Cell]) -> dict[str, dict[str, Step]]:
    """Return what a launch would do with each stage of each cell.

    For a stage that was tried before, the store is searched for a checkpoint, a work folder or an output to
    go on from. Each search costs requests in a bucket. Beyond `MAX_LOOKS` stages, the step follows from the
    state alone.

    Returns:
        By cell and digest, the step.
    """
    steps = {cell.id: decide(cell, view.cells[cell.id]) for cell in cells}
    looked: dict[str, str] = {}
    for cell in cells:
        for digest, step in [*steps[cell.id].items()]:
            status, node = view.cells[cell.id].stages[digest], view.sweep.stages[digest]
            spec = view.sweep.specs[node.stage]
            if step.action not in (Action.RUN, Action.RESUME) or not (status.attempts or status.going_on):
                continue
            if digest not in looked and status.attempts:
                if not view.ledger.objects.in_place and len(looked) >= MAX_LOOKS:
                    continue
                looked[digest] = foresee(view.ledger, node, spec, view.attempts(node))
            # A stage without a product to go on from may still start from that of an earlier version of
            # itself.
            found = looked.get(digest) or status.going_on
            action, reason = Action.RESUME if found else Action.RUN, step.reason
            if not (found and reason.startswith(found)):
                reason = f"{found or 'starts from nothing'}: {reason}"
            steps[cell.id][digest] = Step(action, reason)
    return steps


def hardware_of(settings: HardwareSettings, **options: str | float | None) -> HardwareSettings:
    """Return the hardware that a plan assumes: the run settings, changed by options of the verb.

    Args:
        settings: of the run.
        options: settings to change; None for those to keep.

    Raises:
        UserError: an unknown device, or a number that is out of range.
    """
    changed: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    hardware = msgspec.structs.replace(settings, **changed)
    check_hardware(hardware, where=" ".join(f"--{key.replace('_', '-')} {changed[key]}" for key in changed))
    return hardware


class Plan:
    """What a launch would do, and what it would cost. Making a plan changes nothing.

    Attributes:
        view: the revision that would be launched.
        cells: that were selected.
        steps: by cell and digest of a stage, what a launch would do with it, and why.
        missing: by cell, the needs that this machine lacks; the cell is blocked until they are fetched.
        estimates: by digest, what the stage costs; only of stages that have an estimate hook.
        hardware: that the estimates are for.
        prefetch: the command that fetches what is missing.
    """

    def __init__(
        self,
        view: SweepState,
        cells: Sequence[Cell],
        settings: RunSettings,
        hardware: HardwareSettings,
        import_paths: Sequence[str],
        *,
        prefetch: str,
    ) -> None:
        self.view, self.cells, self.hardware = view, cells, hardware
        self.prefetch = prefetch
        self._retention = settings.policy.retention
        self.steps = steps_of(view, cells)
        self.missing: dict[str, list[Need]] = missing_of(needs_of(view, cells, import_paths))
        self.estimates: dict[str, Estimate] = estimates.estimates_of(
            view,
            cells,
            hardware=hardware.assumed,
            retention=settings.policy.retention,
            import_paths=import_paths,
        )

    @property
    def totals(self) -> dict[str, Any] | None:
        """The cost of all cells, a shared stage once; None if no stage has an estimate hook."""
        return estimates.in_total(self.cells, self.estimates, self.hardware) if self.estimates else None

    def to_frame(self) -> pandas.DataFrame:
        """Return a table with one row for each cell: its axes, its state, and the action for each stage."""
        import pandas

        return pandas.DataFrame(
            {
                **cell.axes,
                "cell": cell.id,
                "state": str(self.state_of(cell)),
                **{
                    self.view.sweep.stages[d].name: str(step.action)
                    for d, step in self.steps[cell.id].items()
                },
            }
            for cell in self.cells
        )

    def as_json(self) -> dict[str, Any]:
        """Return the stable machine-readable form; costs are null if no stage has an estimate hook."""
        view, cells = self.view, self.cells
        return {
            "sweep": view.sweep.name,
            "revision": view.number,
            "num_cells": len(cells),
            "hardware": self.hardware,
            "retention": self._retention,
            "totals": self.totals,
            "prefetch": self.prefetch if self.missing else None,
            "cells": [self._cell_json(cell) for cell in cells],
        }

    def _cell_json(self, cell: Cell) -> dict[str, Any]:
        """Return the part of the plan for one cell."""
        view = self.view
        return {
            "cell": cell.id,
            "axes": cell.axes,
            "columns": cell.columns,
            "state": self.state_of(cell),
            "blocked": [told(need) for need in self.missing.get(cell.id, ())],
            "estimate": estimates.as_json(estimates.of_cell(cell, self.estimates)),
            "stages": [
                {
                    "stage": view.sweep.stages[digest].name,
                    "digest": digest,
                    "state": view.cells[cell.id].stages[digest].state,
                    "action": step.action,
                    "reason": step.reason,
                }
                for digest, step in self.steps[cell.id].items()
            ],
        }

    def state_of(self, cell: Cell) -> State:
        """Return the state of a cell; one that lacks a need is blocked, unless it is done or at work."""
        state = self.view.cells[cell.id].state
        at_work = state in (State.DONE, State.RUNNING, State.QUEUED)
        return State.BLOCKED if cell.id in self.missing and not at_work else state
