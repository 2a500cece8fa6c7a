"""Processes, machines and the clock of a simulated cluster, on which the production code runs.

Each simulated process is a thread. One of them runs at a time: it holds the baton until the schedule, drawn
from the seed, passes it on. Every system call and every sleep is a step, at which the baton may change hands,
and at which a process may be killed, a machine may stop, or the clock may move. So a seed decides everything.

`orchestrator.simulation.system` connects the production code to the world that runs.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import marshal
import random
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.simulation.handles import Node

EPOCH_S = 1.8e9
"""Time of the simulated clock at the start, in seconds since 1970."""

STEP_S = 0.002
"""Seconds that a system call takes."""

BURST = 40
"""Most steps that a process makes before another one may go on."""


class Killed(BaseException):
    """Raised in a simulated process that was killed, at each step that it still tries to make."""


class StuckError(AssertionError):
    """Processes went on for longer than any sweep of this size may take."""


class Machine:
    """A simulated machine.

    Args:
        name: of the machine.
        skew_s: by how much its clock is ahead, in seconds.
        rate: seconds of its monotonic clock in a second.
        cache_s: for how many seconds it may show names of the shared folder as they were, as NFS does.

    Attributes:
        cut_until_s: until when the network does not reach it.
        unsynced: files that it wrote and did not sync.
        seen: what folders held when it listed them last, and when that was.
        absent: paths that it did not find, and when that was.
    """

    def __init__(self, name: str, *, skew_s: float = 0.0, rate: float = 1.0, cache_s: float = 0.0) -> None:
        self.name = name
        self.skew_s = skew_s
        self.rate = rate
        self.cache_s = cache_s
        self.cut_until_s = 0.0
        self.unsynced: dict[Node, None] = {}
        self.seen: dict[str, tuple[float, list[str]]] = {}
        self.absent: dict[str, float] = {}


class SimulatedProcess:
    """A simulated process; see `World.start`.

    Attributes:
        name: unique in its world.
        machine: that it runs on.
        wake_s: when it wants to go on.
        stopped_until_s: until when it is stopped, whatever it wants.
        is_over: whether it has ended.
        is_killed: whether it was killed; it has ended, or does at its next step.
        on_end: called when it has ended.
        raises: an error that its next sleep raises; None for none.
        has_raised: whether it was raised.
    """

    def __init__(self, name: str, machine: Machine, target: Callable[[], object], wake_s: float) -> None:
        self.name = name
        self.machine = machine
        self.target = target
        self.wake_s = wake_s
        self.stopped_until_s = 0.0
        self.baton = allocate_lock()
        self.baton.acquire()
        self.is_over = False
        self.is_killed = False
        self.on_end: Callable[[], object] = lambda: None
        self.raises: Exception | None = None
        self.has_raised = False

    @property
    def is_alive(self) -> bool:
        """Whether it neither ended nor was killed."""
        return not self.is_over and not self.is_killed


_ORDER = itertools.count()
"""Of several events at one time, the one that was planned first comes first."""

_idle: deque[_Thread] = deque()
"""Threads that wait for a process. To start one takes longer than most processes run."""


class _Thread(threading.Thread):
    """A thread that runs one simulated process after the other."""

    def __init__(self) -> None:
        super().__init__(name="simulated process", daemon=True)
        self._go = allocate_lock()
        self._go.acquire()
        self._work: Callable[[], object] = lambda: None
        self.start()

    def do(self, work: Callable[[], object]) -> None:
        self._work = work
        self._go.release()

    def run(self) -> None:
        while True:
            self._go.acquire()
            self._work()


class Trace:
    """All steps of a run, in order, with their times and processes.

    Attributes:
        steps: the time of each, its process, kind and object.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[float, str, str, str]] = []

    def lines(self) -> list[str]:
        """Return the steps for people."""
        return [f"{now_s:.3f} {name} {kind} {what}\n" for now_s, name, kind, what in self.steps]

    def digest(self) -> str:
        """Return a digest of all steps so far, without a line for each, as that takes long."""
        return hashlib.blake2b(marshal.dumps(self.steps, 2)).hexdigest()[:32]


