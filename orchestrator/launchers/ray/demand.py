"""What a driver says of its workers, for people. Pure."""

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
    """Returns ``3 workers run, 2 wait``."""
    runs = f"{num_running} worker{'' if num_running == 1 else 's'} {'runs' if num_running == 1 else 'run'}"
    return f"{runs}, {num_pending} wait{'s' if num_pending == 1 else ''}" if num_pending else runs


def amounts(resources: Resources) -> dict[str, float]:
    """Returns what a worker asks for, in Ray's names and units."""
    asked: dict[str, float] = {"GPU": resources.gpus_per_node, "CPU": resources.cpus}
    if resources.memory_gib is not None:
        asked["memory"] = resources.memory_gib * GIB
    if resources.accelerator:
        asked[f"accelerator_type:{resources.accelerator}"] = 0.001
    asked |= dict(resources.custom)
    return {name: amount for name, amount in asked.items() if amount}


def described(amounts: Mapping[str, float]) -> str:
    """Returns ``4 GPU, 16 CPU, 64 GiB``."""
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
    """Says what workers wait for: what is asked, what the largest free node has, and if none could ever do.

    Args:
        resources: of one worker.
        nodes: the nodes that live, by a name for people.
    """
    asked = amounts(resources)
    text = f" for {described(asked)}"
    if not nodes:
        return text
    name, best = max(nodes.items(), key=lambda item: _shares(asked, item[1].free))
    told = described({key: round(best.free.get(key, 0.0), 4) for key in asked})
    text += f"; the largest free node is {name} with {told}"
    if not any(fits(resources, node.total) for node in nodes.values()):
        text += "; no node is large enough, busy or not"
    return text


def fits(resources: Resources, has: Mapping[str, float]) -> bool:
    """Whether a worker could run on a node that has so much, were it free."""
    return all(has.get(key, 0.0) >= amount for key, amount in amounts(resources).items())


def _shares(asked: Mapping[str, float], has: Mapping[str, float]) -> list[float]:
    """How much a node has of each resource that is asked for, the one that it has least of first."""
    return sorted(min(1.0, has.get(key, 0.0) / amount) for key, amount in asked.items())
