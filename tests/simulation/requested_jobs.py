"""Runs during which people cancel, rerun, launch and discard while a scheduler or Ray's driver works."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from orchestrator.api.reconciling import PendingLaunch, is_open, submit_pass
from orchestrator.api.state import SweepState
from orchestrator.core.state import State
from orchestrator.errors import InfrastructureError
from orchestrator.jobs.records import Submission
from orchestrator.launchers.base import Limits, SubmitOutcome, Verdict
from orchestrator.launchers.ray.launcher import ALL
from orchestrator.simulation.invariants import RuleBroken
from orchestrator.simulation.places import nobody
from orchestrator.simulation.world import Machine, SimulatedProcess
from tests.simulation.cluster_runs import ClusterPlay, launches
from tests.simulation.ray_cluster import SimulatedWorkers
from tests.simulation.ray_runs import CLOSED_S, CLUSTER, RayPlay
from tests.simulation.request_runs import PEOPLE, AllOver, RequestPlay
from tests.simulation.scheduler import SimulatedSubmitter, Task, now

KILLED_S = 5.0
"""Time from the signal that stops a cancelled job to the one that kills it, in seconds."""

QUIET_S = 10.0
"""A driver that ends well has seen requests of so many seconds ago."""


class JobRequestPlay(RequestPlay, ClusterPlay):
    """A run with people and a scheduler."""

    FAULTS = (*ClusterPlay.FAULTS, *PEOPLE)

    def launched(self, machine: Machine) -> None:
        """Start a monitor, as a launch that waits is one."""
        self.start_monitor(machine, 0.2)

    def accept(self, submission: Submission) -> SubmitOutcome:
        """Take a submission, of which each task is for cells that somebody wants."""
        for index, cells in enumerate(submission.tasks):
            self.rules.check_given(cells, f"task {index} of submission {submission.number}")
        return super().accept(submission)

    def cancel(self, tasks: Sequence[str]) -> None:
        """Cancel tasks: one that waits is over, one that runs is stopped, and killed soon."""
        for task in self.tasks:
            if f"{task.number}_{task.index}" not in tasks:
                continue
            if task.word == "PENDING":
                self._over(task, "CANCELLED")
            elif task.word == "RUNNING" and task.process is not None:
                self._stops[task.process.name] = "stopped"
                self.world.after(KILLED_S, lambda task=task, of=task.process: self._kill(task, of))

    def _kill(self, task: Task, process: SimulatedProcess) -> None:
        if task.process is process and task.word == "RUNNING":
            self._over(task, "CANCELLED")
            self.world.kill(process, "cancelled")


class RaySubmitter(SimulatedSubmitter):
    """Submits drivers to the simulated cluster; see `orchestrator.launchers.base.Submitter`."""

    name = "tests.simulation.ray_cluster:SimulatedDrivers"
    cells_per_job = ALL
    file = "job.json"

    def limits(self, *, dry_run: bool = False) -> Limits:
        return Limits(CLUSTER, 1)


class RayRequestPlay(RequestPlay, RayPlay):
    """A run with people and drivers. Passes over jobs submit them, and find out that they are over.

    Attributes:
        words: id of a driver's job to what the cluster calls its state.
    """

    FAULTS = (*RayPlay.FAULTS, *PEOPLE)

    def __init__(self, seed: int, *, is_calm: bool = False) -> None:
        super().__init__(seed, is_calm=is_calm)
        self.words: dict[str, str] = {}
        self._num_monitors = 0
        self._drivers: dict[str, SimulatedProcess] = {}
        self._given: dict[int, Sequence[str]] = {}  # number of a submission to its cells
        self._place: Machine = self.machines[0]
        now[:] = [self]

    # The cluster

    def asked(self) -> None:
        """Answer nothing while the network is down."""
        process = self.world.current
        self.world.step("ray", "asked")
        if process is not None and process.machine.cut_until_s > self.world.now_s:
            raise InfrastructureError("the cluster does not answer")

    @property
    def blank_s(self) -> float:
        """The cluster lists all that it has."""
        return 0.0

    @property
    def tasks(self) -> list[Task]:
        """No tasks of arrays."""
        return []

    def accept(self, submission: Submission) -> SubmitOutcome:
        """Take a submission, and start its driver."""
        try:
            self.asked()
        except InfrastructureError as error:
            return SubmitOutcome(Verdict.UNREACHED, message=error.what)
        self.rules.check_given(submission.tasks[0], f"submission {submission.number}")
        self._num_submissions += 1
        self._given[submission.number] = submission.tasks[0]
        self.words[f"job{submission.number}"] = "PENDING"
        self.start_driver(submission, 0, self._place, after_s=0.3 + self.world.random.random())
        return SubmitOutcome(Verdict.ACCEPTED, job=f"job{submission.number}")

    def started(self, number: int, process: SimulatedProcess) -> None:
        """Note that a driver runs."""
        job = f"job{number}"
        self._drivers[job] = process
        if self.words.get(job) == "PENDING":
            self.words[job] = "RUNNING"

    def stopped(self, number: int, word: str) -> None:
        """Note that a driver's job is over."""
        if self.words.get(f"job{number}") in ("PENDING", "RUNNING"):
            self.words[f"job{number}"] = word

    def cancel(self, tasks: Sequence[str]) -> None:
        """Stop the jobs of drivers."""
        for name in (task.rpartition("_")[0] for task in tasks):
            if self.words.get(name) in ("PENDING", "RUNNING"):
                self.words[name] = "STOPPED"
                if (process := self._drivers.get(name)) is not None:
                    self._parents[process.name] = 2
                    self.world.kill(process, "its job was stopped")

    def _end_job(self, driver: SimulatedProcess, *, is_killed: bool) -> None:
        number = int(driver.name[6:].partition(".")[0])
        self.stopped(number, "FAILED")
        self._parents[driver.name] = 2
        self.start_monitor(self.world.random.choice(self.machines), number)
        if is_killed:
            self.world.kill(driver, "its job was stopped")

    # Passes

    def changed(self, kind: str, key: str) -> None:
        """Check a change of the store; from a closing on, a driver soon starts nothing."""
        super().changed(kind, key)
        parts = key.split("/")
        if parts[0] == "sweeps" and parts[-2] == "closings" and not parts[-1].startswith("."):
            self._closed_s.setdefault(int(parts[3]), self.world.now_s + CLOSED_S)

    def submit(self, machine: Machine, process: SimulatedProcess) -> None:
        """Start what submits, on the machine on which the driver will run."""
        self.start_monitor(machine, 0)

    def _pass(self, view: SweepState) -> SweepState:
        limits = Limits(CLUSTER, 1)
        asked = [PendingLaunch(each, RaySubmitter(), limits) for each in launches(view) if each.number > 1]
        return submit_pass(view, asked, notify=lambda line: None).view

    def launched(self, machine: Machine) -> None:
        """Start what submits and waits, as a launch does."""
        self.start_monitor(machine, 0)

    def start_monitor(self, machine: Machine, number: int) -> None:
        """Make passes over the jobs until no cell can go on."""
        process: SimulatedProcess | None = None
        self._num_monitors += 1

        def main() -> None:
            assert process is not None
            while True:
                with contextlib.suppress(OSError, InfrastructureError):
                    self._place = machine
                    view = SweepState(self.place.ledger(process, lambda: ""), self.sweep, 1, sealed=True)
                    view = self._pass(view)
                    if not any(is_open(view, cell) for cell in self.sweep.cells):
                        return
                self.world.sleep(3.0 + 4.0 * self.world.random.random())

        after_s = 2 * self.world.random.random()
        process = self.world.start(f"monitor{self._num_monitors}", machine, main, after_s=after_s)

    def end(self) -> None:
        """Check what the requests came to, and launch all again on nodes that work."""
        self.draining.clear()
        self.known |= set(self.nodes.values())
        super().end()

    # What must hold

    def check_start(self, pool: SimulatedWorkers, slot: int, argv: list[str]) -> None:
        """Check the start of a worker: somebody wants a cell."""
        super().check_start(pool, slot, argv)
        self.rules.check_given([cell.id for cell in self.sweep.cells], f"worker {slot} of {argv[-3]}")

    def _check_exit(self, name: str, code: int) -> None:
        """Check that a driver which reports success leaves none of its cells undone that anybody wants."""
        self.world.note("say", f"exit code {code}")
        number = int(name[6:].partition(".")[0])
        asked_s = max(at_s for at_s, _ in self.rules.requests)
        is_quiet = self.world.now_s - asked_s > QUIET_S
        if code or not is_quiet or number in self._closed_s:
            return
        current, self.world.current = self.world.current, None
        view = AllOver(self.place.ledger(nobody(), lambda: ""), self.sweep, 1, sealed=True)
        open_states = (State.PENDING, State.RELEASED, State.LOST)
        left = [cell for cell in self._given[number] if view.cells[cell].state in open_states]
        self.world.current = current
        if left:
            self.world.fail(RuleBroken(2, f"ray: {name} ends well, and {', '.join(left)} can go on"))
