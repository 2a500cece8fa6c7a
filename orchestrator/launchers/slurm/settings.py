"""The settings of `launcher=slurm` and `cluster=NAME`: how cells become jobs, and what a cluster has."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.core.tree import convert
from orchestrator.costs import DEVICES, STOP_FACTOR, Estimate, Hardware
from orchestrator.errors import UserError
from orchestrator.jobs.records import NUM_DOUBLINGS, Resources
from orchestrator.launchers.base import Amount, NotNegative, Positive, check_device, check_variables, stepped


class ResourceOverride(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the cells of a selector request, instead of what the plan computes; None keeps the plan's value.

    Attributes:
        only: the selector; "" for all cells.
        gpus, nodes: of one cell.
        cpus, memory_gib: of one cell, on each of its nodes.
        hours: wall time of one cell.
        partition: the only partition that may be used.
    """

    only: str = ""
    gpus: Annotated[int, msgspec.Meta(ge=0)] | None = None
    nodes: Positive | None = None
    cpus: Positive | None = None
    memory_gib: Amount | None = None
    hours: Amount | None = None
    partition: str | None = None


class SlurmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`conf/launcher/slurm.yaml`.

    Attributes:
        max_running: most jobs of the sweep that run at once; None for as many as Slurm allows.
        max_jobs: most jobs of the sweep that wait or run at once; the rest is left to `sweep reconcile`.
        max_gpus: GPUs that the sweep may use at once, for which `hardware.moldable` chooses those of a cell.
            The scheduler's own limits see to it that it does not use more.
        cells_per_job: number of cells that share a job.
        workers_per_job: how many of these run side by side, each with its share of the job's GPUs and CPUs.
        time_margin: factor on the plan's hours.
        resources: what the cells of selectors request; later entries override earlier ones.
        bad_node_hours: how long a node on which jobs end early is excluded; 0 for never.
    """

    name: str = "slurm"
    max_running: Positive | None = None
    max_jobs: Positive | None = None
    max_gpus: Positive | None = None
    cells_per_job: Positive = 1
    workers_per_job: Positive = 1
    time_margin: Annotated[float, msgspec.Meta(ge=1)] = 1.5
    resources: tuple[ResourceOverride, ...] = ()
    bad_node_hours: NotNegative = 24.0


class Partition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the nodes of a partition have; None where it does not matter."""

    gpus_per_node: Annotated[int, msgspec.Meta(ge=0)] | None = None
    cpus_per_node: Positive | None = None
    memory_gib: Amount | None = None
    max_hours: Amount | None = None


class ClusterProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`conf/cluster/NAME.yaml`; the comments in `conf/cluster/default.yaml` explain more.

    Attributes:
        partitions: name to what its nodes have, or null to query Slurm; {} for Slurm's default partition.
        account, qos, constraint, reservation, exclusive: the options of sbatch of these names.
        device: the GPUs that memory and hours are planned for: a key of `orchestrator.costs.DEVICES`, or
            ``cpu``.
        gpus_per_node: most GPUs of one node that a cell may have.
        max_nodes: most nodes that one cell may have.
        cpus_per_gpu, cpus: CPUs on each node of a cell: for each of its GPUs there, or without GPUs.
        memory_gib: host memory on each node of a cell without an estimate of it; None for Slurm's default.
        hours: wall time of cells whose stages do not estimate it.
        min_hours, max_hours: bounds of the requested time. A longer cell is restarted from its checkpoint.
        signal_s: least seconds before the time limit at which a cell has to save its last checkpoint. A cell
            whose plan needs more gets more.
        gpu_option: whether GPUs are requested with ``--gres=gpu:N`` or ``--gpus-per-node=N``.
        gpu_type: such as ``a100``, for ``gpu:a100:N``.
        setup: shell lines that run on the node before the worker; the job ends when one of them fails.
        srun: further arguments of ``srun``, such as a container's.
        environment: for the workers, byte for byte; true becomes ``true``, null leaves a variable alone.
        python: the interpreter on the nodes; None for the one that runs the command.
        scratch: a folder on the node for temporary files, emptied after a job.
        cache: a folder on the node for the caches of compilers, which is kept.
        logs: folder of the jobs' own logs; None for the store.
        node_check: a shell command that must succeed before a worker claims anything.
        sbatch: options of sbatch; they replace ours, and null or false drops one.
        settle_s: seconds after which a submission that Slurm does not list was never accepted.
    """

    partitions: dict[str, Partition | None] = {}
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool = False
    device: str = "a100"
    gpus_per_node: Annotated[int, msgspec.Meta(ge=0)] = 8
    max_nodes: Positive = 1
    cpus_per_gpu: Positive = 8
    cpus: Positive = 1
    memory_gib: Amount | None = None
    hours: Amount = 4.0
    min_hours: Amount = 0.5
    max_hours: Amount | None = None
    signal_s: Annotated[int, msgspec.Meta(ge=0)] = 120
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
    settle_s: NotNegative = 300.0

    @property
    def hardware(self) -> Hardware | None:
        """What one cell may have; None for a CPU cluster if the profile does not set `memory_gib`."""
        if self.device != "cpu":
            most = self.gpus_per_node * self.max_nodes
            return Hardware(device=self.device, max_gpus=most, **DEVICES[self.device]._asdict())
        if self.memory_gib is None:
            return None
        return Hardware(
            device="cpu", memory_gib=self.memory_gib, peak_tflops=0.05 * self.cpus, max_gpus=self.max_nodes
        )


def slurm_settings(tree: Mapping[str, Any]) -> SlurmSettings:
    """Convert and validate the config's `launcher`.

    Raises:
        UserError: an unknown key, a wrong type or an invalid number.
    """
    settings = convert(dict(tree), SlurmSettings, key="launcher")
    # a worker without a cell would leave its share of the devices idle
    if settings.workers_per_job > settings.cells_per_job:
        raise UserError(
            f"launcher.workers_per_job={settings.workers_per_job} workers would share"
            f" launcher.cells_per_job={settings.cells_per_job} cells",
            fix=f"launcher.cells_per_job={settings.workers_per_job}",
        )
    return settings


_MAY_LACK = ("account", "qos", "reservation", "gpu_type", "constraint", "python", "node_check")
"""Texts of a profile that may be null."""


def _check_texts(cluster: ClusterProfile) -> None:
    """Refuse texts that Slurm could not take: a name of two words, an argument of two lines or of none."""
    words = {name: getattr(cluster, name) for name in ("account", "qos", "reservation", "gpu_type")}
    words |= {f"partitions.{name}": name for name in cluster.partitions}
    for name, text in words.items():
        if text is not None and re.fullmatch(r"\S+", text) is None:
            raise UserError(f"cluster.{name} is {text!r}", allowed="one word, or null for none")
    lines = {name: getattr(cluster, name) for name in ("constraint", "python", "node_check")}
    lines |= {f"srun[{index}]": text for index, text in enumerate(cluster.srun)}
    for name, text in lines.items():
        if text is not None and name != "node_check" and not (text.strip() and text.isprintable()):
            raise UserError(f"cluster.{name} is {text!r}", allowed="text of one line")


def cluster_profile(tree: Mapping[str, Any]) -> ClusterProfile:
    """Convert and validate the config's `cluster`.

    Raises:
        UserError: an unknown key, a wrong type or an invalid value.
    """
    # A blank text is none, as of a variable that is not set: ${oc.env:SLURM_ACCOUNT,""}
    blank = {name for name in _MAY_LACK if isinstance(text := tree.get(name), str) and not text.strip()}
    given = {**tree, **dict.fromkeys(blank)}
    cluster = convert(given, ClusterProfile, key="cluster")
    check_device(cluster.device, "cluster.device")
    _check_texts(cluster)
    check_variables(cluster.environment, "cluster.environment")
    for variable, value in cluster.environment.items():
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"cluster.environment.{variable} holds a zero byte, which no variable can")
    for line in cluster.setup:
        if line.lstrip().startswith("#SBATCH"):  # sbatch reads none after the first command
            fix = "cluster.sbatch.OPTION=VALUE"
            raise UserError(f"cluster.setup: {line.strip()!r} would have no effect", fix=fix)
    for name in ("scratch", "cache", "logs"):
        folder = getattr(cluster, name)
        if folder is not None and not folder.startswith(("/", "$")):
            raise UserError(
                f"cluster.{name} is {folder!r}",
                allowed="an absolute path, or one that begins with a variable",
            )
    # the launch makes this folder, so it cannot begin with a variable of the node
    if cluster.logs is not None and not Path(cluster.logs).is_absolute():
        raise UserError(
            f"cluster.logs is {cluster.logs!r}", allowed="an absolute path: it is made before jobs start"
        )
    return cluster


START_HOURS = 0.25
"""Hours that are added to what the plan counts: for imports, shared stages and loading."""


def resources_of(
    estimate: Estimate | None,
    asked: ResourceOverride,
    settings: SlurmSettings,
    cluster: ClusterProfile,
    partitions: Mapping[str, Partition],
    *,
    num_oom: int = 0,
    num_late: int = 0,
    cell: str = "",
    chosen_gpus: int = 0,
) -> Resources:
    """Return what the job of a cell requests.

    The settings come first, then the cell's estimate, then the profile. Cells that run side by side in a job
    add up their devices and memory; cells that run one after another add up their hours. With four cells in a
    job and two workers, for example:

        one cell    1 GPU,    8 CPUs,  3 h
        their job   2 GPUs,  16 CPUs,  6 h    (two rounds of two cells)

    Args:
        estimate: of the cell's unfinished stages together; None if none of them has one.
        asked: what the settings contain for the cell.
        settings: of the launcher.
        cluster: the profile.
        partitions: the cluster's partitions and what they have; {} for Slurm's default partition.
        num_oom: how many of the cell's jobs ran out of host memory; each doubles the request.
        num_late: how many of them ended at their time limit before a checkpoint; each doubles the hours.
        cell: its id, for the message.
        chosen_gpus: the GPUs of the estimate, if they were chosen; 0 if they are the fewest that suffice.

    Raises:
        UserError: no partition is large enough.
    """
    gpus = asked.gpus
    if gpus is None:
        gpus = estimate.num_gpus if estimate and cluster.device != "cpu" else 0
    # with fewer GPUs than a node has, one node
    nodes = asked.nodes or max(1, math.ceil(gpus / max(1, cluster.gpus_per_node)))
    # cells side by side each need all that one cell needs
    side = settings.workers_per_job
    cpus = (asked.cpus or (cluster.cpus_per_gpu * math.ceil(gpus / nodes) if gpus else cluster.cpus)) * side
    memory_gib = _memory_gib(estimate, asked, cluster, nodes)
    # the need is unknown after a failure, so the request doubles until it suffices
    memory_gib = None if memory_gib is None else memory_gib * side * 2.0**num_oom
    rounds = math.ceil(settings.cells_per_job / side)
    wanted = Resources(
        num_nodes=nodes,
        gpus_per_node=math.ceil(gpus / nodes) * side,
        cpus=cpus,
        memory_gib=memory_gib,
        hours=_hours(estimate, asked, settings, cluster, rounds, 2.0**num_late),
        partition=asked.partition or "",
        signal_s=_signal_s(estimate, cluster),
        chosen_gpus=chosen_gpus if asked.gpus is None else 0,
    )
    placed = _placed(wanted, partitions, named=asked.partition, cell=cell)
    limits = (cluster.max_hours, has.max_hours if (has := partitions.get(placed.partition)) else None)
    is_longest = asked.hours is not None or any(limit and placed.hours >= limit for limit in limits)
    return msgspec.structs.replace(placed, rungs=_rungs(placed, num_oom, num_late, is_longest=is_longest))


def _memory_gib(
    estimate: Estimate | None, asked: ResourceOverride, cluster: ClusterProfile, nodes: int
) -> float | None:
    """Return the host memory that one cell requests of a node; None for the cluster's default."""
    if asked.memory_gib is not None:
        return asked.memory_gib
    if estimate is not None and estimate.host_memory_gib:
        return stepped(estimate.host_memory_gib / nodes)
    return cluster.memory_gib


