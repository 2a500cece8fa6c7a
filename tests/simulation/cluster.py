"""Small sweeps on simulated clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.core import schedule
from orchestrator.core.gates import NO_GATES, Gate, Gates
from orchestrator.core.schedule import PlannedStage
from orchestrator.core.settings import Policy
from orchestrator.core.sweep import Cell, ComposedSweep, Input, StageInstance
from orchestrator.simulation.cluster import Outcome
from orchestrator.simulation.decisions import Decisions
from orchestrator.simulation.scenario import FaultKind, FaultTable, Scenario, SimulatedStage

POLICY = Policy(lease_s=90.0, retries={"unknown": 1, "node_lost": 3, "bad_node": 3, "communication": 3})


def scenario_of(
    work: Mapping[str, PlannedStage],
    num_gpus: int,
    cells: Mapping[str, Sequence[str]] | None = None,
    *,
    true_hours: Mapping[str, float] | None = None,
    checkpoints: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Scenario:
    """A sweep of these stages, each a cell of its own unless `cells` names their chains."""
    instances = {
        key: StageInstance(
            stage=key.partition("-")[0],
            digest=key,
            reads={},
            inputs=tuple(Input(i, "", i) for i in stage.inputs if i in work),
        )
        for key, stage in work.items()
    }
    gates: Gates = rest.pop("gates", NO_GATES)
    chains = cells or {f"cell-{key}": [key] for key in work}
    hours = {key: (true_hours or {}).get(key, stage.hours) for key, stage in work.items()}
    config, axes = rest.pop("config", {}), rest.pop("axes", {})
    made = tuple(
        Cell(id=name, axes=axes.get(name, {}), columns={}, config=config, stage_digests=tuple(chain))
        for name, chain in chains.items()
    )
    return Scenario(
        sweep=ComposedSweep(name="s", specs=rest.pop("specs", {}), stages=instances, cells=made),
        cells=made,
        stages={key: SimulatedStage(3600 * hours[key], **(checkpoints or {})) for key in work},
        units=schedule.of_cells({cell.id: gates.chain(cell) for cell in made}, _gated(work, gates)),
        gates=gates,
        chains={cell.id: gates.chain(cell) for cell in made},
        num_gpus=num_gpus,
        policy=rest.pop("policy", POLICY),
        **rest,
    )


def gates_of(work: Mapping[str, PlannedStage], gated: Mapping[str, tuple[str, Sequence[str]]]) -> Gates:
    """Gates by the cells that wait for them: id of a cell to its gate and the stages that wait."""
    names = {gate for gate, _ in gated.values()}
    instances = {name: StageInstance(stage=name, digest=name, reads={}) for name in names}
    cells = {cell: (Gate(gate, tuple(stages)),) for cell, (gate, stages) in gated.items()}
    return Gates(instances, {name: (name,) for name in names}, cells)


def _gated(work: Mapping[str, PlannedStage], gates: Gates) -> dict[str, PlannedStage]:
    """The work, with gates among the inputs, so that they count for the order."""
    found = dict(work)
    for gate in (gate for of_cell in gates.cells.values() for gate in of_cell):
        for digest in gate.stages:
            found[digest] = found[digest]._replace(inputs=(*found[digest].inputs, gate.digest))
    return found


def play(work: Mapping[str, PlannedStage], num_gpus: int, *args: Any, **rest: Any) -> Outcome:
    """What comes of it."""
    return Decisions(scenario_of(work, num_gpus, *args, **rest)).run()


def table(cause: str, per_gpu_hour: float, node_hours: float = 0.0) -> FaultTable:
    """A table with one kind of fault."""
    fault = FaultKind(name="it broke", count=per_gpu_hour, cause=cause, node_hours=node_hours)  # type: ignore[arg-type]
    return FaultTable(source="ours", gpu_hours=1.0, faults=(fault,))
