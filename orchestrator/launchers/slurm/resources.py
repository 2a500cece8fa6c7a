"""What a cell's job asks for, by the plan's estimate, the launcher's settings and the profile. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from orchestrator.core.jobs import Resources
from orchestrator.costs import Estimate
from orchestrator.errors import UserError
from orchestrator.launchers.jobs import stepped
from orchestrator.launchers.slurm.settings import Asked, Cluster, Partition, SlurmSettings

START_HOURS = 0.25
"""Ours: imports, shared stages and loading, beside what the plan counts."""


def resources_of(
    estimate: Estimate | None,
    asked: Asked,
    settings: SlurmSettings,
    cluster: Cluster,
    partitions: Mapping[str, Partition],
    *,
    num_oom: int = 0,
    cell: str = "",
) -> Resources:
    """Returns what the job of a cell asks for.

    Args:
        estimate: of the cell's unfinished stages together; None when none of them says what it costs.
        asked: what the settings say for the cell.
        settings: of the launcher; cells that share a job add up their hours, or side by side their devices.
        cluster: the profile.
        partitions: the cluster's, with what they have; {} for Slurm's default.
        num_oom: how often its jobs were out of host memory: each doubles what is asked for.
        cell: its id, for the message.

    Raises:
        UserError: no partition is large enough.
    """
    gpus = (
        asked.gpus
        if asked.gpus is not None
        else estimate.num_gpus
        if estimate and cluster.device != "cpu"
        else 0
    )
    per_node = max(1, cluster.gpus_per_node)
    nodes = asked.nodes or max(1, math.ceil(gpus / per_node))
    side = settings.workers_per_job
    gpus_per_node = math.ceil(gpus / nodes) * side
    cpus = (asked.cpus or (cluster.cpus_per_gpu * math.ceil(gpus / nodes) if gpus else cluster.cpus)) * side
    memory_gib = asked.memory_gib
    if memory_gib is None and estimate is not None and estimate.host_memory_gib:
        memory_gib = stepped(estimate.host_memory_gib / nodes)
    memory_gib = memory_gib if memory_gib is not None else cluster.memory_gib
    if memory_gib is not None:
        memory_gib = memory_gib * side * 2.0**num_oom
    rounds = math.ceil(settings.cells_per_job / side)
    wanted = Resources(
        num_nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus=cpus,
        memory_gib=memory_gib,
        hours=_hours(estimate, asked, settings, cluster, rounds),
        partition=asked.partition or "",
    )
    return _placed(wanted, partitions, named=asked.partition, cell=cell)


def _hours(
    estimate: Estimate | None, asked: Asked, settings: SlurmSettings, cluster: Cluster, rounds: int
) -> float:
    if asked.hours is not None:
        return asked.hours * rounds
    hours = cluster.hours
    if estimate is not None and estimate.wall_hours > 0:
        hours = stepped(4 * (START_HOURS + settings.time_margin * estimate.wall_hours)) / 4
    hours = max(hours * rounds, cluster.min_hours)
    return hours if cluster.max_hours is None else min(hours, cluster.max_hours)


def _placed(
    wanted: Resources, partitions: Mapping[str, Partition], *, named: str | None, cell: str
) -> Resources:
    """Chooses the smallest partition that fits; its time limit cuts the hours: a cell goes on afterwards."""
    if not partitions:
        return wanted
    if named is not None and named not in partitions:
        return wanted  # the user knows better than the profile
    choices = dict(partitions) if named is None else {named: partitions[named]}
    fitting = {name: told for name, told in choices.items() if not _misfit(wanted, told)}
    if not fitting:
        why = "; ".join(f"{name}: {_misfit(wanted, told)}" for name, told in choices.items())
        raise UserError(
            f"cell {cell} fits no partition: {describe(wanted)}",
            where=why,
            fix="cluster.partitions, or launcher.resources for these cells",
        )
    name = min(fitting, key=lambda name: _size(wanted, fitting[name]))
    limit = fitting[name].max_hours
    hours = wanted.hours if limit is None else min(wanted.hours, limit)
    return Resources(
        num_nodes=wanted.num_nodes,
        gpus_per_node=wanted.gpus_per_node,
        cpus=wanted.cpus,
        memory_gib=wanted.memory_gib,
        hours=hours,
        partition=str(name),
    )


def _misfit(wanted: Resources, has: Partition) -> str:
    pairs = (
        ("GPUs a node", wanted.gpus_per_node, has.gpus_per_node),
        ("CPUs a node", wanted.cpus, has.cpus_per_node),
        ("GiB a node", wanted.memory_gib or 0, has.memory_gib),
    )
    return ", ".join(
        f"it has {most:g} {what}" for what, need, most in pairs if most is not None and need > most
    )


def _size(wanted: Resources, has: Partition) -> tuple[bool, float, float, float]:
    """Orders partitions: long enough first, then the fewest GPUs, memory and hours."""
    infinite = math.inf
    hours = has.max_hours if has.max_hours is not None else infinite
    return (
        wanted.hours > hours,
        has.gpus_per_node if has.gpus_per_node is not None else infinite,
        has.memory_gib if has.memory_gib is not None else infinite,
        hours if wanted.hours <= hours else -hours,
    )


def describe(resources: Resources) -> str:
    """Returns ``2 nodes x (4 GPUs, 32 CPUs, 500 GiB), 12.0 h in gpu``."""
    each = [f"{resources.gpus_per_node} GPUs"] if resources.gpus_per_node else []
    each.append(f"{resources.cpus} CPUs")
    if resources.memory_gib is not None:
        each.append(f"{resources.memory_gib:g} GiB")
    nodes = (
        f"{resources.num_nodes} nodes x ({', '.join(each)})" if resources.num_nodes > 1 else ", ".join(each)
    )
    place = f" in {resources.partition}" if resources.partition else ""
    return f"{nodes}, {resources.hours:.2f} h{place}".replace(".00 h", " h")
