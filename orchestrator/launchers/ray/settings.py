"""The settings of `launcher=ray`, and what workers request by them, for Ray and as text for users."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.core.settings import Policy
from orchestrator.core.tree import convert
from orchestrator.costs import STOP_FACTOR, Estimate
from orchestrator.errors import UserError
from orchestrator.jobs.records import NUM_DOUBLINGS, Resources
from orchestrator.launchers.base import Amount, NotNegative, Positive, check_device, check_variables, stepped

AUTO, LOCAL = "auto", "local"
"""Addresses with a meaning of their own: the cluster of this machine, and a Ray for this launch alone."""


class WorkerOverride(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What workers of a selector's cells request, instead of what the plan computes; None keeps the plan's
    value.

    Attributes:
        only: the selector; "" for all cells.
        gpus: may be a fraction, for small cells that share one.
        cpus: number of CPUs.
        memory_gib: host memory.
        accelerator: the type of GPU, by Ray's name.
        custom: custom resources of the cluster, by name.
    """

    only: str = ""
    gpus: NotNegative | None = None
    cpus: Positive | None = None
    memory_gib: Amount | None = None
    accelerator: str | None = None
    custom: dict[str, float] = {}


class RaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`conf/launcher/ray.yaml`, whose comments explain more.

    Attributes:
        address: ``http://HOST:8265``, ``auto`` or ``local``.
        max_workers: most workers that live at once; None for as many as there is work for and the cluster
            takes.
        max_gpus: GPUs that the sweep may use at once, for which `hardware.moldable` chooses those of a cell;
            None for as many as the cluster has.
        max_pending: most workers that wait for resources at once, which is the demand that the autoscaler
            sees.
        idle_s: a worker that finds nothing to claim for this long leaves.
        cpus, cpus_per_gpu: of a worker without GPUs, and for each GPU of others.
        memory_gib: host memory of a worker whose cell has no estimate of it; None to request none.
        device, gpus_per_node: what the nodes have; None to query the cluster.
        resources: what workers of selected cells request; later entries override earlier ones.
        environment: for the workers.
        python: the interpreter of the driver, on the head node.
        accept: packages whose version may differ between here and the cluster.
        settle_s: seconds of silence after which a job that the cluster does not list is over.
    """

    name: str = "ray"
    address: str = AUTO
    max_workers: Positive | None = None
    max_gpus: Positive | None = None
    max_pending: Positive = 8
    idle_s: NotNegative = 20.0
    cpus: Positive = 1
    cpus_per_gpu: Positive = 4
    memory_gib: float | None = None
    device: str | None = None
    gpus_per_node: int | None = None
    resources: tuple[WorkerOverride, ...] = ()
    environment: dict[str, str | int | float | bool] = {}
    python: str = "python"
    accept: tuple[str, ...] = ()
    settle_s: NotNegative = 120.0

    @property
    def is_remote(self) -> bool:
        """Whether the cluster is reached from outside."""
        return self.address not in (AUTO, LOCAL)


def ray_settings(tree: Mapping[str, Any]) -> RaySettings:
    """Convert and validate the config's `launcher`.

    Raises:
        UserError: an unknown key, a wrong type or an invalid value.
    """
    settings = convert(dict(tree), RaySettings, key="launcher")
    _check_address(settings.address)
    if settings.device is not None:
        check_device(settings.device, "launcher.device")
    for asked in settings.resources:
        _check_asked(asked)
    check_variables(settings.environment, "launcher.environment")
    return settings


def _check_address(address: str) -> None:
    """Raise `UserError` for an address that is no dashboard's."""
    allowed = "http://HOST:8265 (the dashboard's), auto (on the cluster) or local (a Ray of its own)"
    # a common mistake, so it gets its own explanation
    if address.startswith("ray://"):
        raise UserError(
            f"launcher.address={address} is a Ray Client's",
            where="a client and its cluster must be of one version, and a lost connection ends all",
            allowed=allowed,
        )
    if address not in (AUTO, LOCAL) and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", address):
        raise UserError(f"launcher.address is {address!r}", allowed=allowed)


def _check_asked(asked: WorkerOverride) -> None:
    """Raise `UserError` for amounts that Ray would refuse."""
    of = f"of {asked.only!r}" if asked.only else "of all cells"
    # Ray shares a GPU among workers, but gives no worker one and a half
    if asked.gpus is not None and asked.gpus > 1 and asked.gpus != int(asked.gpus):
        raise UserError(
            f"launcher.resources: gpus {of} is {asked.gpus:g}", allowed="a fraction of one, or a whole number"
        )
    for name, amount in asked.custom.items():
        if not amount > 0:
            raise UserError(f"launcher.resources: custom.{name} {of} is {amount}", allowed="more than 0")
        # Ray's own resources have settings of their own, which this would contradict
        if name in ("CPU", "GPU", "memory"):
            raise UserError(
                f"launcher.resources: custom.{name} {of}", allowed="cpus, gpus or memory_gib for it"
            )


GIB = 2**30


class NodeResources(NamedTuple):
    """A node of the cluster: what is free on it, and what it has, in Ray's names and units."""

    free: Mapping[str, float]
    total: Mapping[str, float]


