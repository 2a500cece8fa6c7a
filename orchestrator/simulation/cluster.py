"""A simulated cluster: its clock, nodes and disk, its jobs and attempts, and jobs that wait for gates."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from orchestrator.core.evidence import Holds
from orchestrator.core.gates import GateRule
from orchestrator.core.goodput import Goodput, Holder
from orchestrator.core.holding import merged
from orchestrator.core.nodes import AgedReport, NodeReport, left_out
from orchestrator.core.plan import Claimable, ReadyIndex
from orchestrator.core.records import End, Owner
from orchestrator.core.schedule import FreeGpus
from orchestrator.core.state import CellStatus, StageStatus, State
from orchestrator.core.sweep import Cell
from orchestrator.execution.history import WorkerHistory
from orchestrator.simulation.scenario import FaultKind, Scenario

_DIGITS = 6
"""Times are rounded to microseconds, so that equal ones are equal however they were added up."""


class Clock:
    """A clock that jumps from event to event.

    Attributes:
        now_s: seconds since the simulation began.
    """

    def __init__(self) -> None:
        self.now_s = self._once_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_planned = 0

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Plan an event. Of several at one time, the one that was planned first comes first."""
        self._num_planned += 1
        heapq.heappush(self._events, (round(self.now_s + seconds, _DIGITS), self._num_planned, event))

    def after_once(self, seconds: float, event: Callable[[], None]) -> None:
        """Plan an event, unless one that was planned so comes first."""
        if not self.now_s < self._once_s <= self.now_s + seconds:
            self._once_s = round(self.now_s + seconds, _DIGITS)
            self.after(seconds, event)

    def run_due(self) -> bool:
        """Run the next event of this very moment; return False if there is none."""
        if not self._events or self._events[0][0] > self.now_s:
            return False
        heapq.heappop(self._events)[2]()
        return True

    def next_s(self) -> float | None:
        """Return when the next event comes; None if none is planned."""
        return self._events[0][0] if self._events else None

    def advance(self, to_s: float) -> None:
        """Move on to a later time, at most that of the next event."""
        self.now_s = max(self.now_s, to_s)


class SimulatedNodes:
    """The nodes, each with its GPUs. A job goes to the node with the fewest free ones that suffice.

    Args:
        num_gpus: of the whole cluster.
        per_node: of one node; the last one may have fewer.
        quarantine_s: how long a node is left out on which attempts failed at once (`policy.quarantine_s`).
        clock: of the simulation.

    Attributes:
        largest: most GPUs of a node.
        num_left_out: how often a node was left out.
    """

    def __init__(self, num_gpus: int, per_node: int, *, quarantine_s: float, clock: Clock) -> None:
        self._gpus = FreeGpus(num_gpus, per_node)
        self._per_node, self._num_gpus = per_node, num_gpus
        self._clock, self._quarantine_s = clock, quarantine_s
        self._reports: dict[int, list[tuple[NodeReport, float]]] = {}
        self._out: dict[int, int] = {}  # nodes where nothing starts, and how many of their GPUs are free
        self._until_s: dict[int, float] = {}
        self._outages: list[tuple[float, float, int]] = []  # from, until, and GPUs of the node
        self.largest = self._gpus.largest
        self.num_left_out = 0

    def fits(self, num_gpus: int) -> bool:
        """Return whether some node has as many free GPUs."""
        return self._gpus.fits(num_gpus)

    def take(self, num_gpus: int) -> int:
        """Take GPUs of one node, and return the node; -1 for a job that needs none."""
        return self._gpus.take(num_gpus)

    def give_back(self, node: int, num_gpus: int) -> None:
        """Free the GPUs of a job."""
        self._gpus.free(node, num_gpus)
        if node in self._out:
            self._out[node] += self._gpus.take_out(node)

    def take_out(self, node: int, seconds: float) -> None:
        """Start nothing on a node for a while. What runs there goes on."""
        if node < 0:
            return
        self._out[node] = self._out.get(node, 0) + self._gpus.take_out(node)
        now_s, before_s = self._clock.now_s, self._until_s.get(node, 0.0)
        self._until_s[node] = max(before_s, now_s + seconds)
        of_node = min(self._per_node, self._num_gpus - node * self._per_node)
        self._outages.append((max(now_s, before_s), now_s + seconds, of_node))
        self._clock.after(seconds, lambda: self._bring_back(node))

    def _bring_back(self, node: int) -> None:
        if node in self._out and self._clock.now_s >= self._until_s[node] - 1e-3:
            self._gpus.free(node, self._out.pop(node))

    def away_gpu_s(self, end_s: float) -> float:
        """Return the GPU-seconds of nodes, up to a time, in which nothing started there."""
        return sum(max(0.0, min(until_s, end_s) - from_s) * gpus for from_s, until_s, gpus in self._outages)

    def report(self, owner: Owner, node: int, end: End) -> None:
        """Take the report of an attempt that failed by its node; leave the node out if that is due."""
        now_s, reports = self._clock.now_s, self._reports.setdefault(node, [])
        report = NodeReport(
            nonce="",
            number=len(reports) + 1,
            node=owner.host,
            cluster=owner.cluster,
            kind="failed",
            why=end.message,
            cause=end.cause,
        )
        reports.append((report, now_s))
        aged = [AgedReport(each, now_s - at_s) for each, at_s in reports]
        found = left_out(aged, self._quarantine_s).get((owner.cluster, owner.host))
        if found is not None:
            self.num_left_out += 1
            self.take_out(node, found.left_s)