class World:
    """The processes of one run, and what happens to them.

    Args:
        seed: decides everything that happens.

    Attributes:
        random: of the run. Whatever is drawn is drawn from it, in the order of the steps.
        now_s: seconds since the start.
        num_steps: steps made so far.
        current: the process that holds the baton; None outside of `run`.
        trace: of the run so far.
        before_step: called at each step, with its kind and object; it may raise, kill or let time pass.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.num_steps = 0
        self.current: SimulatedProcess | None = None
        self.before_step: Callable[[str, str], object] = lambda kind, what: None
        self.processes: list[SimulatedProcess] = []
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._left = 0
        self._limit_s = 0.0
        self._failure: BaseException | None = None
        self._back = allocate_lock()
        self._back.acquire()
        self.trace = Trace()

    # Processes

    def start(
        self, name: str, machine: Machine, target: Callable[[], object], *, after_s: float = 0.0
    ) -> SimulatedProcess:
        """Start a process on a machine after some time; it ends when the target returns."""
        process = SimulatedProcess(name, machine, target, self.now_s + after_s)
        self.processes.append(process)
        thread = _idle.pop() if _idle else _Thread()
        thread.do(lambda: self._run(process, thread))
        return process

    def _run(self, process: SimulatedProcess, thread: _Thread) -> None:
        process.baton.acquire()
        try:
            if not process.is_killed:
                process.target()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - reported by `run`
            if not process.is_killed:
                self.fail(error)
        process.is_over = True
        self.processes.remove(process)
        try:
            if not process.is_killed:
                process.on_end()
        except BaseException as error:  # noqa: BLE001 - reported by `run`, which would wait for ever
            self.fail(error)
        _idle.append(thread)
        self._pass_on(process)

    def kill(self, process: SimulatedProcess, why: str = "killed") -> None:
        """Kill a process: it makes no step any more."""
        if process.is_alive:
            self.note("kill", f"{process.name}: {why}")
            process.is_killed = True
            process.wake_s = process.stopped_until_s = self.now_s
            process.on_end()
        if process is self.current:
            raise Killed

    def run(self, *, limit_s: float) -> None:
        """Run until all processes have ended.

        Args:
            limit_s: most seconds, simulated.

        Raises:
            StuckError: Some still run then. They are killed.
            BaseException: What a process raised.
        """
        self._limit_s = self.now_s + limit_s
        stuck: list[str] = []
        while self.processes:
            if self._failure is not None:
                self._abandon()
                raise self._failure
            chosen = self._choose()
            if self.now_s > self._limit_s and not stuck:
                stuck = [process.name for process in self.processes]
                for process in list(self.processes):
                    process.is_killed = True
                    process.wake_s = process.stopped_until_s = self.now_s
                self._limit_s = float("inf")
            self._hand(chosen)
            self._back.acquire()
            self.current = None
        if self._failure is not None:
            raise self._failure
        if stuck:
            raise StuckError(f"still running after {limit_s:.0f} s: {', '.join(stuck)}")

    def fail(self, error: BaseException) -> None:
        """End the run with an error soon, whatever the running process makes of exceptions."""
        if self._failure is None:
            self.note("fail", str(error))
            self._failure = error
            self._limit_s = -1.0

    def _abandon(self) -> None:
        while self.processes:
            process = self.processes[0]
            process.is_killed = True
            self._hand(process)
            self._back.acquire()
            self.current = None

    # The schedule

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        """Have something happen to the world after some time, if a process still runs then."""
        heapq.heappush(self._events, (self.now_s + seconds, next(_ORDER), act))

    def _choose(self) -> SimulatedProcess:
        """Return the process that goes on next; move the clock on if all sleep."""
        self.current = None
        while self._events and self._events[0][0] <= self.now_s:
            act = heapq.heappop(self._events)[2]
            try:
                act()
            except Exception as error:  # noqa: BLE001 - reported by `run`, which would wait for ever
                self.fail(error)
        now_s = self.now_s
        ready = [p for p in self.processes if p.wake_s <= now_s and p.stopped_until_s <= now_s]
        if not ready:
            now_s = min(max(p.wake_s, p.stopped_until_s) for p in self.processes)
            if self._events and self._events[0][0] < now_s:
                self.now_s = self._events[0][0]
                return self._choose()
            self.now_s = now_s
            ready = [p for p in self.processes if p.wake_s <= now_s and p.stopped_until_s <= now_s]
        number = self.random.random()
        self._left = 1 + int(BURST * number * number)
        return ready[int(number * 7919) % len(ready)] if len(ready) > 1 else ready[0]

    def _hand(self, process: SimulatedProcess) -> None:
        self.current = process
        process.baton.release()

    def _pass_on(self, process: SimulatedProcess) -> None:
        """Give the baton of a process that ended, or failed, away."""
        if not self.processes or self.now_s > self._limit_s:
            self.current = None
            self._back.release()
        else:
            self._hand(self._choose())

    def _switch(self, me: SimulatedProcess) -> None:
        if self.now_s > self._limit_s:
            self.current = None
            self._back.release()
            me.baton.acquire()
        else:
            chosen = self._choose()
            if chosen is not me:
                self._hand(chosen)
                me.baton.acquire()
            else:
                self.current = me
        if me.is_killed:
            raise Killed

    def step(self, kind: str, what: str = "") -> None:
        """Make a step of the process that runs; outside of a process, do nothing.

        Args:
            kind: of the step, such as a system call.
            what: it is about, such as a path.

        Raises:
            Killed: The process was killed.
            OSError: Whatever `before_step` lets happen.
        """
        me = self.current
        if me is None:
            return
        if me.is_killed:
            raise Killed
        self.num_steps += 1
        self.now_s += STEP_S
        self.trace.steps.append((self.now_s, me.name, kind, what))
        self._left -= 1
        if self._left <= 0:
            self._switch(me)
        self.before_step(kind, what)

    def note(self, kind: str, what: str) -> None:
        """Add a line to the trace."""
        name = self.current.name if self.current is not None else ""
        self.trace.steps.append((self.now_s, name, kind, what))

    def sleep(self, seconds: float) -> None:
        """Let the running process sleep for some seconds of the simulated clock."""
        me = self.current
        if me is None:
            return
        if me.is_killed:
            raise Killed
        self.num_steps += 1
        me.wake_s = self.now_s + max(0.0, seconds)
        self._switch(me)
        if me.raises is not None and not me.has_raised:
            me.has_raised = True
            raise me.raises

    def wake(self, process: SimulatedProcess) -> None:
        """Have a process that sleeps go on now."""
        process.wake_s = min(process.wake_s, self.now_s)