def _rungs(
    placed: Resources, num_oom: int, num_late: int, *, is_longest: bool
) -> tuple[tuple[Cause, int, int], ...]:
    """Return which requests double after a failure: the cause, how often this one was doubled, and at most.

    Memory that nothing sets cannot double, nor can hours that are the longest allowed.
    """
    counts = {Cause.OOM_HOST: num_oom} if placed.memory_gib is not None else {}
    counts |= {} if is_longest and not num_late else {Cause.TIMEOUT: num_late}
    return tuple((cause, min(count, NUM_DOUBLINGS), NUM_DOUBLINGS) for cause, count in counts.items())


def _signal_s(estimate: Estimate | None, cluster: ClusterProfile) -> float:
    """Return how long before its limit a job must be signalled, 0 if the profile's time suffices."""
    needed_s = STOP_FACTOR * estimate.stop_s if estimate is not None else 0.0
    return stepped(needed_s) if needed_s > cluster.signal_s else 0.0


def _hours(
    estimate: Estimate | None,
    asked: ResourceOverride,
    settings: SlurmSettings,
    cluster: ClusterProfile,
    rounds: int,
    factor: float,
) -> float:
    """Return the wall time of a job that works on its cells in so many rounds, times a factor."""
    if asked.hours is not None:
        # a number that the user sets is used as it is: without margin, step and bounds
        return asked.hours * rounds
    hours = cluster.hours
    if estimate is not None and estimate.wall_hours > 0:
        # rounded up in steps from a quarter of an hour on, so that similar cells share an array
        hours = stepped(4 * (START_HOURS + settings.time_margin * estimate.wall_hours)) / 4
    hours = max(hours * rounds, cluster.min_hours) * factor
    return hours if cluster.max_hours is None else min(hours, cluster.max_hours)


