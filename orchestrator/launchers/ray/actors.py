"""The only module that imports `ray`: a driver's connection to its cluster, and its workers as actors."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import ray
from ray import cloudpickle
from ray._private import services
from ray.dashboard.utils import ray_address_to_api_server_url
from ray.exceptions import GetTimeoutError, RayError

from orchestrator.core.failure import Cause
from orchestrator.entry import socket_folder
from orchestrator.errors import InfrastructureError
from orchestrator.jobs.records import Resources
from orchestrator.launchers.ray import actor as slots
from orchestrator.launchers.ray import lost_workers
from orchestrator.launchers.ray.lost_workers import Ended
from orchestrator.launchers.ray.settings import NodeResources, fits

# nodes need not have this package, so the actor's class is sent as code
cloudpickle.register_pickle_by_value(slots)

CONNECT_S = 5.0
"""Timeout of a connection to the cluster's address, in seconds."""

MONITOR = ("memory_usage_threshold", "memory_monitor_refresh_ms")
"""Settings of Ray's memory monitor that workers need, to judge whether it ended their actor."""

DRAIN_S = 2.0
"""Poll interval for nodes that are about to go, in seconds."""


class _Worker:
    """A worker of this driver, as an actor that waits for a node or has one."""

    def __init__(self, slot: int, actor: Any, run: Any) -> None:
        self.slot = slot
        self.actor = actor
        self.run = run
        self.where_ref = actor.where.remote()
        self.node = self.address = ""
        self.is_stopping = False


class Pool:
    """The workers of one driver, as actors; see `orchestrator.launchers.ray.lost_workers.Workers`.

    Args:
        address: ``auto`` for the cluster that this process runs on, ``local`` for a Ray of its own.
        resources: of each worker.
    """

    def __init__(self, address: str, resources: Resources) -> None:
        # Ray's sockets need short paths, shorter than TMPDIR may be
        os.environ.setdefault("RAY_TMPDIR", socket_folder())
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
        self._barred: frozenset[str] = frozenset()

    def bar(self, hosts: Collection[str]) -> bool:
        """Start no worker on the nodes of these machines from now on; return whether that is news.

        Workers that wait may have been requested for other nodes, so they are dropped then.
        """
        nodes = ray.nodes() if hosts else ()
        barred = frozenset(node["NodeID"] for node in nodes if node["NodeManagerHostname"] in hosts)
        if barred == self._barred:
            return False
        self._barred = barred
        for slot in self.pending:
            self.drop(slot)
        return True

    def start(
        self,
        slot: int,
        argv: list[str],
        environment: Mapping[str, str],
        folder: str,
        *,
        avoid: Collection[str],
    ) -> None:
        """Request a worker from Ray, which starts it once there are resources for it.

        Args:
            slot: its number, which no other worker of this driver had.
            argv: what it runs, after the interpreter.
            environment: variables added to those of the node.
            folder: its working folder, if the node has it.
            avoid: ids of nodes that should not run it, if another node is large enough.
        """
        out = {*avoid, *self._barred}
        if not any(node not in out and fits(self._resources, has) for node, has in self._totals().items()):
            # a worker on a bad node may work; one that fits nowhere waits for ever
            out = {*self._barred}
        actor = ray.remote(slots.Slot).options(**options(self._resources, out)).remote()
        run = actor.run.remote(argv, dict(environment), folder)
        self._workers[slot] = _Worker(slot, actor, run)

    @property
    def pending(self) -> list[int]:
        """Slots of the workers that wait for resources."""
        return [worker.slot for worker in self._workers.values() if not worker.node]

    @property
    def running(self) -> dict[int, str]:
        """Slots of the workers that have a node, each with the node's address."""
        return {worker.slot: worker.address for worker in self._workers.values() if worker.node}

    def drop(self, slot: int) -> None:
        """End a worker at once, whether it waits or runs."""
        ray.kill(self._workers.pop(slot).actor)

    def stop(self, chosen: Callable[[str], bool] = lambda node: True) -> None:
        """Stop the workers on some nodes: they save a checkpoint and end. Those that wait are dropped.

        Args:
            chosen: whether a node, by its id, is one of them.
        """
        for worker in list(self._workers.values()):
            if not worker.node:
                self.drop(worker.slot)
            elif not worker.is_stopping and chosen(worker.node):
                worker.is_stopping = True
                worker.actor.stop.remote()

    def wait(self, timeout_s: float) -> Iterator[Ended]:
        """Wait until something happens, and yield the workers that have ended."""
        refs = {worker.run: worker for worker in self._workers.values()}
        refs |= {worker.where_ref: worker for worker in self._workers.values() if not worker.node}
        if not refs:
            time.sleep(timeout_s)
            return
        ready, _ = ray.wait(list(refs), num_returns=1, timeout=timeout_s)
        if ready:  # `wait` returned at the first event; collect all others that are ready
            ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        for ref in ready:
            worker = refs[ref]
            if ref == worker.where_ref:
                try:
                    worker.node, worker.address = ray.get(ref)
                except RayError:
                    continue  # the result of `run` has the reason
            elif worker.slot in self._workers:
                yield self._ended(worker)

    def _ended(self, worker: _Worker) -> Ended:
        """Forget a worker that has ended, and return how it did."""
        del self._workers[worker.slot]
        try:
            ended = ray.get(worker.run, timeout=10)
        except (RayError, GetTimeoutError) as error:
            ray.kill(worker.actor)  # the actor may live and only be out of reach
            why = " ".join(str(error).split())
            return Ended(
                worker.slot,
                worker.node,
                worker.address,
                None,
                why[:300],
                cause=_cause(error, self._draining, worker.node),
                is_of_node=lost_workers.is_of_node(types_of(error), str(error)),
            )
        ray.kill(worker.actor)
        return Ended(
            worker.slot, worker.node, worker.address, ended["code"], ended["output"], worker.is_stopping
        )

    def leave_draining(self) -> list[str]:
        """Stop the workers on nodes that are about to go, and return the addresses of these nodes."""
        now_s = time.monotonic()
        if now_s - self._drained_s < DRAIN_S:
            return []
        self._drained_s = now_s
        self._draining = draining()
        leaving = [
            w.address for w in self._workers.values() if w.node in self._draining and not w.is_stopping
        ]
        self.stop(lambda node: node in self._draining) if leaving else None
        return leaving

    def _totals(self) -> dict[str, dict[str, float]]:
        """Return what each live node has, by its id."""
        return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}

    def monitor(self) -> dict[str, str]:
        """Return the cluster's settings of the memory monitor, as Ray's variables for workers.

        Nodes have these settings too, but do not pass them on to workers. Ray has no public name for them.
        """
        try:
            config = ray._private.state.state.get_system_config()
        except Exception:  # noqa: BLE001 - private API: if it fails, workers use the variables of their nodes
            return {}
        return {f"RAY_{name}": str(config[name]) for name in MONITOR if name in config}

    def lives(self, node: str) -> bool:
        """Return whether a node is alive."""
        return node in self._totals()

    def nodes(self) -> dict[str, NodeResources]:
        """Return the live nodes, by a readable name; {} if Ray does not return them.

        Ray has a public name for the free resources of the whole cluster, but none for those of a node.
        """
        try:
            free = ray._private.state.available_resources_per_node()
        except Exception:  # noqa: BLE001 - private API, used for a message only
            return {}
        return {
            f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})": NodeResources(
                free.get(node["NodeID"], {}), node["Resources"]
            )
            for node in ray.nodes()
            if node["Alive"]
        }

    def close(self) -> None:
        """Leave the cluster. Ray ends the actors of this driver that still run."""
        ray.shutdown()


