"""What comes of a sweep on a cluster: how long it takes, what fails, and where the time of the GPUs goes."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.api.estimates import work_of
from orchestrator.api.state import SweepState
from orchestrator.core import schedule
from orchestrator.core.gates import with_gates
from orchestrator.core.goodput import Goodput
from orchestrator.core.schedule import Makespan, PlannedStage
from orchestrator.core.settings import Policy, SpendingLimit
from orchestrator.core.sweep import Cell
from orchestrator.costs import Estimate
from orchestrator.errors import UserError, counted
from orchestrator.simulation.cluster import Outcome
from orchestrator.simulation.decisions import RESTART_S, Decisions
from orchestrator.simulation.scenario import NONE, FaultTable, Scenario, SimulatedStage, fault_table

MAX_ERROR = 3.0
"""Largest error of estimates that can be simulated: most are then wrong by a factor of up to 20."""

MAX_GPUS = 10_000_000
"""Most GPUs of a simulated cluster; ours. The simulation holds the free GPUs of each node."""


class SimulatedCluster(NamedTuple):
    """A cluster for which a plan is timed, and what happens on it.

    Attributes:
        num_gpus: in all.
        gpus_per_node: of one node. A cell runs within one.
        moldable: whether a cell may have more GPUs than it needs.
        error: how wrong estimates are: the standard deviation of the logarithm of true over estimated time.
        seed: of the errors and of the faults.
        failures: name or path of a table of faults, see `fault_table`.
        preempt_hours: after so many hours a job is preempted; None: never.
        longest_first: whether the longest cells start first; else cells start in the order of the sweep.
        job_start_hours: from the start of a job until its first stage computes, beyond its estimate.
    """

    num_gpus: int
    gpus_per_node: int = 8
    moldable: bool = False
    error: float = 0.0
    seed: int = 0
    failures: str = NONE
    preempt_hours: float | None = None
    longest_first: bool = True
    job_start_hours: float = 0.0


class Simulated(NamedTuple):
    """The result of a simulation.

    Attributes:
        makespan: how long the sweep takes, and how long it must at least.
        outcome: what came of it.
        budget: what the sweep may spend.
        num_without_estimate: stages of which neither an estimate nor a finished instance gives the time. They
            count as none.
    """

    makespan: Makespan
    outcome: Outcome
    budget: SpendingLimit
    num_without_estimate: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the stable machine-readable form. Times are hours, and GPU-hours of what was held."""
        outcome = self.outcome
        states = Counter(str(status.state) for status in outcome.cells.values())
        return {
            "makespan": self.makespan._asdict(),
            "cells": dict(states),
            "attempts": outcome.attempts,
            "num_remedied": outcome.num_remedied,
            "num_nodes_left_out": outcome.num_left_out,
            "num_without_estimate": self.num_without_estimate,
            "faults": outcome.faults,
            "gate_gpu_hours": outcome.gate_gpu_hours,
            "away_gpu_hours": outcome.away_gpu_hours,
            "goodput": _goodput_json(outcome.goodput, self.makespan),
            "budget": self._budget_json(),
            "waste": {} if outcome.goodput is None else _in_hours(outcome.goodput.lost_by),
        }

    def _budget_json(self) -> dict[str, Any] | None:
        """Return what was spent of the budget; None without one."""
        if not self.budget.is_set:
            return None
        spent = 0.0 if self.outcome.goodput is None else self.outcome.goodput.total / 3600
        return {"gpu_hours": self.budget.gpu_hours, "until": self.budget.until, "spent_gpu_hours": spent}


def _in_hours(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: amount / 3600 for name, amount in seconds.items()}


def _goodput_json(found: Goodput | None, makespan: Makespan) -> dict[str, Any] | None:
    """Return where the held time went; None for a sweep without GPUs."""
    if found is None or not found.total:
        return None
    held_hours, all_hours = found.total / 3600, makespan.hours * makespan.num_gpus
    return {
        "share": found.useful / found.total,
        "held_gpu_hours": held_hours,
        "utilisation": held_hours / all_hours if all_hours else 0.0,
        "gpu_hours": _in_hours(found.parts),
    }