class SimulatedDisk:
    """The disk on which the store lies. Faults with `full_hours` fill it for a while.

    Args:
        faults: all that are simulated.
        clock: of the simulation.
        on_space: called when there is space again.
    """

    def __init__(self, faults: Iterable[FaultKind], clock: Clock, on_space: Callable[[], None]) -> None:
        self._clock = clock
        self._full = [f for f in faults if f.full_hours[1]]
        for fault in self._full:
            clock.after(3600 * fault.full_hours[1], on_space)

    @property
    def now_s(self) -> float:
        """Virtual time."""
        return self._clock.now_s

    @property
    def space(self) -> tuple[int, int]:
        """Bytes that are free, and in all."""
        is_full = any(self._is_full(fault, self._clock.now_s) for fault in self._full)
        return (0 if is_full else 10**15), 10**15

    def refuses(self, reached_s: float, interval_s: float) -> FaultKind | None:
        """Return the fault by which a stage cannot save now, or end; None if it can.

        Args:
            reached_s: work until now, from the start of the stage. It has worked without a pause meanwhile.
            interval_s: between two checkpoints; 0 without any.
        """
        for fault in self._full:
            if self._is_full(fault, self._clock.now_s) and not self._has_room(fault, reached_s, interval_s):
                return fault
        return None

    def saved_s(self, reached_s: float, interval_s: float, *, just_now: bool) -> float:
        """Return the work that the last checkpoint holds; see `refuses` for the arguments.

        Args:
            reached_s, interval_s: as there.
            just_now: whether the stage has tried to save at this moment.
        """
        saved_s = reached_s if just_now else reached_s // interval_s * interval_s
        for fault in self._full:
            is_full = self._is_full(fault, self._clock.now_s - (reached_s - saved_s))
            if is_full and not self._has_room(fault, reached_s, interval_s):
                saved_s = self._before_s(fault, reached_s) // interval_s * interval_s
        return saved_s

    def _has_room(self, fault: FaultKind, reached_s: float, interval_s: float) -> bool:
        """Return whether a stage has a checkpoint that it can delete for another one."""
        has_two = interval_s > 0 and self._before_s(fault, reached_s) >= 2 * interval_s
        return has_two and not fault.is_taken

    def _before_s(self, fault: FaultKind, reached_s: float) -> float:
        return reached_s - (self._clock.now_s - 3600 * fault.full_hours[0])

    @staticmethod
    def _is_full(fault: FaultKind, at_s: float) -> bool:
        return 3600 * fault.full_hours[0] <= at_s < 3600 * fault.full_hours[1]


@dataclass(eq=False)
class SimulatedJob:
    """A worker with GPUs of one node, and the attempt that it runs now.

    Attributes:
        owner: its identity.
        node: where it runs; -1 for a job without GPUs.
        num_gpus: that it holds.
        cells: with the stages that it may claim.
        start_s: when it started.
        attempt: that it runs; None between two.
        history: how its attempts failed.
    """

    owner: Owner
    node: int
    num_gpus: int
    cells: Sequence[Cell]
    start_s: float
    attempt: RunningAttempt | None = None
    history: WorkerHistory = field(default_factory=lambda: WorkerHistory(in_job=True))


class HowFar(NamedTuple):
    """How far an attempt came; see `Ran`."""

    was_running: bool
    made_progress: bool


@dataclass(eq=False)
class RunningAttempt:
    """An attempt that runs.

    Attributes:
        digest: of its stage.
        number: of the attempt.
        start_s: when it was claimed.
        wait_s: until it computes: for the start of its job or process, and for the last checkpoint.
        is_first: whether these seconds belong to a first start, and not to one after a failure.
        resumed_s: seconds of work in the checkpoint that it resumed from.
        is_over: whether it ended; its planned end then means nothing.
    """

    digest: str
    number: int
    start_s: float
    wait_s: float
    is_first: bool
    resumed_s: float
    is_over: bool = False


