"""Runs of a sweep by Ray's driver: the driver and its workers are the real ones, the cluster is simulated."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from orchestrator import formats, provenance
from orchestrator.core.failure import Cause
from orchestrator.core.records import Owner, Process, Request
from orchestrator.errors import InfrastructureError
from orchestrator.execution.liveness import Watcher
from orchestrator.jobs.records import DriverStatus, JobEnd, Resources, Submission
from orchestrator.jobs.submissions import Submissions
from orchestrator.launchers.ray.driver import RayDriver
from orchestrator.launchers.ray.lost_workers import Workers
from orchestrator.launchers.ray.worker import order_of
from orchestrator.simulation.files import ROOT
from orchestrator.simulation.invariants import RuleBroken
from orchestrator.simulation.places import nobody
from orchestrator.simulation.schedules import Play
from orchestrator.simulation.small_sweep import NAME, SIGKILL, SimulatedChildren
from orchestrator.simulation.world import Machine, SimulatedProcess
from orchestrator.store.access import new_nonce
from tests.simulation.ray_cluster import DETECTED_S, PER_NODE, Place, SimulatedWorkers, last_words
from tests.simulation.request_runs import instead

CLUSTER = "simulated"
LAUNCHER = {"name": "ray", "address": "auto", "device": "cpu", "max_pending": 2}
MAX_RESTARTS = 4
MAX_SUBMISSIONS = 3

CLOSED_S = 8.0
"""Longest time from the end of a submission to its driver's last start of a worker, in seconds."""


