"""How many workers a driver has and what they wait for, as text for users. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from orchestrator.jobs.records import Resources

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
    told = described({key: round(best.free.get(key, 0.0), 4) for key in asked})
    text += f"; the largest free node is {name} with {told}"
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