@dataclass
class Tally:
    """What is counted while a sweep runs."""

    end_s: float = 0.0
    num_jobs: int = 0
    gate_gpu_s: float = 0.0
    attempts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    holders: list[Holder] = field(default_factory=list)


class Outcome(NamedTuple):
    """What came of a sweep.

    Attributes:
        hours: from the first start to the last end.
        cells: id of a cell to its state.
        attempts: number of attempts by how they ended: succeeded, failed, released or lost.
        num_remedied: how many of them started with a remedy.
        num_left_out: how often a node was left out, since attempts failed on it at once.
        faults: number of faults by their names.
        goodput: where the held time of the GPUs went; None if no stage needs one.
        gate_gpu_hours: what gates took that were passed. It is no loss, and makes no result.
        away_gpu_hours: of nodes that were out of use, or left out, before the last end.
    """

    hours: float
    cells: dict[str, CellStatus]
    attempts: dict[str, int]
    num_remedied: int
    num_left_out: int
    faults: dict[str, int]
    goodput: Goodput | None
    gate_gpu_hours: float = 0.0
    away_gpu_hours: float = 0.0


_HELD = StageStatus(State.RUNNING, "a job waits for its gates")


class WaitingJobs:
    """The jobs that hold their GPUs while a gate of their cell is not done yet, and those that may start to.

    A scheduler starts jobs in their order, and their workers wait for the gates. If jobs started only when
    the gates are done, shorter ones would fill the nodes meanwhile, and a job that needs several GPUs of one
    node would find no node where they are free at once.

    Args:
        scenario: what is simulated.
        cells: number of GPUs to the cells of its jobs, in their order, each with the stages of one job.
        status: returns a stage's own state by digest.

    Attributes:
        are_due: whether a gate, or what it takes, has changed.
    """

    def __init__(
        self,
        scenario: Scenario,
        cells: Mapping[int, Sequence[Cell]],
        status: Callable[[str], StageStatus],
    ) -> None:
        gates = scenario.gates
        self._gates = gates
        self._status = status
        self._rule = GateRule(scenario.cells, gates)
        self._of_gates = {digest for chain in gates.chains.values() for digest in chain}
        self._jobs: dict[str, SimulatedJob] = {}
        self._final: Holds | None = None
        self.are_due = False
        gated = {stage for of_cell in gates.cells.values() for gate in of_cell for stage in gate.stages}
        self._queues = {
            num_gpus: ReadyIndex(
                [cell for cell in of_class if gated.intersection(cell.stage_digests)],
                scenario.sweep.stages,
                chain=lambda cell: cell.stage_digests,
            )
            for num_gpus, of_class in cells.items()
            if num_gpus and gated and scenario.are_held
        }

    def touch(self, digest: str) -> None:
        """Note that the records of a stage changed."""
        if digest in self._of_gates:
            self.are_due = True
            self._final = None
        for queue in self._queues.values():
            queue.touch([digest])

    def first(self, num_gpus: int, holds: Holds) -> Claimable | None:
        """Return the first stage of which a job may start, whatever its gates; None if there is none.

        Args:
            num_gpus: of the job.
            holds: what is held back in the sweep.
        """
        if (queue := self._queues.get(num_gpus)) is None:
            return None
        if self._final is None:  # what a failed gate holds back stays so
            found = self._rule.holds(self._status)
            self._final = Holds(stages={digest: hold for digest, hold in found.items() if hold.is_final})

        def status(digest: str) -> StageStatus:
            return _HELD if digest in self._jobs else self._status(digest)

        limits = merged(holds, self._final)
        return queue.next_stage(status, cancelled=frozenset(), holds=limits).claimable

    def cells(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells of a job with the gates that they wait for, which its worker may run as well."""
        before = {cell.id: self._gates.chain(replace(cell, stage_digests=())) for cell in cells}
        return [replace(cell, stage_digests=(*before[cell.id], *cell.stage_digests)) for cell in cells]

    def add(self, digest: str, job: SimulatedJob) -> None:
        """Have a job wait for the gates of a stage."""
        self._jobs[digest] = job
        self.are_due = True
        self.touch(digest)

    def remove(self, job: SimulatedJob) -> None:
        """Note that a job waits no more."""
        for digest in [digest for digest, each in self._jobs.items() if each is job]:
            del self._jobs[digest]
            self.touch(digest)

    def may_wait(self, job: SimulatedJob) -> bool:
        """Return whether a gate holds back the stage of a job for a while, be it a gate of other cells."""
        digest = next(digest for digest, each in self._jobs.items() if each is job)
        hold = self._rule.hold(digest, self._status)
        return hold is not None and not hold.is_final

    def take_due(self) -> list[SimulatedJob]:
        """Return all jobs that wait, if something changed for them since the last call."""
        due, self.are_due = self.are_due, False
        return list(self._jobs.values()) if due else []