def _placed(
    wanted: Resources, partitions: Mapping[str, Partition], *, named: str | None, cell: str
) -> Resources:
    """Choose the smallest partition that fits.

    The partition's time limit cuts the hours: a cell that needs more continues in a restart of its job.
    """
    if not partitions:
        return wanted
    if named is not None and named not in partitions:
        return wanted  # Slurm may have partitions that the profile does not list, so it decides
    choices = dict(partitions) if named is None else {named: partitions[named]}
    fitting = {name: partition for name, partition in choices.items() if not _misfit(wanted, partition)}
    if not fitting:
        why = "; ".join(f"{name}: {_misfit(wanted, partition)}" for name, partition in choices.items())
        raise UserError(
            f"cell {cell} fits no partition: {describe(wanted)}",
            where=why,
            fix="cluster.partitions, or launcher.resources for these cells",
        )
    name = min(fitting, key=lambda name: _size(wanted, fitting[name]))
    limit = fitting[name].max_hours
    hours = wanted.hours if limit is None else min(wanted.hours, limit)
    return msgspec.structs.replace(wanted, hours=hours, partition=str(name))


def _misfit(wanted: Resources, has: Partition) -> str:
    """Return what a partition lacks for a request, "" if it fits."""
    pairs = (
        ("GPUs a node", wanted.gpus_per_node, has.gpus_per_node),
        ("CPUs a node", wanted.cpus, has.cpus_per_node),
        ("GiB a node", wanted.memory_gib or 0, has.memory_gib),
    )
    return ", ".join(
        f"it has {most:g} {what}" for what, need, most in pairs if most is not None and need > most
    )


def _size(wanted: Resources, has: Partition) -> tuple[bool, float, float, float]:
    """Return the sort key of partitions: those with enough time first, then by GPUs, memory and hours."""
    infinite = math.inf
    hours = has.max_hours if has.max_hours is not None else infinite
    return (
        wanted.hours > hours,
        has.gpus_per_node if has.gpus_per_node is not None else infinite,
        has.memory_gib if has.memory_gib is not None else infinite,
        # among those with enough time the shortest, among the others the longest
        hours if wanted.hours <= hours else -hours,
    )


def describe(resources: Resources) -> str:
    """Return ``2 nodes x (4 GPUs, 32 CPUs, 500 GiB), 12.0 h in gpu``."""
    each = [f"{resources.gpus_per_node} GPUs"] if resources.gpus_per_node else []
    each.append(f"{resources.cpus} CPUs")
    if resources.memory_gib is not None:
        each.append(f"{resources.memory_gib:g} GiB")
    nodes = (
        f"{resources.num_nodes} nodes x ({', '.join(each)})" if resources.num_nodes > 1 else ", ".join(each)
    )
    place = f" in {resources.partition}" if resources.partition else ""
    return f"{nodes}, {resources.hours:.2f} h{place}".replace(".00 h", " h")