def simulate(
    view: SweepState,
    cells: Sequence[Cell],
    estimates: Mapping[str, Estimate],
    policy: Policy,
    cluster: SimulatedCluster,
) -> Simulated:
    """Return what comes of what is not done, with the order, retries and limits of a real sweep.

    Args:
        view: the sweep state.
        cells: to run.
        estimates: digest of a stage to its estimate.
        policy: of the launch.
        cluster: where they run, and what happens there.

    Raises:
        UserError: a number is out of range, or a cell can never end on this cluster.
    """
    work = work_of(view, cells, estimates)
    _check(cluster, work)
    faults = fault_table(cluster.failures)
    _refuse_strays(view, faults, cluster.failures)
    chains = {cell.id: view.chain(cell) for cell in cells}
    units = schedule.of_cells(chains, work)
    drawn = random.Random(cluster.seed)
    true_hours = {
        key: schedule.wrong_by(unit.hours, cluster.error, drawn.gauss(0, 1)) for key, unit in units.items()
    }
    chosen = units
    if cluster.moldable:
        chosen = schedule.mold(
            units, cluster.num_gpus, gpus_per_node=cluster.gpus_per_node, kept=view.chosen_gpus
        )
    stages: dict[str, SimulatedStage] = {}
    for cell in cells:
        for digest in chains[cell.id]:
            if digest in work and digest not in stages:
                unit = digest if digest in units else cell.id
                planned = units[unit].hours
                factor = true_hours[unit] / planned * chosen[unit].hours / planned if planned else 1.0
                stages[digest] = _simulated(work[digest].hours * factor, estimates.get(digest))
    _refuse_endless(view, stages, cluster)
    scenario = Scenario(
        sweep=with_gates(view.sweep, view.gates),
        cells=cells,
        stages=stages,
        units=chosen,
        num_gpus=cluster.num_gpus,
        gpus_per_node=cluster.gpus_per_node,
        policy=policy,
        longest_first=cluster.longest_first,
        faults=faults,
        preempt_s=None if cluster.preempt_hours is None else 3600 * cluster.preempt_hours,
        seed=cluster.seed,
        job_start_s=3600 * cluster.job_start_hours,
        start_at=time.time(),
        gates=view.gates._replace(are_first=True),
        are_held=not work.keys() & view.gates.instances.keys() <= estimates.keys(),
        chains=chains,
    )
    outcome = Decisions(scenario).run()
    really = {key: unit._replace(hours=true_hours[key]) for key, unit in units.items()}
    unknown = sum(not stage.hours and digest not in estimates for digest, stage in work.items())
    return Simulated(_makespan(outcome.hours, really, cluster), outcome, policy.budget, unknown)


def _makespan(hours: float, work: Mapping[str, PlannedStage], cluster: SimulatedCluster) -> Makespan:
    """Return a simulated time beside the times that no schedule is shorter than, both by true durations."""
    rigid = schedule.lower_bound_hours(work, cluster.num_gpus)
    bound = rigid
    if cluster.moldable:
        most = min(cluster.gpus_per_node, cluster.num_gpus)
        bound = schedule.moldable_lower_bound_hours(work, cluster.num_gpus, gpus_per_node=most)
    return Makespan(hours, bound, rigid, hours / bound if bound else 1.0, cluster.num_gpus)


def _simulated(hours: float, estimate: Estimate | None) -> SimulatedStage:
    """Return how a stage behaves that truly takes some hours."""
    if estimate is None:
        return SimulatedStage(3600 * hours)
    is_evaluation = bool(estimate.num_generations and not estimate.num_steps)
    return SimulatedStage(
        seconds=3600 * hours,
        interval_s=estimate.lost_s,
        save_share=estimate.checkpoint_share,
        stop_s=estimate.stop_s,
        load_s=estimate.load_s,
        phase="evaluation" if is_evaluation else "compute",
    )


def _check(cluster: SimulatedCluster, work: Mapping[str, PlannedStage]) -> None:
    """Refuse numbers that are out of range, and a cluster on which a cell does not fit.

    Raises:
        UserError: for either.
    """
    where = f"--gpus {cluster.num_gpus} --gpus-per-node {cluster.gpus_per_node}"
    if cluster.num_gpus < 1 or cluster.gpus_per_node < 1:
        raise UserError("a cluster has at least one GPU", where=where)
    if max(cluster.num_gpus, cluster.gpus_per_node) > MAX_GPUS:
        raise UserError(f"a cluster has at most {MAX_GPUS:,} GPUs", where=where)
    if not 0 <= cluster.error <= MAX_ERROR:
        raise UserError(
            f"--estimate-error {cluster.error:g}", allowed=f"0 to {MAX_ERROR:g}; 0.3 means wrong by 30 %"
        )
    most = max((stage.num_gpus for stage in work.values()), default=0)
    if most > min(cluster.num_gpus, cluster.gpus_per_node):
        raise UserError(
            f"a cell needs {most} GPUs in one node", where=where, fix=f"--gpus-per-node {most} or more"
        )


def _refuse_strays(view: SweepState, table: FaultTable, where: str) -> None:
    """Refuse faults that can strike nothing in the sweep, such as for a misspelt stage.

    Raises:
        UserError: a fault names no stage of the sweep, or no cell.
    """
    for fault in table.faults:
        if fault.stage and fault.stage not in view.sweep.specs:
            raise UserError(
                f"fault {fault.name!r} names the unknown stage {fault.stage!r}",
                where=where,
                allowed=", ".join(view.sweep.specs),
            )
        if not any(fault.axes.items() <= cell.axes.items() for cell in view.sweep.cells):
            raise UserError(
                f"fault {fault.name!r} strikes no cell: {fault.axes}",
                where=where,
                allowed=f"labels of {', '.join(view.sweep.cells[0].axes)}",
            )


def _refuse_endless(
    view: SweepState, stages: Mapping[str, SimulatedStage], cluster: SimulatedCluster
) -> None:
    """Refuse stages that would be preempted for ever, since no retry is counted.

    Raises:
        UserError: a stage makes no progress between two preemptions.
    """
    if cluster.preempt_hours is None:
        return
    least_s = 3600 * cluster.preempt_hours
    endless = [
        view.instances[digest].name
        for digest, stage in stages.items()
        if stage.seconds + RESTART_S >= least_s
        and (not stage.interval_s or stage.stop_s + RESTART_S >= least_s)
    ]
    if endless:
        raise UserError(
            f"{counted(len(endless), 'stage')} would never end, such as {endless[0]}",
            where=f"--preempt-every {cluster.preempt_hours:g}h: they take longer and save nothing before",
        )
