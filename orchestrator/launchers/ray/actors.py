"""The one door to `ray`: a driver's connection to its cluster, and its workers there as actors."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import ray
from ray import cloudpickle
from ray._private import services
from ray.dashboard.utils import ray_address_to_api_server_url
from ray.exceptions import GetTimeoutError, RayError

from orchestrator.core.failure import Cause
from orchestrator.entry import socket_folder
from orchestrator.jobs.records import Resources
from orchestrator.launchers.ray import actor as slots
from orchestrator.launchers.ray import causes
from orchestrator.launchers.ray.demand import NodeResources, fits

cloudpickle.register_pickle_by_value(slots)

CONNECT_S = 5.0
MONITOR = ("memory_usage_threshold", "memory_monitor_refresh_ms")
DRAIN_S = 2.0
"""How often to ask which nodes are about to go."""


class Ended(NamedTuple):
    """A worker that is no more.

    Attributes:
        slot: its number.
        node: the id of its node, "" when it never had one.
        address: of the node.
        code: of the process; None when the actor or its node was lost.
        said: its last words, or why it was lost.
        told: whether this driver had asked it to end.
        cause: what an attempt counts as that it held.
    """

    slot: int
    node: str
    address: str
    code: int | None
    said: str
    told: bool = False
    cause: Cause = Cause.NODE_LOST


class _Worker:
    def __init__(self, slot: int, actor: Any, run: Any) -> None:
        self.slot, self.actor, self.run = slot, actor, run
        self.where_ref = actor.where.remote()
        self.node = self.address = ""
        self.is_told_to_stop = False


class Pool:
    """The workers of one driver.

    Args:
        address: ``auto`` for the cluster that this process runs on, ``local`` for a Ray of its own.
        resources: of each worker.
    """

    def __init__(self, address: str, resources: Resources) -> None:
        os.environ.setdefault("RAY_TMPDIR", socket_folder())  # else TMPDIR: its sockets need short paths
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            **({"_node_ip_address": "127.0.0.1"} if address == "local" else {}),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        self._resources = resources
        self._workers: dict[int, _Worker] = {}
        self._drained_s = 0.0
        self._draining: frozenset[str] = frozenset()

    def start(
        self,
        slot: int,
        argv: list[str],
        environment: Mapping[str, str],
        folder: str,
        *,
        avoid: Collection[str],
    ) -> None:
        """Asks Ray for a worker; it waits until there are resources for it.

        Args:
            slot: its number, which no other of this driver had.
            argv: what it runs, after the interpreter.
            environment: over that of the node.
            folder: its working folder, if the node has it.
            avoid: ids of nodes on which none should run, if another is large enough.
        """
        if not any(node not in avoid and fits(self._resources, has) for node, has in self._totals().items()):
            avoid = ()
        actor = ray.remote(slots.Slot).options(**options(self._resources, avoid)).remote()
        run = actor.run.remote(argv, dict(environment), folder)
        self._workers[slot] = _Worker(slot, actor, run)

    @property
    def pending(self) -> list[int]:
        """The workers that wait for resources."""
        return [worker.slot for worker in self._workers.values() if not worker.node]

    @property
    def running(self) -> dict[int, str]:
        """The workers that have a node, each with the node's address."""
        return {worker.slot: worker.address for worker in self._workers.values() if worker.node}

    def drop(self, slot: int) -> None:
        """Ends a worker at once, as it waits or where it is."""
        ray.kill(self._workers.pop(slot).actor)

    def stop(self, chosen: Callable[[str], bool] = lambda node: True) -> None:
        """Asks the workers on some nodes to save a checkpoint and to end; those that wait are dropped."""
        for worker in list(self._workers.values()):
            if not worker.node:
                self.drop(worker.slot)
            elif not worker.is_told_to_stop and chosen(worker.node):
                worker.is_told_to_stop = True
                worker.actor.stop.remote()

    def wait(self, timeout_s: float) -> Iterator[Ended]:
        """Waits until something happens; yields the workers that have ended."""
        refs = {worker.run: worker for worker in self._workers.values()}
        refs |= {worker.where_ref: worker for worker in self._workers.values() if not worker.node}
        if not refs:
            time.sleep(timeout_s)
            return
        ready, _ = ray.wait(list(refs), num_returns=1, timeout=timeout_s)
        if ready:  # and whatever else has happened by now
            ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        for ref in ready:
            worker = refs[ref]
            if ref == worker.where_ref:
                try:
                    worker.node, worker.address = ray.get(ref)
                except RayError:
                    continue  # its run tells why
            elif worker.slot in self._workers:
                yield self._ended(worker)

    def _ended(self, worker: _Worker) -> Ended:
        del self._workers[worker.slot]
        try:
            told = ray.get(worker.run, timeout=10)
        except (RayError, GetTimeoutError) as error:
            ray.kill(worker.actor)  # it may only be out of reach
            why = " ".join(str(error).split())
            return Ended(
                worker.slot,
                worker.node,
                worker.address,
                None,
                why[:300],
                cause=_cause(error, self._draining, worker.node),
            )
        ray.kill(worker.actor)
        return Ended(
            worker.slot, worker.node, worker.address, told["code"], told["said"], worker.is_told_to_stop
        )

    def leave_draining(self) -> list[str]:
        """Stops the workers on nodes that are about to go; returns the addresses of such that had any."""
        now_s = time.monotonic()
        if now_s - self._drained_s < DRAIN_S:
            return []
        self._drained_s = now_s
        self._draining = draining()
        leaving = [
            w.address for w in self._workers.values() if w.node in self._draining and not w.is_told_to_stop
        ]
        self.stop(lambda node: node in self._draining) if leaving else None
        return leaving

    def _totals(self) -> dict[str, dict[str, float]]:
        """What each node that lives has, by its id."""
        return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}

    def monitor(self) -> dict[str, str]:
        """Returns what the cluster's configuration says of the nodes' memory monitor, as variables of Ray's.

        Nodes know it too, but do not hand it on; Ray has no public name for it.
        """
        try:
            config = ray._private.state.state.get_system_config()
        except Exception:  # noqa: BLE001 - a private call: without an answer the variables of the nodes count
            return {}
        return {f"RAY_{name}": str(config[name]) for name in MONITOR if name in config}

    def lives(self, node: str) -> bool:
        """Whether a node does."""
        return node in self._totals()

    def nodes(self) -> dict[str, NodeResources]:
        """Returns the nodes that live, by a name for people; {} if Ray does not tell.

        Ray has a public name for what the whole cluster has free, and none for that of a node.
        """
        try:
            free = ray._private.state.available_resources_per_node()
        except Exception:  # noqa: BLE001 - a private call, and for a message only
            return {}
        return {
            f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})": NodeResources(
                free.get(node["NodeID"], {}), node["Resources"]
            )
            for node in ray.nodes()
            if node["Alive"]
        }

    def close(self) -> None:
        """Leaves the cluster; what still runs of this driver's is ended by Ray."""
        ray.shutdown()


