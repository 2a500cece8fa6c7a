"""What a launch would do: the next step of each stage, what it costs, and what changed since the last one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from orchestrator.api.estimates import estimates_of, molded, of_cell
from orchestrator.api.launching import attempts_so_far, make_launcher, with_code
from orchestrator.api.rehearsals import PlannedGate, planned_facts, planned_gates
from orchestrator.api.requests import checkout_digest, missing_of, need_line, needs_of
from orchestrator.api.simulating import Simulated, SimulatedCluster, simulate
from orchestrator.api.state import SweepState, current_revision
from orchestrator.api.waiting import later_of
from orchestrator.core.gates import gates_of
from orchestrator.core.plan import Action, Step, decide
from orchestrator.core.records import Request
from orchestrator.core.settings import HardwareSettings, RunSettings, check_hardware
from orchestrator.core.state import CellStatus, State
from orchestrator.core.sweep import Cell, ComposedSweep
from orchestrator.core.tree import changed_keys
from orchestrator.costs import ADDED, Estimate, Need, together
from orchestrator.errors import DamagedRecord, counted
from orchestrator.execution.checkpoints import foresee
from orchestrator.launchers.base import LaunchGpus

if TYPE_CHECKING:
    import pandas


def after_launch(
    view: SweepState, cells: Sequence[Cell], named: tuple[str, ...] | None, settings: RunSettings
) -> SweepState:
    """Return the states as a launch would find them that gives fresh budgets; nothing is recorded.

    Args:
        view: the revision, with the gates and the code of the launch.
        cells: of the launch.
        named: their ids; None for all cells.
        settings: of the launch.
    """
    if all(view.cells[cell.id].state not in _ENDED_IN_VAIN for cell in cells):
        return view
    request = Request(
        nonce="",
        number=max((request.number for request in view.requests), default=0) + 1,
        verb="launch",
        revision=view.number,
        cells=named,
        after=attempts_so_far(view, cells),
        settings=settings,
        failures=attempts_so_far(view, view.sweep.cells) if named is not None else None,
    )
    launched = SweepState(view.ledger, view.sweep, view.number, sealed=view.sealed, trusted=view.trusted)
    launched.requests = [*view.requests, request]
    # What was read once is true of both.
    launched.gates = view.gates
    launched.codes = view.codes
    launched.reader = view.reader
    launched.jobs = view.jobs
    return launched


_ENDED_IN_VAIN = (State.FAILED, State.BLOCKED, State.CANCELLED)


def _decided(cell: Cell, now: CellStatus, launched: CellStatus) -> dict[str, Step]:
    """Return the steps that a launch would take, with today's reasons where these lead to the same."""
    today, steps = decide(cell, now), decide(cell, launched)
    return {d: today[d] if today[d].action is step.action else step for d, step in steps.items()}


def steps_of(view: SweepState, launched: SweepState, cells: Sequence[Cell]) -> dict[str, dict[str, Step]]:
    """Return what a launch would do with each stage of each cell.

    For a stage that was tried before, the store is searched for a checkpoint, a work folder or an output to
    go on from. Each search costs requests in a bucket. Beyond the store's `max_looks` stages, the step
    follows from the state alone.

    Args:
        view: the revision.
        launched: its states after the launch.
        cells: of the launch.

    Returns:
        By cell and digest, the step.
    """
    steps = {cell.id: _decided(cell, view.cells[cell.id], launched.cells[cell.id]) for cell in cells}
    looked: dict[str, str] = {}
    for cell in cells:
        for digest, step in [*steps[cell.id].items()]:
            status, instance = view.cells[cell.id].stages[digest], view.sweep.stages[digest]
            spec = view.sweep.specs[instance.stage]
            if step.action not in (Action.RUN, Action.RESUME) or not (status.attempts or status.going_on):
                continue
            if digest not in looked and status.attempts:
                if len(looked) >= view.ledger.objects.max_looks:
                    continue
                looked[digest] = foresee(view.ledger, instance, spec, view.attempts(instance))
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


class CellGpus(NamedTuple):
    """The GPUs of a cell that a launch would choose.

    Attributes:
        number: the GPUs that it gets.
        fewest: the GPUs that suffice.
        reason: why it gets so many.
    """

    number: int
    fewest: int
    reason: str


