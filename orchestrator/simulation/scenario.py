"""What is simulated: a sweep, a cluster, and the faults that strike it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from orchestrator.core.failure import Cause
from orchestrator.core.gates import NO_GATES, Gates
from orchestrator.core.schedule import PlannedStage, chain_hours
from orchestrator.core.settings import Policy
from orchestrator.core.sweep import Cell, ComposedSweep
from orchestrator.core.tree import convert
from orchestrator.errors import UserError

NONE, MEASURED = "none", "llama3"
"""Names of the table without faults, and of the measured one."""

_SCALED = re.compile(r"x(?P<times>[1-9]\d{0,5})")
"""Names of tables that are the measured one with other rates, and by what factor."""


_EXAMPLE = (
    """{"source": "ours", "gpu_hours": 1000, "faults": [{"name": "hang", "count": 2, "cause": "unknown"}]}"""
)


class FaultKind(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something that ends attempts.

    Attributes:
        name: for people; the message of the failure.
        cause: the failure cause of the attempt. With `node_lost` it leaves no end record.
        count: how often it happened in the table's GPU-hours.
        after_s: it strikes each attempt after so many seconds, as a mistake in code or data does; None for
            faults that come by chance.
        stage: name of the only stage that it strikes, "" for all.
        axes: labels of the only cells that it strikes; empty for all.
        cured_at: it strikes no attempt that starts on this rung of the remedies for its cause, or a higher
            one; None for what no remedy cures.
        keeps: whether an attempt that it strikes has saved checkpoints. A mistake that strikes before any
            work is done leaves none.
        node: number of the only node that it strikes, from 0; None for all.
        node_hours: for how long the node is out of use. All other attempts on it are lost too. 0: it goes on.
        full_hours: hours since the start of the sweep between which the store's disk is full. Only stages
            that have saved twice before can save and end: they delete a checkpoint. Both 0: none. Such a
            fault strikes nothing else.
        is_taken: whether others take at once what such a stage deletes, so that it cannot save or end either.
        room: for how many stages the disk has room at once: one that ends while more run fails. 0: for all.
    """

    name: str
    cause: Cause
    count: float = 0.0
    after_s: float | None = None
    stage: str = ""
    axes: dict[str, str] = {}
    cured_at: int | None = None
    keeps: bool = True
    node: int | None = None
    node_hours: float = 0.0
    full_hours: tuple[float, float] = (0.0, 0.0)
    is_taken: bool = False
    room: int = 0

    def meets(self, target: Target) -> bool:
        """Return whether it can strike an attempt."""
        is_cured = self.cured_at is not None and target.rungs.get(self.cause, (0, 0))[0] >= self.cured_at
        is_there = self.node is None or self.node == target.node
        is_meant = self.stage in ("", target.stage) and self.axes.items() <= target.axes.items()
        return is_meant and is_there and not is_cured and not self.full_hours[1] and not self.room


class Target(NamedTuple):
    """What a fault may strike.

    Attributes:
        num_gpus: that the attempt holds. One that holds none suffers no faults by chance.
        stage: name of the stage.
        axes: labels of the cell.
        rungs: failure cause to the rung of its remedies, and the number of rungs.
        node: where it runs; -1 for an attempt without GPUs.
    """

    num_gpus: int
    stage: str = ""
    axes: Mapping[str, str] = {}
    rungs: Mapping[str, tuple[int, int]] = {}
    node: int = -1


class FaultTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Faults that were counted over some GPU-hours, or that a user describes.

    Faults come at a constant rate per GPU-hour, independently of each other. So the time to the next one is
    exponential, whatever was before.

    Attributes:
        source: where the numbers come from.
        gpu_hours: the time over which faults were counted.
        faults: what happened.
    """

    source: str
    gpu_hours: float
    faults: tuple[FaultKind, ...] = ()

    def without_room(self, name: str, running: Iterable[str]) -> FaultKind | None:
        """Return the fault of a disk without room for all stages of a name that run; one ends now."""
        found = [fault for fault in self.faults if fault.room and fault.stage == name]
        number = sum(each == name for each in running) if found else 0
        return next((fault for fault in found if number > fault.room), None)

    def draw(self, drawn: random.Random, target: Target) -> Strike | None:
        """Return the first fault of an attempt, if it ran for ever; None if none ever comes.

        Args:
            drawn: source of randomness.
            target: the attempt.
        """
        met = [fault for fault in self.faults if fault.meets(target)]
        strikes = [Strike(fault.after_s, fault) for fault in met if fault.after_s is not None]
        by_chance = [fault for fault in met if fault.after_s is None and fault.count]
        if target.num_gpus and by_chance:
            rate = sum(fault.count for fault in by_chance) / self.gpu_hours
            seconds = 3600 * drawn.expovariate(rate * target.num_gpus)
            (fault,) = drawn.choices(by_chance, [fault.count for fault in by_chance])
            strikes.append(Strike(seconds, fault))
        return min(strikes, key=lambda strike: strike.seconds, default=None)


class Strike(NamedTuple):
    """A fault that comes after some seconds of an attempt."""

    seconds: float
    fault: FaultKind


NO_FAULTS = FaultTable(source="", gpu_hours=1.0)


def fault_table(name: str) -> FaultTable:
    """Return a table of faults.

    Args:
        name: ``none``, ``llama3``, ``xN`` (the same at N times the rate, such as ``x100``), or the path of a
            JSON file with the fields of `FaultTable`.

    Raises:
        UserError: there is no such table, or the file holds none.
    """
    if name == NONE:
        return NO_FAULTS
    scaled = _SCALED.fullmatch(name)
    path = Path(__file__).with_name(f"{MEASURED}.json") if scaled or name == MEASURED else Path(name)
    try:
        tree: Any = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name!r} is no table of faults: {error}",
            where="--failures",
            allowed=f"{NONE}, {MEASURED}, xN (such as x100), or a JSON file such as {_EXAMPLE}",
        ) from None
    table = convert(tree, FaultTable, where=name)
    numbers = [
        table.gpu_hours,
        *(n for f in table.faults for n in (f.count, f.node_hours, f.after_s or 0.0, *f.full_hours)),
    ]
    if not table.gpu_hours > 0 or not all(0 <= number < float("inf") for number in numbers):
        raise UserError("a number of a table of faults is out of range", where=name, allowed="0 or more")
    return msgspec.structs.replace(table, gpu_hours=table.gpu_hours / (int(scaled["times"]) if scaled else 1))


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
