"""What is simulated: a sweep, a cluster, and what happens to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from orchestrator.core.schedule import PlannedStage, chain_hours
from orchestrator.core.settings import Policy
from orchestrator.core.state import NO_GATES, Gates
from orchestrator.core.sweep import Cell, ComposedSweep
from orchestrator.simulation.faults import NO_FAULTS, FaultTable


class SimulatedStage(NamedTuple):
    """How a stage behaves.

    Attributes:
        seconds: that it takes if nothing disturbs it.
        interval_s: between its checkpoints; 0 if it saves none and always starts from nothing.
        save_share: share of the time in which it waits for what it saves.
        stop_s: to save once more and end after a stop.
        load_s: to load what was saved.
        phase: ``compute`` or ``evaluation``.
    """

    seconds: float
    interval_s: float = 0.0
    save_share: float = 0.0
    stop_s: float = 0.0
    load_s: float = 0.0
    phase: str = "compute"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A sweep, a cluster, and what happens to it.

    Attributes:
        sweep: with all stages of the cells, and the gates.
        cells: that are to run, in the order of the sweep.
        stages: how the stages behave that are not done, by digest.
        units: what runs as one job, as `schedule.of_cells` returns it, at the GPUs that it gets.
        num_gpus: of the whole cluster.
        gpus_per_node: of one node; the last node may have fewer.
        policy: of the launch.
        longest_first: whether jobs start longest chain first; else in the order of the sweep.
        faults: that end attempts.
        preempt_s: after so many seconds a job is preempted; None: never.
        seed: of the faults.
        job_start_s: seconds from the start of a job until its first stage computes, beyond its estimate.
        start_at: time at which the sweep begins, in seconds since 1970; its budget may have an end.
        gates: of the launch.
        are_held: whether a job that waits for a gate holds its GPUs; else it starts when the gate is done.
        chains: id of a cell to its stages, after the gates that they wait for; empty if there are no gates.
    """

    sweep: ComposedSweep
    cells: Sequence[Cell]
    stages: Mapping[str, SimulatedStage]
    units: Mapping[str, PlannedStage]
    num_gpus: int
    gpus_per_node: int = 8
    policy: Policy = field(default_factory=Policy)
    longest_first: bool = True
    faults: FaultTable = NO_FAULTS
    preempt_s: float | None = None
    seed: int = 0
    job_start_s: float = 0.0
    start_at: float = 0.0
    gates: Gates = NO_GATES
    are_held: bool = True
    chains: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def chain(self, cell: Cell) -> Sequence[str]:
        """Return the stages of a cell, after the gates that they wait for."""
        return self.chains.get(cell.id, cell.stage_digests)


def cells_of_units(scenario: Scenario) -> tuple[dict[str, list[Cell]], dict[str, str]]:
    """Return, for each unit, cells with the stages that its job may claim, and the unit of each stage."""
    cells: dict[str, list[Cell]] = {}
    unit_of: dict[str, str] = {}
    for cell in scenario.cells:
        chain = scenario.chain(cell)
        shared = [digest for digest in chain if digest in scenario.units]
        own = tuple(d for d in chain if d in scenario.stages and d not in scenario.units)
        for digest in shared:
            cells.setdefault(digest, []).append(replace(cell, stage_digests=(digest,)))
            unit_of[digest] = digest
        if own:
            cells[cell.id] = [replace(cell, stage_digests=own)]
            unit_of.update(dict.fromkeys(own, cell.id))
    return cells, unit_of


def ranks_of(scenario: Scenario) -> dict[str, int]:
    """Return the place of each unit in the order in which jobs start, the first one first."""
    names = list(scenario.units)
    if scenario.longest_first:
        chains = chain_hours(scenario.units)
        names.sort(key=lambda name: -chains[name])
    return {name: place for place, name in enumerate(names)}