def connect(address: str, resources: Resources) -> Pool:
    """Return the workers of a driver, none yet.

    Raises:
        InfrastructureError: there is no cluster.
    """
    try:
        return Pool(address, resources)
    except (OSError, RuntimeError, ValueError) as error:  # what Ray raises then
        raise InfrastructureError(f"Ray cannot be reached: {' '.join(str(error).split())[:300]}") from error


def options(resources: Resources, avoid: Collection[str]) -> dict[str, Any]:
    """Return the options of an actor.

    Ray never restarts one: only the records in the store decide what runs next.
    """
    found: dict[str, Any] = {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus_per_node,
        "max_restarts": 0,
        "max_task_retries": 0,
        # so that `where` and `stop` are answered while `run` is in progress
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
    """Return the address of the dashboard of the cluster that this machine belongs to.

    Raises:
        Exception: whatever Ray's services raise if there is none.
    """
    address = services.canonicalize_bootstrap_address_or_die("auto")
    host, _, port = address.rpartition(":")
    # fail early: Ray itself would try for 40 s
    socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    return str(ray_address_to_api_server_url(address))


def draining() -> frozenset[str]:
    """Return the ids of the nodes that are about to go; none if Ray does not return them.

    Ray has no public name for this; its own Train and Serve use the same call.
    """
    try:
        nodes = ray._private.worker.global_worker.gcs_client.get_draining_nodes()
    except Exception:  # noqa: BLE001 - private API: if it fails, nodes go without notice
        return frozenset()
    return frozenset(node if isinstance(node, str) else node.hex() for node in nodes)


def _cause(error: Exception, going: Collection[str], node: str) -> Cause:
    """Return what the loss of an actor counts as."""
    return lost_workers.cause_of_error(
        types_of(error), str(error), drained=node in going or getattr(error, "preempted", False)
    )


def types_of(error: Exception) -> tuple[str, ...]:
    """Return the names of an error's class and its bases, nearest first."""
    return tuple(base.__name__ for base in type(error).__mro__)