def demand(num_running: int, num_pending: int) -> str:
    """Return text such as ``3 workers run, 2 wait``."""
    runs = f"{num_running} worker{'' if num_running == 1 else 's'} {'runs' if num_running == 1 else 'run'}"
    return f"{runs}, {num_pending} wait{'s' if num_pending == 1 else ''}" if num_pending else runs


def amounts(resources: Resources) -> dict[str, float]:
    """Return what a worker requests, in Ray's names and units."""
    asked: dict[str, float] = {"GPU": resources.gpus_per_node, "CPU": resources.cpus}
    if resources.memory_gib is not None:
        asked["memory"] = resources.memory_gib * GIB
    if resources.accelerator:
        asked[f"accelerator_type:{resources.accelerator}"] = 0.001  # as Ray itself requests it
    asked |= dict(resources.custom)
    return {name: amount for name, amount in asked.items() if amount}


def described(amounts: Mapping[str, float]) -> str:
    """Return text such as ``4 GPU, 16 CPU, 64 GiB``."""
    parts = []
    for name, amount in amounts.items():
        if name == "memory":
            parts.append(f"{amount / GIB:.3g} GiB")
        elif name.startswith("accelerator_type:"):
            parts.append(f"{'' if amount else 'no '}{name.partition(':')[2]}")
        else:
            parts.append(f"{amount:g} {name}")
    return ", ".join(parts)


def waits_for(resources: Resources, nodes: Mapping[str, NodeResources]) -> str:
    """Return what workers wait for: their request, the largest free node, and whether any node could ever
    fit.

    Args:
        resources: of one worker.
        nodes: the live nodes, by a readable name.
    """
    asked = amounts(resources)
    text = f" for {described(asked)}"
    if not nodes:
        return text
    name, best = max(nodes.items(), key=lambda item: _shares(asked, item[1].free))
    free = described({key: round(best.free.get(key, 0.0), 4) for key in asked})
    text += f"; the largest free node is {name} with {free}"
    # waiting is in vain then, unless an autoscaler adds larger nodes
    if not any(fits(resources, node.total) for node in nodes.values()):
        text += "; no node is large enough, busy or not"
    return text


def fits(resources: Resources, has: Mapping[str, float]) -> bool:
    """Return whether a worker would fit on a node, if all of that node were free."""
    return all(has.get(key, 0.0) >= amount for key, amount in amounts(resources).items())


def _shares(asked: Mapping[str, float], has: Mapping[str, float]) -> list[float]:
    """Return what a node has of each requested resource, as a sorted list of shares.

    The scarcest resource comes first, so that comparing two lists compares the nodes by their bottleneck.
    """
    return sorted(min(1.0, has.get(key, 0.0) / amount) for key, amount in asked.items())


def resources_of(
    estimate: Estimate | None,
    asked: Mapping[str, Any],
    settings: RaySettings,
    *,
    has_gpus: bool,
    chosen_gpus: int = 0,
    num_oom: int = 0,
    most_gib: float = math.inf,
) -> Resources:
    """Return what a worker requests.

    Args:
        estimate: of the cell's unfinished stages together; None if none of them has one.
        asked: fields of `WorkerOverride` that the settings set for the cell.
        settings: of the launcher.
        has_gpus: whether the nodes have any.
        chosen_gpus: the GPUs of the estimate, if they were chosen; 0 if they are the fewest that suffice.
        num_oom: how often the cell ran out of host memory; each doubles the request.
        most_gib: host memory of the largest node that is there.
    """
    gpus = asked.get("gpus", estimate.num_gpus if estimate and has_gpus else 0)
    memory_gib = asked.get("memory_gib")
    if memory_gib is None and estimate is not None and estimate.host_memory_gib:
        memory_gib = stepped(estimate.host_memory_gib)
    memory_gib = settings.memory_gib if memory_gib is None else memory_gib
    rungs: tuple[tuple[Cause, int, int], ...] = ()
    if memory_gib is not None:
        rungs = ((Cause.OOM_HOST, min(num_oom, NUM_DOUBLINGS), NUM_DOUBLINGS),)
        memory_gib = max(memory_gib, min(memory_gib * 2.0**num_oom, most_gib))
    stop_s = STOP_FACTOR * estimate.stop_s if estimate is not None else 0.0
    return Resources(
        gpus_per_node=int(gpus) if gpus == int(gpus) else gpus,
        cpus=asked.get("cpus") or (settings.cpus_per_gpu * max(1, int(gpus)) if gpus else settings.cpus),
        memory_gib=memory_gib,
        accelerator=asked.get("accelerator", ""),
        custom=tuple(sorted(asked.get("custom", {}).items())),
        # Short times need no entry: cells that differ in it would need workers of their own.
        signal_s=stepped(stop_s) if stop_s > Policy().grace_s else 0.0,
        chosen_gpus=0 if "gpus" in asked else chosen_gpus,
        rungs=rungs,
    )


def grace_of(policy: Policy, resources: Resources) -> float:
    """Return how many seconds a worker may take to save and end: as configured, or as planned if longer."""
    return max(policy.grace_s, resources.signal_s)
