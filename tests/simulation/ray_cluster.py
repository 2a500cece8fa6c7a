"""A Ray cluster in memory, as a driver sees it: places for workers, nodes that go, actors that are lost."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.core.failure import Cause
from orchestrator.errors import InfrastructureError
from orchestrator.jobs.judgement import JobListing, JobObservation, Phase
from orchestrator.jobs.records import JobEnd, Submission
from orchestrator.launchers.ray.lost_workers import Ended
from orchestrator.launchers.ray.settings import NodeResources
from orchestrator.simulation.world import Machine, SimulatedProcess
from tests.simulation.scheduler import now

PER_NODE = 2
"""Workers for which a node has resources."""

DETECTED_S = 3.0
"""Longest time until the cluster knows that a node is gone, in seconds."""


@dataclass(eq=False)
class Place:
    """A worker of a driver.

    Attributes:
        slot: its number.
        machine: that it got; None while it waits.
        node: id of the node.
        name: of its process.
        process: of the worker, which outlives its actor.
        is_told: whether the driver stopped it.
        ended: what the driver is to be told.
        is_over: whether the driver knows, or has dropped it.
    """

    slot: int
    machine: Machine | None = None
    node: str = ""
    name: str = ""
    process: SimulatedProcess | None = None
    is_told: bool = False
    ended: Ended | None = None
    is_over: bool = False


class SimulatedWorkers:
    """The workers of one driver; see `orchestrator.launchers.ray.lost_workers.Workers`.

    Args:
        run: that is played, a `tests.simulation.ray_runs.RayPlay`.
        driver: the process that drives.
        submission: whose cells are worked on.
        restart: of the driver.
    """

    def __init__(self, run: Any, driver: SimulatedProcess, submission: Submission, restart: int) -> None:
        self._run = run
        self._driver = driver
        self._submission = submission
        self._restart = restart
        self.places: dict[int, Place] = {}
        self._barred: frozenset[str] = frozenset()
        self._is_closed = False

    @property
    def pending(self) -> list[int]:
        return [slot for slot, place in self.places.items() if not place.node]

    @property
    def running(self) -> dict[int, str]:
        return {slot: place.node for slot, place in self.places.items() if place.node}

    def bar(self, hosts: Collection[str]) -> bool:
        barred = frozenset(hosts)
        if barred == self._barred:
            return False
        self._barred = barred
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
        world = self._run.world
        world.step("ray", f"start {slot}")
        self._run.check_start(self, slot, argv)
        place = self.places[slot] = Place(slot)
        world.after(0.2 + 2 * world.random.random(), functools.partial(self._begin, place, avoid))

    def _begin(self, place: Place, avoid: Collection[str]) -> None:
        """Give a worker its node, as soon as one has resources."""
        run = self._run
        if place.is_over or self._is_closed or not self._driver.is_alive:
            return
        free = [m for m in run.machines if run.is_free(m) and m.name not in self._barred]
        free = [m for m in free if run.nodes[m.name] not in avoid] or free
        if not free:
            run.world.after(1.0, functools.partial(self._begin, place, avoid))
            return
        place.machine = run.world.random.choice(free)
        place.node = run.nodes[place.machine.name]
        place.name = f"ray{self._submission.number}.{self._restart}.{place.slot}"
        place.process = run.start_ray_worker(place, self._submission, self._restart, self)
        self._tell()

    def _tell(self) -> None:
        if self._driver.is_alive:
            self._run.world.wake(self._driver)

    def ended(self, place: Place, code: int | None, said: str, cause: Cause = Cause.NODE_LOST) -> None:
        """Note that an actor returned, or was lost (code None)."""
        if place.ended is None and not place.is_over:
            place.ended = Ended(place.slot, place.node, place.node, code, said, place.is_told, cause)
            self._tell()

    def lose_actor(self, place: Place, why: str, cause: Cause = Cause.NODE_LOST) -> None:
        """Lose an actor. Its worker notices that soon, saves a checkpoint and ends."""
        self.ended(place, None, why, cause)
        self._release(place)

    def _release(self, place: Place) -> None:
        if place.process is not None and place.process.is_alive:
            world = self._run.world
            world.after(0.5 * world.random.random(), functools.partial(self._run.stop_worker, place.name))

    def drop(self, slot: int) -> None:
        self._run.world.step("ray", f"drop {slot}")
        place = self.places.pop(slot)
        place.is_over = True
        self._release(place)

    def stop(self) -> None:
        for place in list(self.places.values()):
            if not place.node:
                self.drop(place.slot)
            elif not place.is_told:
                place.is_told = True
                self._run.stop_worker(place.name)

    def wait(self, timeout_s: float) -> Iterator[Ended]:
        if not any(place.ended for place in self.places.values()):
            self._run.world.sleep(timeout_s)
        for place in list(self.places.values()):
            if place.ended is not None and place.slot in self.places:
                del self.places[place.slot]
                place.is_over = True
                yield place.ended

    def leave_draining(self) -> list[str]:
        found = []
        for place in self.places.values():
            if place.node in self._run.draining and not place.is_told:
                place.is_told = True
                self._run.stop_worker(place.name)
                found.append(place.node)
        return found

    def monitor(self) -> dict[str, str]:
        return {}

    def lives(self, node: str) -> bool:
        self._run.world.step("ray", "nodes")
        return node in self._run.known

    def nodes(self) -> dict[str, NodeResources]:
        return {}

    def close(self) -> None:
        self._is_closed = True
        for place in self.places.values():
            self._release(place)


def last_words(said: str, num_claims: int) -> str:
    """The line with which a worker ends; see `orchestrator.launchers.ray.worker.main`."""
    return json.dumps({"said": said, "claims": num_claims})


class SimulatedDrivers:
    """Asks the simulated cluster about the jobs of drivers; see `orchestrator.launchers.base.Scheduler`."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster

    def jobs(self, ids: Iterable[str]) -> JobListing:
        run = now[0]
        try:
            run.asked()
        except InfrastructureError as error:
            return JobListing(problem=error.what)
        seen = {(name, 0): self._observed(run.words[name]) for name in ids if name in run.words}
        return JobListing(seen=seen, complete=True, scope="the simulated cluster")

    def _observed(self, word: str) -> JobObservation:
        cause = {"FAILED": Cause.NODE_LOST, "STOPPED": Cause.CANCELLED}.get(word)
        over = JobEnd(index=0, word=word, cause=cause)
        phase = {"PENDING": Phase.QUEUED, "RUNNING": Phase.RUNNING}.get(word, Phase.OVER)
        return JobObservation(phase, word, over=over if phase is Phase.OVER else None)

    def waiting(self, tasks: Sequence[str]) -> dict[str, str]:
        return {}

    def cancel(self, submission: Submission, tasks: Sequence[str]) -> None:
        now[0].asked()
        now[0].cancel(tasks)

    def release(self, tasks: Sequence[str]) -> None:
        pass