def options(resources: Resources, avoid: Collection[str]) -> dict[str, Any]:
    """Returns the options of an actor; Ray never starts one again: the store decides what is run."""
    found: dict[str, Any] = {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus_per_node,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": 3,
    }
    if resources.memory_gib is not None:
        found["memory"] = int(resources.memory_gib * 2**30)
    if resources.custom:
        found["resources"] = dict(resources.custom)
    if resources.accelerator:
        found["accelerator_type"] = resources.accelerator
    if avoid:
        found["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"}
    return found


def dashboard_here() -> str:
    """Returns the address of the dashboard of the cluster that this machine is a node of.

    Raises:
        Exception: whatever Ray's services do where there is none.
    """
    address = services.canonicalize_bootstrap_address_or_die("auto")
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=CONNECT_S).close()  # else Ray tries for 40 s
    return str(ray_address_to_api_server_url(address))


def draining() -> frozenset[str]:
    """Returns the ids of the nodes that are about to go; none if unknown.

    Ray has no public name for it; its own Train and Serve ask in the same way.
    """
    try:
        told = ray._private.worker.global_worker.gcs_client.get_draining_nodes()
    except Exception:  # noqa: BLE001 - a private call: without an answer nodes go without notice
        return frozenset()
    return frozenset(node if isinstance(node, str) else node.hex() for node in told)


def _cause(error: Exception, going: Collection[str], node: str) -> Cause:
    types = tuple(base.__name__ for base in type(error).__mro__)
    return causes.of_error(types, str(error), drained=node in going or getattr(error, "preempted", False))