class RayPlay(Play):
    """A run with drivers; see `orchestrator.simulation.schedules.Play`.

    Attributes:
        nodes: name of a machine to the id of the node that it is now.
        known: ids of the nodes that the cluster takes for alive.
        draining: ids of the nodes that are about to go.
    """

    FAULTS = (
        *("kill", "kill", "stop", "stop", "power", "power", "cut", "term", "reply", "reply"),
        *("driver", "driver", "driver", "stop driver", "actor", "actor", "actor", "drain", "parent", "close"),
    )

    def __init__(self, seed: int, *, is_calm: bool = False) -> None:
        super().__init__(seed, is_calm=is_calm)
        policy = replace(self.settings.policy, grace_s=8.0)
        for machine in self.machines:  # after a job, workers of others wait as long as clocks say
            machine.skew_s = 0.0
        self.settings = replace(self.settings, launcher=LAUNCHER, policy=policy)
        self.nodes = {machine.name: f"{machine.name}-1" for machine in self.machines}
        self.known = set(self.nodes.values())
        self.draining: set[str] = set()
        self._num_submissions = 0
        self._closed_s: dict[int, float] = {}
        self._handlers: dict[str, Callable[..., object]] = {}
        self._parents: dict[str, int] = {}
        self._begun: set[str] = set()
        self._pools: dict[str, SimulatedWorkers] = {}
        self._lost: dict[int, frozenset[tuple[int | None, int]]] = {}

    # The cluster

    def is_free(self, machine: Machine) -> bool:
        """Return whether a node has resources for one more worker."""
        node = self.nodes[machine.name]
        mine = [p for pool in self._pools.values() for p in pool.places.values() if p.machine is machine]
        is_busy = sum(p.process is not None and p.process.is_alive for p in mine) >= PER_NODE
        return node in self.known and node not in self.draining and not is_busy

    def stop_worker(self, name: str) -> None:
        """Send a worker the signal to stop."""
        self._stops.setdefault(name, "stopped")

    def befall(self, name: str) -> None:
        """Let something happen."""
        world, random = self.world, self.world.random
        drivers = [
            each
            for each in world.processes
            if each.name.startswith("driver") and self._parents.get(each.name, 1) == 1 and each.is_alive
        ]
        places = [
            (pool, place)
            for pool in self._pools.values()
            for place in pool.places.values()
            if place.process is not None and place.process.is_alive
        ]
        match name:
            case "driver" if drivers:
                self.events[name] += 1
                world.kill(random.choice(drivers))
            case "stop driver" if drivers:
                self.events[name] += 1
                random.choice(drivers).stopped_until_s = world.now_s + random.choice((3.0, 8.0, 20.0))
                self._yield_if(drivers[0])
            case "parent" | "close" if drivers and self._num_submissions < MAX_SUBMISSIONS:
                self.events[name] += 1
                driver = random.choice(drivers)
                self._end_job(driver, is_killed=name == "close" or driver.name not in self._begun)
            case "actor" if places:
                self.events[name] += 1
                pool, place = random.choice(places)
                pool.lose_actor(place, "the actor died unexpectedly")
            case "drain":
                self.events[name] += 1
                machine = random.choice(self.machines)
                self.draining.add(self.nodes[machine.name])
                world.after(random.choice((2.0, 10.0)), functools.partial(self._lose_node, machine))
            case "power":
                self.events[name] += 1
                self._lose_node(random.choice(self.machines))
            case "driver" | "stop driver" | "parent" | "close" | "actor":
                pass
            case _:
                super().befall(name)

    def _end_job(self, driver: SimulatedProcess, *, is_killed: bool) -> None:
        """Have the cluster call the job of a driver over: it is killed, or its supervisor dies."""
        number = int(driver.name[6:].partition(".")[0])
        self._closed_s.setdefault(number, max(self.world.now_s, driver.stopped_until_s) + CLOSED_S)
        self._parents[driver.name] = 2
        self.start_monitor(self.world.random.choice(self.machines), number)
        if is_killed:
            self.world.kill(driver, "its job was stopped")

    def _lose_node(self, machine: Machine) -> None:
        """Take the power from a machine; it comes back as another node."""
        world, node = self.world, self.nodes[machine.name]
        self.nodes[machine.name] = f"{machine.name}-{int(node.rpartition('-')[2]) + 1}"
        world.after(DETECTED_S * world.random.random(), functools.partial(self._detect, machine, node))
        self.files.lose_power(machine)
        for process in self._on(machine):
            world.kill(process, "power")

    def _detect(self, machine: Machine, node: str) -> None:
        self.known.discard(node)
        self.known.add(self.nodes[machine.name])
        for pool in self._pools.values():
            for place in pool.places.values():
                if place.node == node:
                    pool.ended(place, None, "The actor died because its node has died")

    # Workers

    def start_ray_worker(
        self, place: Place, submission: Submission, restart: int, pool: SimulatedWorkers
    ) -> SimulatedProcess:
        """Start what an actor runs; see `orchestrator.launchers.ray.worker.main`."""
        machine, name = place.machine, place.name
        assert machine is not None
        result = {"code": 3, "said": ""}

        def main() -> None:
            try:
                ledger = self.place.ledger(self.children[name].worker, lambda: "")
                order = order_of(ledger, NAME, submission, place.slot, restart)
                assert order.job is not None
                process = Process(boot_id=machine.name, namespace="simulated", pid=1, start=name)
                owner = Owner(
                    host=machine.name,
                    process=process,
                    slot=place.slot,
                    cluster=order.job.cluster,
                    job=order.job.job,
                    restart_count=restart,
                )
                result["code"] = self.work(name, order, owner)
            except (OSError, InfrastructureError) as error:
                self.world.note("say", str(error))
                result["said"] = str(error)

        process = self.world.start(name, machine, main)
        children = self.children[name] = SimulatedChildren(self.world, process)

        def ended() -> None:
            children.orphan()
            if process.is_killed and place.node != self.nodes[machine.name]:
                return  # with its node, of which the driver hears later
            code = SIGKILL if process.is_killed else int(result["code"])
            claims = len(self.invariants.claims_of(name))
            pool.ended(place, code, "" if process.is_killed else last_words(str(result["said"]), claims))

        process.on_end = ended
        return process

    # Drivers

    def changed(self, kind: str, key: str) -> None:
        """Check a change of the store."""
        super().changed(kind, key)
        if key.endswith("driver.json") and kind != "unlink":
            self._check_status(key)

    def begin(self) -> None:
        """Record the launch and its submission, and start the driver."""
        ledger = self.place.ledger(nobody(), lambda: "")
        launch = Request(nonce=new_nonce(), number=0, verb="launch", revision=1, settings=self.settings)
        self._request = ledger.add_request(NAME, launch).number
        self.submit(self.machines[0], nobody())
        if self.world.random.random() < 0.2:
            self.submit(self.world.random.choice(self.machines), nobody())

    def submit(self, machine: Machine, process: SimulatedProcess) -> None:
        """Have a process submit all cells; the driver runs on a machine."""
        submissions = Submissions(self.place.ledger(process, lambda: ""), NAME)
        self._num_submissions += 1
        number = self._num_submissions
        submission = Submission(
            nonce=new_nonce(),
            number=number,
            revision=1,
            request=self._request,
            launcher="ray",
            cluster=CLUSTER,
            name=f"sweep-{number}",
            tasks=(tuple(cell.id for cell in self.sweep.cells),),
            resources=Resources(cpus=1),
        )
        submissions.file(submission)
        submissions.accept(number, f"job{number}", at=provenance.now())
        self.start_driver(submission, 0, machine, after_s=0.3)

    def start_driver(self, submission: Submission, restart: int, machine: Machine, *, after_s: float) -> None:
        """Start a driver, which its job starts again if it is killed."""
        name = f"driver{submission.number}.{restart}"
        process: SimulatedProcess | None = None

        def main() -> None:
            assert process is not None
            self._begun.add(name)
            parent = os.getppid()
            try:
                ledger = self.place.ledger(process, lambda: "")
                me = Process(boot_id=machine.name, namespace="simulated", pid=1, start=name)
                driver = RayDriver(
                    ledger,
                    NAME,
                    submission,
                    restart,
                    Path(ROOT, "logs", f"{name}.log"),
                    watcher=Watcher(Owner(host=machine.name, process=me, slot=-1)),
                    connect=connect,
                    parent=parent,
                )
                self.started(submission.number, process)
                code = driver.run()
                self.stopped(submission.number, "FAILED" if code else "SUCCEEDED")
                self._check_exit(name, code)
            except (OSError, InfrastructureError) as error:
                self.world.note("say", str(error))

        def connect(address: str, resources: Resources) -> Workers:
            assert process is not None
            pool = self._pools[name] = SimulatedWorkers(self, process, submission, restart)
            return pool

        process = self.world.start(name, machine, main, after_s=after_s)

        def ended() -> None:
            if name in self._pools:
                self._pools[name].close()
            is_over = self._parents.get(name, 1) != 1
            if is_over or restart >= MAX_RESTARTS or process is None or not process.is_killed:
                self.stopped(submission.number, "FAILED")
            if process is not None and process.is_killed and restart < MAX_RESTARTS and not is_over:
                again_s = 0.2 + self.world.random.random()
                self.start_driver(submission, restart + 1, machine, after_s=again_s)

        process.on_end = ended

    def started(self, number: int, process: SimulatedProcess) -> None:
        """Note that the driver of a submission runs."""

    def stopped(self, number: int, word: str) -> None:
        """Note that the job of a driver is over."""

    def start_monitor(self, machine: Machine, number: int) -> None:
        """Record that a submission is over, as `sweep reconcile` does, and submit the cells again."""
        process: SimulatedProcess | None = None

        def main() -> None:
            assert process is not None
            with contextlib.suppress(OSError, InfrastructureError):
                submissions = Submissions(self.place.ledger(process, lambda: ""), NAME)
                over = JobEnd(index=0, word="FAILED", cause=Cause.NODE_LOST, restarts=MAX_RESTARTS)
                submissions.close(number, [over], at=provenance.now())
                self.submit(machine, process)

        after_s = 2 * self.world.random.random()
        process = self.world.start(f"monitor{number}", machine, main, after_s=after_s)

    def end(self) -> None:
        """Start a driver to which nothing happens, on nodes that work."""
        self.draining.clear()
        self.known |= set(self.nodes.values())
        self.submit(Machine("the last"), nobody())

    # What must hold

    def check_start(self, pool: SimulatedWorkers, slot: int, argv: list[str]) -> None:
        """Check the start of a worker."""
        number, restart = int(argv[-3]), int(argv[-1])
        current = self.world.current
        if slot in pool.places or argv[-2] != str(slot):
            self.world.fail(RuleBroken(1, f"ray: worker {slot} of start {restart} is started twice"))
        if len(pool.pending) >= LAUNCHER["max_pending"]:  # type: ignore[operator]
            self.world.fail(RuleBroken(1, f"ray: more than {LAUNCHER['max_pending']} workers wait"))
        closed_s = self._closed_s.get(number)
        is_slow = current is not None and current.stopped_until_s + CLOSED_S > (closed_s or 0.0)
        if closed_s is not None and self.world.now_s > closed_s and not is_slow:
            self.world.fail(RuleBroken(1, f"ray: submission {number} was given up, and starts worker {slot}"))

    def _check_exit(self, name: str, code: int) -> None:
        """Check that a driver which reports success leaves nothing undone."""
        self.world.note("say", f"exit code {code}")
        if code == 0 and self._closed_s.get(int(name[6:].partition(".")[0])) is None:
            made = {done.digest for done in self.invariants.products.values()}
            left = [each.name for digest, each in self.sweep.stages.items() if digest not in made]
            if left:
                self.world.fail(RuleBroken(2, f"ray: {name} ends well, and nobody made {', '.join(left)}"))

    def _check_status(self, key: str) -> None:
        """Check that no worker is recorded as lost that lives, and was not asked to end."""
        status = formats.decode(self.place.content(key) or b"", DriverStatus)
        number = int(key.split("/")[3])
        alive = {process.name for process in self.world.processes if process.is_alive}
        seen = self._lost.get(number, frozenset())
        lost = frozenset((each.slot, each.restart) for each in status.lost)
        if not seen <= lost:
            self.world.fail(RuleBroken(4, f"ray: {key} forgets that workers are lost"))
        for slot, restart in lost - seen:
            starts = range(restart + 1) if slot is None else (restart,)
            for name in sorted(alive):
                head, _, rest = name.partition(".")
                start, _, own = rest.partition(".")
                if head != f"ray{number}" or not own.isdigit() or int(start) not in starts:
                    continue
                if slot in (None, int(own)) and name not in self._stops:
                    self.world.fail(RuleBroken(4, f"ray: {name} is recorded as lost, and works"))
        self._lost[number] = lost

    # The system

    def run(self) -> None:
        """Play the run. Signals and parents of drivers are the world's."""

        def handle(number: int, handler: Callable[..., object]) -> None:
            if self.world.current is not None:
                self._handlers[self.world.current.name] = handler

        def parent() -> int:
            current = self.world.current
            return 1 if current is None else self._parents.get(current.name, 1)

        with instead(signal, "signal", handle), instead(os, "getppid", parent):
            super().run()
