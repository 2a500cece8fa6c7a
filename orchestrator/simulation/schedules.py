"""One run of a simulated sweep: its machines and workers, what befalls them, and what must come of it.

`play` draws everything from a seed. The sweep is small, as most faults of a protocol need few participants:
one cell or two that share a stage, up to three workers, and up to eight faults, each of which may come at any
system call of anybody.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from orchestrator import manifest
from orchestrator.core.evidence import Liveness
from orchestrator.core.failure import Cause
from orchestrator.core.records import Owner, Process
from orchestrator.core.sweep import ComposedSweep
from orchestrator.errors import InfrastructureError
from orchestrator.execution.assignment import Assignment
from orchestrator.execution.loop import Worker
from orchestrator.simulation.files import SHARED, Files
from orchestrator.simulation.invariants import Invariants, RuleBroken
from orchestrator.simulation.places import BucketPlace, FolderPlace, StorePlace, nobody
from orchestrator.simulation.small_sweep import (
    LEASE_S,
    NAME,
    SimulatedChildren,
    calm_table,
    draw_scope,
    prepared,
    revision_of,
    settings_of,
)
from orchestrator.simulation.system import running
from orchestrator.simulation.world import Machine, SimulatedProcess, World
from orchestrator.store.evidence import EvidenceReader, OwnerReport

LIMIT_S = 3600.0
"""Most simulated seconds of a run. Without faults it takes about five."""
MAX_STARTS = 12
"""How often a dead worker is replaced in a run."""


class Played(NamedTuple):
    """What came of a run.

    Attributes:
        seed: of the run.
        trace: a digest of all its steps.
        num_steps: how many these were.
        seconds: simulated.
        events: what befell it, by kind.
        problem: what was wrong; "" for nothing.
    """

    seed: int
    trace: str
    num_steps: int
    seconds: float
    events: Mapping[str, int]
    problem: str


class _Faults:
    """What is still to befall a run, and when.

    Attributes:
        is_storm: whether workers are stopped in order many times, with no retry to spend on it: no attempt
            may count as a failure.
        left: how much is still to come.
        num_errors: how many errors the network caused.
        next_step: number of the step at which something happens next.
    """

    def __init__(self, world: World, num_faults: int, within: int) -> None:
        self._world = world
        self._within = within
        self.is_storm = world.random.random() < 0.1
        self.left = num_faults + 4 * self.is_storm
        self.num_errors = 0
        self.next_step = 0.0
        self._draw_next()

    def _draw_next(self) -> None:
        """Draw after how many steps something happens next: often in quick succession."""
        draw = self._world.random.random()
        number = self._world.num_steps + 1 + int(self._within * draw * draw)
        self.next_step = number if self.left > 0 else math.inf

    def end(self) -> None:
        """Let nothing happen any more."""
        self.left = 0
        self.next_step = math.inf

    def draw(self, kinds: Sequence[str]) -> str:
        """Return what happens now."""
        self.left -= 1
        self._draw_next()
        return "term" if self.is_storm else self._world.random.choice(kinds)


class Play:
    """A run of a sweep on simulated machines.

    Args:
        seed: of the run.
        is_calm: whether nothing befalls it.
    """

    FAULTS = ("kill", "kill", "stop", "stop", "power", "cut", "clock", "term", "reply", "reply")
    """What may happen; the more often it is named, the more often it does."""

    RETRIES: Sequence[int] = (9,)
    """How often a stage may be tried again for each cause, of which one is drawn."""

    JUMP_S = 3600.0
    """By how much a clock may jump, in seconds."""

    def __init__(self, seed: int, *, is_calm: bool = False) -> None:
        self.world = World(seed)
        draw = self.world.random
        is_network = draw.random() < 0.5
        self.files = Files(self.world, f"server:/ {SHARED} nfs4 rw\n" if is_network else "")
        self.events: Counter[str] = Counter()
        self.scope = draw_scope(draw)
        self.machines = [
            Machine(
                f"machine{number}",
                skew_s=draw.choice((0.0, 0.0, -40.0, 90.0)),
                rate=draw.choice((1.0, 1.0, 0.98, 1.02)),
                cache_s=draw.choice((0.0, 0.5, 1.5)) if is_network else 0.0,
            )
            for number in range(self.scope.num_machines)
        ]
        self._faults = _Faults(self.world, 0 if is_calm else self.scope.num_faults, self.scope.within)
        self._num_started = 0
        self.children: dict[str, SimulatedChildren] = {}
        self._stops: dict[str, str] = {}
        retention = draw.choice(("all", "none"))
        retries = 0 if self._faults.is_storm else draw.choice(self.RETRIES) if self.RETRIES[1:] else 9
        self.settings = settings_of(retention, retries)
        policy = self.settings.policy
        files = prepared(*self.scope.form, policy.retention, policy.retries[Cause.UNKNOWN])
        self.place: StorePlace = (
            FolderPlace(self.files, files) if seed % 2 else BucketPlace(self.world, files)
        )
        self.invariants = Invariants(self.world, self.place.content, self.place.durable)

    @property
    def sweep(self) -> ComposedSweep:
        """The sweep that is played."""
        return revision_of(*self.scope.form).sweep

    # What happens

    def _before_step(self, kind: str, what: str) -> None:
        world = self.world
        process = world.current
        if process is not None and process.machine.cut_until_s > world.now_s and self.place.reaches(what):
            raise OSError(errno.EIO, "the network is down", what)
        if world.num_steps >= self._faults.next_step:
            self.befall(self._faults.draw(self.FAULTS))

    def befall(self, name: str) -> None:
        """Let something happen to somebody, both drawn."""
        world = self.world
        self.events[name] += 1
        victim = world.random.choice(world.processes)
        lasts_s = LEASE_S * world.random.choice((0.1, 0.5, 1.2, 3.0))
        world.note("fault", f"{name} {victim.name} {lasts_s}")
        match name:
            case "kill":
                world.kill(victim)
            case "stop":  # SIGSTOP, or a machine that swaps
                for process in self._on(victim.machine) if world.random.random() < 0.5 else [victim]:
                    process.stopped_until_s = world.now_s + lasts_s
                self._yield_if(victim)
            case "power":
                self.files.lose_power(victim.machine)
                for process in self._on(victim.machine):
                    world.kill(process, "power")
            case "cut":
                victim.machine.cut_until_s = world.now_s + lasts_s
            case "clock":
                victim.machine.skew_s += world.random.choice((-self.JUMP_S, self.JUMP_S))
            case "term":
                self._stops[victim.name.partition("/")[0]] = "stopped"
            case "reply":
                self.place.reply = self._lost_reply

    def _on(self, machine: Machine) -> list[SimulatedProcess]:
        """Return the processes of a machine, the running one last: its own end is raised."""
        mine = [process for process in self.world.processes if process.machine is machine]
        return sorted(mine, key=lambda process: process is self.world.current)

    def _yield_if(self, victim: SimulatedProcess) -> None:
        if self.world.current is not None and self.world.current.stopped_until_s > self.world.now_s:
            self.world.sleep(0.0)

    def _lost_reply(self, kind: str) -> bool:
        """Lose the next reply: the request is made again, or its caller gets an error."""
        if self.world.current is None:
            return False
        self.place.reply = lambda kind: False
        if self.world.random.random() < 0.5:
            self._faults.num_errors += 1
            raise OSError(errno.EIO, "the reply was lost")
        return kind == "link"

    # Workers

    def start_worker(self, machine: Machine, slot: int, *, after_s: float = 0.0) -> SimulatedProcess:
        """Start a worker, which is replaced when it dies."""
        self._num_started += 1
        name = f"worker{self._num_started}"

        def main() -> None:
            try:
                self._work(name, machine, slot)
                self._check_left(name, machine)
            except (OSError, InfrastructureError) as error:  # it reports that the store does not answer
                self.world.note("say", str(error))
                self._stops[name] = "error"

        process = self.world.start(name, machine, main, after_s=after_s)
        children = self.children[name] = SimulatedChildren(self.world, process)

        def ended() -> None:
            children.orphan()
            if (process.is_killed or name in self._stops) and self._num_started < MAX_STARTS:
                other = self.world.random.choice(self.machines)
                self.start_worker(other, slot, after_s=self.world.random.random() * 2 * LEASE_S)

        process.on_end = ended
        return process

    def _work(self, name: str, machine: Machine, slot: int) -> int:
        order = Assignment(
            store=self.place.url,
            sweep=NAME,
            revision=1,
            settings=self.settings,
            slot=slot,
            num_slots=3,
            code_digest="code",
            import_paths=(),
        )
        process = Process(boot_id=machine.name, namespace="simulated", pid=1, start=name)
        return self.work(name, order, Owner(host=machine.name, process=process, slot=slot))

    def work(self, name: str, order: Assignment, owner: Owner) -> int:
        """Run the worker of the running process, and return its exit code.

        Args:
            name: of the process.
            order: the worker's assignment.
            owner: its identity.
        """

        def stop_asked() -> str:
            return self._stops.get(name, "")

        worker = Worker(
            ledger=self.place.ledger(self.children[name].worker, stop_asked),
            revision=revision_of(*self.scope.form),
            order=order,
            owner=owner,
            children=self.children[name],
            stop_asked=stop_asked,
            log=functools.partial(self.world.note, "say"),
        )
        return worker.run()

    # The run

    def begin(self) -> None:
        """Start what works on the sweep."""
        for number in range(self.scope.num_workers):
            machine = self.machines[number % len(self.machines)]
            self.start_worker(machine, number, after_s=self.world.random.random() * 3.0)

    def changed(self, kind: str, key: str) -> None:
        """Check a change of the store; see `Invariants.changed`."""
        self.invariants.changed(kind, key)

    def end(self) -> None:
        """Start who must find a store from which the sweep can be completed, as at a later launch."""
        self.start_worker(Machine("the last"), 0)

    def run(self) -> None:
        """Play the run, and check what came of it.

        Raises:
            AssertionError: A rule was broken.
        """
        world = self.world
        with running(world, self.files):
            self.place.watch(self.changed)
            world.before_step = self._before_step
            self.begin()
            world.run(limit_s=LIMIT_S)
            self._faults.end()
            self.place.reply = lambda kind: False
            for machine in self.machines:
                machine.cut_until_s = 0.0
            self.end()
            world.run(limit_s=LIMIT_S)
            world.before_step = lambda kind, what: None
            self._check()

    def _check_left(self, name: str, machine: Machine) -> None:
        """Check that a worker which ends by itself has ended all that it claimed."""
        if self._faults.num_errors or machine.cut_until_s:
            return  # such an end may be one that could not be recorded
        for (stage, digest), number in self.invariants.claims_of(name):
            key = f"records/{stage}/{digest}/{number}/end.json"
            if self.place.content(key) is None:
                self.world.fail(RuleBroken(1, f"{name} left attempt {number} of {stage} without an end"))

    def _check(self) -> None:
        ledger = self.place.ledger(nobody(), lambda: "")
        reader = EvidenceReader(
            ledger, self.sweep.stages.values(), observer=lambda *_: OwnerReport(Liveness.GONE, "all ended")
        )
        table = {}
        for digest, instance in self.sweep.stages.items():
            evidence = reader.evidence(digest)
            if evidence.done is None:
                raise RuleBroken(2, f"{instance.name} is not done: {evidence.problem or evidence.attempts}")
            table[digest] = evidence.done.rows
            attempts = ledger.attempts(instance)
            end = attempts[evidence.done.attempt - 1].end
            if end is not None and end.outcome != "succeeded":
                raise RuleBroken(
                    1, f"{instance.name} has a product of attempt {evidence.done.attempt}: {end.why}"
                )
            numbers = [attempt.number for attempt in attempts]
            if numbers != list(range(1, len(numbers) + 1)):
                raise RuleBroken(3, f"{instance.name} has attempts {numbers}")
        if table != calm_table(*self.scope.form):
            raise RuleBroken(6, f"the table differs: {table}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = sys.stderr, sys.stdout
    sys.stderr = sys.stdout = io.StringIO()
    try:
        yield
    finally:
        sys.stderr, sys.stdout = before


WARM_UP = -1
"""Seed of the first run of a process, which fills caches such as that of the installed packages."""


@functools.cache
def _warm_up() -> None:
    play(WARM_UP, is_calm=True)


def play(
    seed: int, *, is_calm: bool = False, lines: list[str] | None = None, kind: type[Play] = Play
) -> Played:
    """Play a run and return what came of it.

    Args:
        seed: of the run.
        is_calm: whether nothing befalls it.
        kind: of the run.
        lines: is filled with the steps, for people; None for none.
    """
    if seed != WARM_UP:
        _warm_up()
    manifest.REMEMBERED = manifest.Digests()  # no run knows the files of another
    run = kind(seed, is_calm=is_calm)
    problem = ""
    with _quiet():
        try:
            run.run()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a finding
            problem = f"{type(error).__name__}: {error}"
    world = run.world
    if lines is not None:
        lines += world.trace.lines()
    return Played(
        seed, world.trace.digest(), world.num_steps, round(world.now_s, 3), dict(run.events), problem
    )
