"""The nodes of a simulated cluster: free GPUs, and nodes that are out of use or left out for a while."""

from __future__ import annotations

from orchestrator.core.nodes import AgedReport, NodeReport, left_out
from orchestrator.core.records import End, Owner
from orchestrator.core.schedule import FreeGpus
from orchestrator.simulation.clock import Clock


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
