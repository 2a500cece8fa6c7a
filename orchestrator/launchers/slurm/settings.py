"""What `launcher=slurm` and `cluster=NAME` say: how cells become jobs, and what a cluster wants to know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from orchestrator.core.typed import typed
from orchestrator.costs import DEVICES, Hardware
from orchestrator.errors import UserError, nearest


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
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
    resources: tuple[Asked, ...] = ()
    bad_node_hours: float = 24.0


class Partition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the nodes of a partition have; None where it does not matter."""

    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    memory_gib: float | None = None
    max_hours: float | None = None


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
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
    settings = typed(dict(tree), SlurmSettings, key="launcher")
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


def cluster_profile(tree: Mapping[str, Any]) -> Cluster:
    """Types and checks `cluster`.

    Raises:
        UserError: an unknown key, a wrong type or a value that makes no sense.
    """
    cluster = typed(dict(tree), Cluster, key="cluster")
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
