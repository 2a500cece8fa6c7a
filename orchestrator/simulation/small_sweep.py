"""The small sweep that is simulated: its stage, children and store, and the table that must come of it."""

from __future__ import annotations

import functools
import hashlib
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import msgspec

from orchestrator import formats, provenance
from orchestrator.core.failure import Cause
from orchestrator.core.grid import Chains
from orchestrator.core.records import Process, Request, Revision
from orchestrator.core.selector import Subject
from orchestrator.core.settings import Policy, RunSettings, StoreSettings, TrackerSettings
from orchestrator.core.sweep import Cell, ComposedSweep
from orchestrator.execution import child
from orchestrator.execution.assignment import AttemptSpec, Message, write_outcome
from orchestrator.saving import PhaseClock
from orchestrator.simulation.files import SHARED, Files
from orchestrator.simulation.system import running
from orchestrator.simulation.world import SimulatedProcess, World
from orchestrator.stage import Config, Context, Inputs, Row, StageSpec, StopSignal
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import content_digest, open_ledger

SIGKILL = -9
LINGER_S = 0.5
"""Longest time for which a child outlives its worker, in seconds: until it notices the closed pipe."""


class _Pipe:
    """The worker's end of the pipe; see `orchestrator.execution.supervision.Pipe`."""

    def __init__(self, stop: StopSignal) -> None:
        self.closed = False
        self.messages: deque[bytes] = deque()
        self._stop = stop

    def poll(self) -> bool:
        """Return whether there is something to read."""
        return bool(self.messages)

    def recv_bytes(self) -> bytes:
        """Return the next message."""
        if not self.messages:
            raise EOFError
        return self.messages.popleft()

    def send_bytes(self, data: bytes) -> None:
        """Deliver a stop."""
        self._stop.ask(msgspec.json.decode(data, type=Message).stop)

    def close(self) -> None:
        """Close the pipe."""
        self.closed = True


class _Line:
    """What a child reports through; see `orchestrator.execution.child.Lifeline`."""

    def __init__(self, pipe: _Pipe, process: Process, running: SimulatedChild) -> None:
        self.clock = PhaseClock("start")
        self._pipe = pipe
        self._running = running
        self._message = Message(phase="starting", process=process)
        self.report(phase="starting")

    def report(self, **state: Any) -> None:
        """Send the fields of `Message` that are not None."""
        new = {name: value for name, value in state.items() if value is not None}
        self._message = msgspec.structs.replace(self._message, **new, saved=self.clock.saved)
        self._pipe.messages.append(msgspec.json.encode(self._message))
        self._running.wake()


class SimulatedChild:
    """A simulated process that runs an attempt; see `orchestrator.execution.supervision.RunningChild`."""

    def __init__(self, world: World, worker: SimulatedProcess, order_json: bytes, number: int) -> None:
        stop = StopSignal()
        self.pipe = _Pipe(stop)
        self.exitcode: int | None = None
        self._world = world
        self._worker = worker
        self._order_json = order_json
        self._stop = stop
        self._identity = Process(
            boot_id=worker.machine.name, namespace="simulated", pid=number, start=worker.name
        )
        self._code = 1
        self.process = world.start(f"{worker.name}/child{number}", worker.machine, self._main)
        self.process.on_end = self._ended

    def _main(self) -> None:
        order = formats.decode(self._order_json, AttemptSpec)
        folder = Path(order.folder)
        line: Any = _Line(self.pipe, self._identity, self)
        try:
            outcome = child.run(order, folder, self._stop, line)
            line.report()
            self._code = write_outcome(folder, outcome, lambda text: None)
        except Exception as error:
            if error is not self.process.raises:
                raise  # else it came while the stage did not run, and the process ends with it

    def _ended(self) -> None:
        self.exitcode = SIGKILL if self.process.is_killed else self._code
        self.wake()

    def wake(self) -> None:
        """Have the worker look at its pipe now."""
        if self._worker.is_alive:
            self._world.wake(self._worker)

    def wait(self, timeout_s: float) -> bool:
        """Wait for a message, the process's end or the timeout."""
        if not self.pipe.messages and self.exitcode is None:
            self._world.sleep(timeout_s)
        return bool(self.pipe.messages) and not self.pipe.closed

    def end(self) -> bool:
        """Kill the process."""
        self._world.kill(self.process, "by its worker")
        return True


