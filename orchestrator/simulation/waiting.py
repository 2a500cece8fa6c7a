"""Jobs that hold their GPUs while a gate of their cell is not done yet.

A scheduler starts jobs in their order, and their workers wait for the gates. If jobs started only when the
gates are done, shorter ones would fill the nodes meanwhile, and a job that needs several GPUs of one node
would find no node where they are free at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from orchestrator.core.evidence import Holds
from orchestrator.core.gates import GateRule
from orchestrator.core.holding import merged
from orchestrator.core.plan import Claimable, ReadyIndex
from orchestrator.core.state import StageStatus, State
from orchestrator.core.sweep import Cell
from orchestrator.simulation.jobs import SimulatedJob
from orchestrator.simulation.scenario import Scenario

_HELD = StageStatus(State.RUNNING, "a job waits for its gates")


class WaitingJobs:
    """The jobs that wait for gates, and those that may start to wait.

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
