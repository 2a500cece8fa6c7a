"""What a simulated cluster has: free GPUs of nodes that are in use, and the disk on which the store lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from orchestrator.core.nodes import AgedReport, NodeReport, left_out
from orchestrator.core.records import End, Owner
from orchestrator.core.schedule import FreeGpus
from orchestrator.simulation.clock import Clock
from orchestrator.simulation.faults import FaultKind


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
        self._clock = clock
        self._quarantine_s = quarantine_s
        self._reports: dict[int, list[tuple[NodeReport, float]]] = {}
        self._out: dict[int, int] = {}  # nodes where nothing starts, and how many of their GPUs are free
        self._until_s: dict[int, float] = {}
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
        self._until_s[node] = max(self._until_s.get(node, 0.0), self._clock.now_s + seconds)
        self._clock.after(seconds, lambda: self._bring_back(node))

    def _bring_back(self, node: int) -> None:
        if node in self._out and self._clock.now_s >= self._until_s[node] - 1e-3:
            self._gpus.free(node, self._out.pop(node))

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
    """The disk on which the store lies. It is full for a while, if faults say so.

    Args:
        faults: of which those with `full_hours` say when.
        clock: of the simulation.
        on_space: called when there is space again.
    """

    def __init__(self, faults: Iterable[FaultKind], clock: Clock, on_space: Callable[[], None]) -> None:
        self._clock = clock
        self._full = [f for f in faults if f.full_hours[1]]
        for fault in self._full:
            clock.after(3600 * fault.full_hours[1], on_space)

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