class SimulatedChildren:
    """Starts simulated children; see `orchestrator.execution.supervision.Children`.

    Args:
        world: in which they run.
        worker: whose children they are.
    """

    def __init__(self, world: World, worker: SimulatedProcess) -> None:
        self._world = world
        self.worker = worker
        self._number = 0
        self.running: list[SimulatedChild] = []

    def mark(self, nonce: str) -> str:
        """Return the mark of an attempt."""
        return nonce

    def start(self, order_json: bytes, mark: str) -> SimulatedChild:
        """Start a child."""
        self._world.step("fork", self.worker.name)
        self._number += 1
        self.running = [each for each in self.running if each.exitcode is None]
        started = SimulatedChild(self._world, self.worker, order_json, self._number)
        self.running.append(started)
        return started

    def end_outlived(self) -> None:
        """Do nothing: a child ends by itself soon after its worker."""

    def oom_kills(self) -> int:
        """Return 0."""
        return 0

    def orphan(self) -> None:
        """Have the children end soon, as their worker has died."""
        for each in self.running:
            if each.process.is_alive:
                kill = functools.partial(self._world.kill, each.process, "orphan")
                self._world.after(self._world.random.random() * LINGER_S, kill)


def count(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Compute a chain of digests over the inputs and the steps, with a checkpoint after each step.

    A step that is left out, repeated or taken from another state changes the product. The row also names
    the inputs' contents, from which a mixture of two generations shows.
    """
    config = next(iter(config.values()))
    taken = _read(config, inputs)
    start, state = 0, hashlib.sha256(f"{config.seed} {taken}".encode()).hexdigest()[:16]
    if context.resume is not None:
        start = context.resume.step
        state = (context.resume.folder / "state").read_text(encoding="utf-8")
    for step in range(start + 1, config.num_steps + 1):
        time.sleep(config.step_s)
        state = hashlib.sha256(f"{state}:{step}".encode()).hexdigest()[:16]
        context.report(step)
        with context.checkpoint(step) as folder:
            (folder / "state").write_text(state, encoding="utf-8")
        context.stop_if_asked()
    _read(config, inputs)  # as an evaluation does, to which retired files show only now
    for stage in config.takes:
        context.retire(stage, best=["count.txt"], none=["count.txt"])
    for name in OUTPUT:
        (context.output / name).write_text(f"{name} {state}", encoding="utf-8")
    return [{"state": state}]


OUTPUT = ("count.txt", "weights")
"""Files of the product. The second one may be retired when all stages that take it are done."""


def _read(config: Config, inputs: Inputs) -> str:
    """Return the content of all inputs."""
    return "".join(
        (folder / name).read_text(encoding="utf-8")
        for stage in config.takes
        for folder in inputs.each(stage).values()
        for name in OUTPUT
    )


NAME = "simulated"
STAGES = {
    name: StageSpec(run="orchestrator.simulation.small_sweep:count", name=name, reads=(name,), after=after)
    for name, after in {"make": (), "use": ("make",)}.items()
}
LEASE_S = 6.0


class Scope(NamedTuple):
    """How large the world of a run is, and how much befalls it.

    Attributes:
        num_cells: cells of the sweep, which share a stage and have one of their own.
        num_steps: steps of a stage, with a checkpoint after each.
        step_s: seconds that each of them takes.
        num_machines: machines, all of which may work.
        num_workers: workers at the start, where no scheduler starts them.
        num_faults: how much befalls the run.
        within: most steps of the world from one fault to the next one.
    """

    num_cells: int
    num_steps: int
    step_s: float
    num_machines: int
    num_workers: int
    num_faults: int
    within: int

    @property
    def form(self) -> tuple[int, int, float]:
        """The cells of the sweep, the steps of a stage and the seconds of each."""
        return self.num_cells, self.num_steps, self.step_s


STAGE_STEPS = ((1, 0.3), (1, 0.3), (2, 0.3), (2, 0.3), (1, 8.0), (2, 8.0), (3, 5.0))
"""Steps of a stage and the seconds of each: some outlast the lease of an owner that stops."""


def draw_scope(draw: Random) -> Scope:
    """Draw how large the world of a run is: from a lone worker without a fault to three, and eight faults.

    Each size is as likely as another one, as different mistakes show in different worlds; docs/simulation.md
    has the measurements.
    """
    num_steps, step_s = draw.choice(STAGE_STEPS)
    return Scope(
        num_cells=draw.choice((1, 1, 2)),
        num_steps=num_steps,
        step_s=step_s,
        num_machines=draw.choice((1, 2, 3)),
        num_workers=draw.choice((1, 2, 3)),
        num_faults=draw.choice((0, 1, 2, 3, 5, 8)),
        within=draw.choice((200, 400, 700)),
    )


@functools.cache
def sweep_of(num_cells: int, num_steps: int, step_s: float) -> ComposedSweep:
    """Return a sweep whose cells share a stage and have one of their own; see `Scope`."""
    chains = Chains(STAGES)
    cells = []
    for seed in range(num_cells):
        step = {"num_steps": num_steps, "step_s": step_s}
        config = {"make": {**step, "seed": 0, "takes": []}, "use": {**step, "seed": seed, "takes": ["make"]}}
        chain = chains.chain(Subject({"seed": str(seed)}, {}, config))
        cells.append(
            Cell(id=f"seed{seed}", axes={"seed": str(seed)}, columns={}, config=config, stage_digests=chain)
        )
    return ComposedSweep(name=NAME, specs=dict(chains.specs), stages=chains.stages, cells=tuple(cells))


@functools.cache
def settings_of(retention: Literal["all", "best", "none"], num_retries: int) -> RunSettings:
    """Return the run settings of a launch: short times, and as many retries for each cause."""
    policy = Policy(
        lease_s=LEASE_S,
        grace_s=2.0,
        checkpoint_interval_s=0.0,
        retention=retention,
        retries=dict.fromkeys(Cause, num_retries),
        breaker=0,
        quarantine_s=0.0,
    )
    return RunSettings(
        launcher={"name": "local"}, tracker=TrackerSettings(), policy=policy, store=StoreSettings()
    )


@functools.cache
def revision_of(num_cells: int, num_steps: int, step_s: float) -> Revision:
    """Return the sealed sweep. Each worker reads it in reality; here that would take most of the time."""
    sweep = sweep_of(num_cells, num_steps, step_s)
    return Revision(nonce="sealed", number=1, content=content_digest(sweep), sweep=sweep)


@functools.cache
def prepared(
    num_cells: int,
    num_steps: int,
    step_s: float,
    retention: Literal["all", "best", "none"],
    num_retries: int,
) -> Mapping[str, tuple[int, bytes]]:
    """Return the files of a store in which a sweep was launched; called in a running world."""
    world = World(0)
    files = Files(world)
    revision = revision_of(num_cells, num_steps, step_s)
    # A process reads these once: here, and not in a step of whichever of its runs needs them first.
    provenance.boot_id()
    provenance.pid_namespace()
    with running(world, files):
        ledger = open_ledger(SHARED, create=True, at="")
        ledger.seal(lambda number: revision, NAME, revision.content)
        settings = settings_of(retention, num_retries)
        ledger.add_request(
            NAME, Request(nonce=new_nonce(), number=0, verb="launch", revision=1, settings=settings)
        )
    return files.snapshot()


@functools.cache
def calm_table(num_cells: int, num_steps: int, step_s: float) -> Mapping[str, Any]:
    """Return the rows of a run that nothing befell, computed by hand: digest of a stage to its rows."""
    sweep = sweep_of(num_cells, num_steps, step_s)
    return {digest: ({"state": _state(sweep, digest)},) for digest in sweep.stages}


def _state(sweep: ComposedSweep, digest: str) -> str:
    instance = sweep.stages[digest]
    settings = instance.reads[instance.stage]
    taken = "".join(f"{name} {_state(sweep, each.digest)}" for each in instance.inputs for name in OUTPUT)
    state = hashlib.sha256(f"{settings['seed']} {taken}".encode()).hexdigest()[:16]
    for step in range(1, settings["num_steps"] + 1):
        state = hashlib.sha256(f"{state}:{step}".encode()).hexdigest()[:16]
    return state
