"""What `launcher=slurm` and `cluster=NAME` say: how cells become jobs, and what a cluster wants to know."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from orchestrator.core.tree import convert
from orchestrator.costs import DEVICES, Estimate, Hardware
from orchestrator.errors import UserError, nearest
from orchestrator.jobs.records import Resources
from orchestrator.launchers.jobs import stepped


class ResourceOverride(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What cells that a selector names ask for, over what the plan says; None leaves it to the plan."""

    only: str = ""
    gpus: int | None = None
    nodes: int | None = None
    cpus: int | None = None
    memory_gib: float | None = None
    hours: float | None = None
    partition: str | None = None


class SlurmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`conf/launcher/slurm.yaml`.

    Attributes:
        max_running: jobs of the sweep that may run at once; None for as many as Slurm lets.
        max_jobs: jobs of the sweep that may wait or run at once; the rest is held for `sweep reconcile`.
        cells_per_job: cells that share a job.
        workers_per_job: how many of them run side by side, each with its part of the job's GPUs and CPUs.
        time_margin: factor on the plan's hours.
        resources: what the cells of a selector ask for; a later one outranks an earlier one.
        bad_node_hours: how long a node on which jobs fail fast is left out; 0 for never.
    """

    name: str = "slurm"
    max_running: int | None = None
    max_jobs: int | None = None
    cells_per_job: int = 1
    workers_per_job: int = 1
    time_margin: float = 1.5
    resources: tuple[ResourceOverride, ...] = ()
    bad_node_hours: float = 24.0


class Partition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the nodes of a partition have; None where it does not matter."""

    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    memory_gib: float | None = None
    max_hours: float | None = None


class ClusterProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`conf/cluster/NAME.yaml`; the comments in `conf/cluster/default.yaml` say more.

    Attributes:
        partitions: name to what it has, or null to ask Slurm; {} for Slurm's own default partition.
        device: a key of `orchestrator.costs.DEVICES` that memory and hours are planned for, or ``cpu``.
        gpus_per_node: that a cell may have of one node.
        max_nodes: that one cell may have.
        memory_gib: host memory of a job where the plan does not say; None for Slurm's own default.
        hours: wall time of cells whose stages do not say what they cost.
        min_hours, max_hours: bounds of what is asked for; a longer cell is started anew, from its checkpoint.
        signal_s: seconds before the time limit at which a cell is asked for its checkpoint.
        gpu_option: whether GPUs are asked for by ``--gres=gpu:N`` or ``--gpus-per-node=N``.
        gpu_type: such as ``a100``, for ``gpu:a100:N``.
        setup: shell lines that run on the node before the worker; the job ends when one of them fails.
        srun: further arguments of ``srun``, such as a container's.
        environment: for the workers, byte for byte; true is ``true``, null leaves a variable alone.
        python: the interpreter on the nodes; None for the one that runs the command.
        scratch: a folder on the node for temporary files, emptied after a job.
        cache: a folder on the node for compilers' caches, which stays.
        logs: folder of the jobs' own logs; None for the store.
        node_check: a shell command that must succeed before a worker claims anything.
        sbatch: options of sbatch; they replace ours, and null or false drops one.
        settle_s: seconds after which a submission that Slurm does not know was never accepted.
    """

    partitions: dict[str, Partition | None] = {}
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool = False
    device: str = "a100"
    gpus_per_node: int = 8
    max_nodes: int = 1
    cpus_per_gpu: int = 8
    cpus: int = 1
    memory_gib: float | None = None
    hours: float = 4.0
    min_hours: float = 0.5
    max_hours: float | None = None
    signal_s: int = 120
    gpu_option: Literal["gres", "gpus-per-node"] = "gres"
    gpu_type: str | None = None
    setup: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    environment: dict[str, str | int | float | bool | None] = {}
    python: str | None = None
    scratch: str | None = None
    cache: str | None = None
    logs: str | None = None
    node_check: str | None = None
    sbatch: dict[str, str | int | float | bool | None] = {}
    settle_s: float = 300.0

    @property
    def hardware(self) -> Hardware | None:
        """What one cell may have; None for a cluster of CPUs whose memory is not told."""
        if self.device != "cpu":
            known = DEVICES[self.device]
            return Hardware(
                device=self.device,
                memory_gib=known.memory_gib,
                peak_tflops=known.peak_tflops,
                max_gpus=self.gpus_per_node * self.max_nodes,
            )
        if self.memory_gib is None:
            return None
        return Hardware(
            device="cpu", memory_gib=self.memory_gib, peak_tflops=0.05 * self.cpus, max_gpus=self.max_nodes
        )


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def slurm_settings(tree: Mapping[str, Any]) -> SlurmSettings:
    """Types and checks `launcher`.

    Raises:
        UserError: an unknown key, a wrong type or a number that makes no sense.
    """
    settings = convert(dict(tree), SlurmSettings, key="launcher")
    for name in ("max_running", "max_jobs", "cells_per_job", "workers_per_job"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"launcher.{name} is {value}", allowed="at least 1")
    if settings.workers_per_job > settings.cells_per_job:
        raise UserError(
            f"launcher.workers_per_job={settings.workers_per_job} workers would share"
            f" launcher.cells_per_job={settings.cells_per_job} cells",
            fix=f"launcher.cells_per_job={settings.workers_per_job}",
        )
    if not settings.time_margin >= 1:
        raise UserError(f"launcher.time_margin is {settings.time_margin}", allowed="at least 1")
    if not settings.bad_node_hours >= 0:
        raise UserError(f"launcher.bad_node_hours is {settings.bad_node_hours}", allowed="at least 0")
    for asked in settings.resources:
        selector = asked.only
        for name in ("nodes", "cpus"):
            if (number := getattr(asked, name)) is not None and number < 1:
                raise UserError(
                    f"launcher.resources: {name} of {selector!r} is {number}", allowed="at least 1"
                )
        if (asked.gpus or 0) < 0:
            raise UserError(f"launcher.resources: gpus of {selector!r} is {asked.gpus}", allowed="at least 0")
        for name in ("memory_gib", "hours"):
            if (amount := getattr(asked, name)) is not None and not amount > 0:
                raise UserError(
                    f"launcher.resources: {name} of {selector!r} is {amount}", allowed="more than 0"
                )
    return settings


def cluster_profile(tree: Mapping[str, Any]) -> ClusterProfile:
    """Types and checks `cluster`.

    Raises:
        UserError: an unknown key, a wrong type or a value that makes no sense.
    """
    cluster = convert(dict(tree), ClusterProfile, key="cluster")
    if cluster.device != "cpu" and cluster.device not in DEVICES:
        raise UserError(
            f"unknown device {cluster.device!r} in cluster.device",
            allowed=nearest(cluster.device, [*DEVICES, "cpu"]),
        )
    for name in ("max_nodes", "cpus_per_gpu", "cpus"):
        if getattr(cluster, name) < 1:
            raise UserError(f"cluster.{name} is {getattr(cluster, name)}", allowed="at least 1")
    for name in ("gpus_per_node", "signal_s", "settle_s"):
        if not getattr(cluster, name) >= 0:
            raise UserError(f"cluster.{name} is {getattr(cluster, name)}", allowed="at least 0")
    for name in ("hours", "min_hours", "max_hours", "memory_gib"):
        if (value := getattr(cluster, name)) is not None and not value > 0:
            raise UserError(f"cluster.{name} is {value}", allowed="more than 0")
    for variable, value in cluster.environment.items():
        if not _VARIABLE.fullmatch(variable):
            raise UserError(f"{variable!r} in cluster.environment is no name of a variable")
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"cluster.environment.{variable} holds a zero byte, which no variable can")
    for name in ("scratch", "cache", "logs"):
        folder = getattr(cluster, name)
        if folder is not None and not folder.startswith(("/", "$")):
            raise UserError(
                f"cluster.{name} is {folder!r}",
                allowed="an absolute path, or one that begins with a variable",
            )
    if cluster.logs is not None and not Path(cluster.logs).is_absolute():
        raise UserError(
            f"cluster.logs is {cluster.logs!r}", allowed="an absolute path: it is made before jobs start"
        )
    return cluster


START_HOURS = 0.25
"""Ours: imports, shared stages and loading, beside what the plan counts."""


def resources_of(
    estimate: Estimate | None,
    asked: ResourceOverride,
    settings: SlurmSettings,
    cluster: ClusterProfile,
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
    estimate: Estimate | None,
    asked: ResourceOverride,
    settings: SlurmSettings,
    cluster: ClusterProfile,
    rounds: int,
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