class Plan:
    """What a launch would do, and what it would cost. Making a plan changes nothing.

    Attributes:
        view: the revision that would be launched.
        cells: that were selected.
        steps: by cell and digest of a stage, what a launch would do with it, and why.
        missing: by cell, the needs that this machine lacks; the cell is blocked until they are fetched.
        estimates: by digest, what the stage costs; only of stages that have an estimate hook.
        settings: the run settings of the launch.
        hardware: that the estimates are for.
        prefetch: the command that fetches what is missing.
        import_paths: folders from which the user's stages are imported.
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
        named = None if len(cells) == len(view.sweep.cells) else tuple(cell.id for cell in cells)
        self._facts = planned_facts(view, named, settings, hardware, import_paths)
        view = view.with_gates(gates_of(view.sweep, self._facts, named))
        if view.holds.cells and import_paths:
            view = with_code(view, checkout_digest(view, import_paths))
        self.view, self.cells, self.hardware = view, cells, hardware
        self.prefetch = prefetch
        self.import_paths = import_paths
        self.settings, self._policy = settings, settings.policy
        self.steps = steps_of(view, after_launch(view, cells, named, settings), cells)
        self.missing: dict[str, list[Need]] = missing_of(needs_of(view, cells, import_paths))
        self.estimates: dict[str, Estimate] = estimates_of(
            view,
            cells,
            hardware=hardware.assumed,
            retention=settings.policy.retention,
            import_paths=import_paths,
        )

    @property
    def gates(self) -> list[PlannedGate]:
        """The gates of stages that are not done, and those that would be left out."""
        return planned_gates(self.view, self.cells, self._facts, self.estimates, self.steps)

    @property
    def totals(self) -> dict[str, Any] | None:
        """The cost of all cells, a shared stage once; None if no stage has an estimate hook."""
        return in_total(self.cells, self.estimates, self.hardware) if self.estimates else None

    def simulate(self, cluster: SimulatedCluster) -> Simulated:
        """Return what comes of what is not done on a cluster, the longest chain of stages first.

        Args:
            cluster: its size, and what happens on it.

        Raises:
            UserError: a number is out of range, or a cell needs more GPUs than a node has.
        """
        return simulate(self.view, self.cells, self.estimates, self._policy, cluster)

    def gpus(self, there: LaunchGpus | None = None) -> dict[str, CellGpus]:
        """Return the GPUs that a launch would choose, by cell; empty unless `hardware.moldable` is set.

        Args:
            there: the GPUs that the launch may use; None for those of its launcher.

        Raises:
            UserError: the launcher's settings lack the number of GPUs, or there are too few.
            InfrastructureError: the launcher needs a cluster that does not answer.
        """
        if not self.settings.hardware.moldable:
            return {}
        there = there or make_launcher(self.settings, len(self.cells)).gpus()
        if there is None:
            return {}
        cells = molded(self.view, self.cells, self.estimates, there)
        hours = sum(one.fewest.hours * one.fewest.num_gpus for one in cells.values()) / there.number
        found = {}
        for name, (fewest, chosen) in cells.items():
            reason = "more GPUs would not end the sweep earlier"
            if name in self.view.chosen_gpus:
                reason = "as recorded when it first started"
            elif chosen.num_gpus > fewest.num_gpus:
                reason = (
                    f"{chosen.hours:.3g} hours instead of {fewest.hours:.3g};"
                    f" the GPU-hours of all cells fill {there.number} GPUs for {hours:.3g} hours"
                )
            found[name] = CellGpus(chosen.num_gpus, fewest.num_gpus, reason)
        return found

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

    def as_json(self, there: LaunchGpus | None = None) -> dict[str, Any]:
        """Return the stable machine-readable form; costs are null if no stage has an estimate hook.

        Args:
            there: see `gpus`.
        """
        view, cells, gpus = self.view, self.cells, self.gpus(there)
        facts = {
            "sweep": view.sweep.name,
            "revision": view.number,
            "num_cells": len(cells),
            "hardware": self.hardware,
            "retention": self._policy.retention,
            "totals": self.totals,
            "prefetch": self.prefetch if self.missing else None,
            "gates": [gate._asdict() for gate in self.gates],
            "later": later_of(view),
            "cells": [
                self._cell_json(cell) | ({"gpus": gpus[cell.id]._asdict()} if cell.id in gpus else {})
                for cell in cells
            ],
        }
        plain: dict[str, Any] = msgspec.to_builtins(facts)
        return plain

    def __repr__(self) -> str:
        return f"<plan of {self.view.title}: {counted(len(self.cells), 'cell')}>"

    def _cell_json(self, cell: Cell) -> dict[str, Any]:
        """Return the part of the plan for one cell."""
        view, estimate = self.view, of_cell(cell, self.estimates)
        return {
            "cell": cell.id,
            "axes": cell.axes,
            "columns": cell.columns,
            "state": self.state_of(cell),
            "blocked": [need_line(need) for need in self.missing.get(cell.id, ())],
            "estimate": None if estimate is None else msgspec.to_builtins(estimate),
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


def cell_drift(view: SweepState) -> list[str]:
    """Return a line on cells that the last launched revision lacks, and on what changed in them."""
    if view.sealed:
        return []
    number = current_revision(view.ledger, view.sweep.name)
    if number is None:
        return []
    try:
        before = view.ledger.revision(view.sweep.name, number).sweep
    except DamagedRecord as error:
        return [f"not compared with the last launch: {error.what}"]
    old = {cell.id for cell in before.cells}
    new = [cell for cell in view.sweep.cells if cell.id not in old]
    if not new:
        return []
    # A changed config gives a cell another id. Its axes show which old cell it replaces.
    by_axes = {tuple(cell.axes.items()): cell for cell in before.cells}
    changed: Counter[str] = Counter()
    for cell in new:
        former = by_axes.get(tuple(cell.axes.items()))
        changed.update(
            changed_reads(before, view.sweep, former, cell) if former else ["another place in the grid"]
        )
    why = ", ".join(f"{key} ({counted(n, 'cell')})" for key, n in changed.most_common(5))
    return [f"{counted(len(new), 'cell')} not in {view.sweep.name}@{number}: {why}"]


def changed_reads(before: ComposedSweep, after: ComposedSweep, old: Cell, new: Cell) -> list[str]:
    """Return the dotted keys that some stage reads and whose values differ between two cells.

    Args:
        before, after: the sweeps of the two cells.
        old, new: the cells.

    Returns:
        A general remark if no key differs; then the stages themselves do.
    """
    reads = {before.stages[digest].name: before.stages[digest].reads for digest in old.stage_digests}
    instances = [after.stages[digest] for digest in new.stage_digests]
    keys = [
        key
        for instance in instances
        if instance.name in reads
        for key in changed_keys(reads[instance.name], instance.reads)
    ]
    return list(dict.fromkeys(keys)) or ["the stages themselves"]


def in_total(
    cells: Sequence[Cell], estimates: Mapping[str, Estimate], settings: HardwareSettings
) -> dict[str, Any]:
    """Return the totals over all cells, each shared stage once.

    Wall time and peak disk assume `cells_at_once` cells in parallel. The peak is what all stages leave, plus
    what the most demanding stages hold temporarily, one for each parallel cell:

        disk_gib = 100, temporary = 30, 20, 10, cells_at_once = 2: the peak is 100 + 30 + 20

    Args:
        cells: that were selected.
        estimates: digest to estimate.
        settings: of the hardware.
    """
    digests = dict.fromkeys(digest for cell in cells for digest in cell.stage_digests if digest in estimates)
    total = together(estimates[digest] for digest in digests)
    live_gib = [estimates[digest].peak_disk_gib - estimates[digest].disk_gib for digest in digests]
    # Parallel cells cannot finish before the longest of them does.
    longest = max((one.wall_hours for cell in cells if (one := of_cell(cell, estimates))), default=0.0)
    at_once = settings.cells_at_once
    return {
        **{name: getattr(total, name) for name in ADDED},
        "wall_hours": max(longest, total.wall_hours / at_once),
        "peak_disk_gib": total.disk_gib + sum(sorted(live_gib, reverse=True)[:at_once]),
        **{name: getattr(total, name) for name in ("useful_share", "checkpoint_share", "lost_s", "stop_s")},
        "num_measured": sum(estimates[digest].measured for digest in digests),
        "assumptions": [
            *dict.fromkeys(note for digest in digests for note in estimates[digest].assumptions),
            f"{at_once} cells at once (hardware.cells_at_once), for wall time and the peak of the disk",
        ],
    }
