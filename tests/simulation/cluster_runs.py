"""Runs of a sweep as jobs of a simulated scheduler: submissions, passes and workers are the real ones.

The scheduler numbers what it accepts, starts tasks after a while, forgets those that are over, and may lose
its reply, its memory or a listing. Several monitors make passes at once, as launches with ``--wait`` do.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from orchestrator import formats, provenance
from orchestrator.api.reconciling import SECOND_LOOK_S, PendingLaunch, is_open, submit_pass
from orchestrator.api.state import SweepState
from orchestrator.core.failure import Cause
from orchestrator.core.records import Owner, Process, Request
from orchestrator.errors import InfrastructureError
from orchestrator.execution.assignment import Assignment
from orchestrator.jobs.records import (
    RELEASED,
    JobContext,
    JobEndBatch,
    JobExitReport,
    Submission,
    cause_of_code,
)
from orchestrator.jobs.submissions import Submissions, gone_of
from orchestrator.launchers.base import Limits, SubmitOutcome, Verdict
from orchestrator.simulation.invariants import RuleBroken
from orchestrator.simulation.schedules import Play
from orchestrator.simulation.small_sweep import NAME, SimulatedChildren
from orchestrator.simulation.world import Machine, SimulatedProcess
from tests.simulation.scheduler import CLUSTER, NEVER, SETTLE_S, SimulatedSubmitter, Task, now

MAX_MONITORS = 6


def launches(view: SweepState) -> list[Request]:
    """Return the requests that matter for jobs, as `sweep reconcile` chooses them."""
    started = [request for request in view.requests if request.settings is not None]
    numbers = {view.request_summary.asked.get(cell.id) for cell in view.sweep.cells}
    numbers |= {each.submission.request for each in view.jobs.filed if each.open_tasks}
    return [each for each in started if each.number in numbers or each is started[-1]]


class ClusterPlay(Play):
    """A run with a scheduler.

    Attributes:
        tasks: all tasks that were accepted.
        is_silent_s: until when the scheduler does not answer.
        is_blank_s: until when it answers with an empty listing.
    """

    FAULTS = (
        *("kill", "kill", "monitor", "monitor", "stop", "power", "cut", "reply", "term"),
        *("preempt", "preempt", "unclear", "unclear", "silent", "blank", "evict", "evict", "forget", "clock"),
    )

    JUMP_S = 45.0  # the cells of a job that vanished wait for as long as clocks differ

    def __init__(self, seed: int, *, is_calm: bool = False) -> None:
        super().__init__(seed, is_calm=is_calm)
        self.tasks: list[Task] = []
        self.silent_s = 0.0
        self.blank_s = 0.0
        self._is_unclear = False
        self._num_monitors = 0
        now[:] = [self]

    # The scheduler

    def asked(self) -> None:
        """Answer nothing while the scheduler is silent, or the network is down."""
        process = self.world.current
        self.world.step("scheduler", "asked")
        cut_s = process.machine.cut_until_s if process is not None else 0.0
        if max(self.silent_s, cut_s) > self.world.now_s:
            raise InfrastructureError("the scheduler does not answer")

    def accept(self, submission: Submission) -> SubmitOutcome:
        """Take a submission."""
        try:
            self.asked()
        except InfrastructureError as error:
            return SubmitOutcome(Verdict.UNREACHED, message=error.what)
        is_unclear, self._is_unclear = self._is_unclear, False
        if is_unclear and self.world.random.random() < 0.5:
            return SubmitOutcome(Verdict.UNCLEAR, message="no answer")
        number = str(100 + len({task.number for task in self.tasks}))
        for index, cells in enumerate(submission.tasks):
            if (submission.number, index) not in self._closed:  # else it will claim nothing
                self._check_single(submission, cells)
            task = Task(number, index, submission)
            task.since_s = task.submitted_s = task.accepted_s = self.world.now_s
            self.tasks.append(task)
            self.world.after(0.5 + 4 * self.world.random.random(), functools.partial(self._start, task, 0))
        self.world.step("scheduler", f"accepted {number}")
        if is_unclear:
            return SubmitOutcome(Verdict.UNCLEAR, message="no answer")
        return SubmitOutcome(Verdict.ACCEPTED, job=number)

    def _check_single(self, submission: Submission, cells: Sequence[str]) -> None:
        """No cell may have two jobs that would work on it."""
        for other in self.tasks:
            both = set(other.submission.tasks[other.index]) & set(cells)
            if other.is_live and both and not self._is_closed(other):
                what = f"submission {submission.number} gives {min(both)} a second job beside {other.number}"
                self.world.fail(RuleBroken(2, f"jobs: {what}"))

    def _is_closed(self, task: Task) -> bool:
        return not task.claims and (task.submission.number, task.index) in self._closed

    @functools.cached_property
    def _closed(self) -> set[tuple[int, int]]:
        return set()

    def changed(self, kind: str, key: str) -> None:
        """Check a change of the store."""
        super().changed(kind, key)
        parts = key.split("/")
        if parts[0] == "sweeps" and parts[-2] == "closings" and not parts[-1].startswith("."):
            self.closed(key)

    def closed(self, key: str) -> None:
        """Check a closing: nothing that it names may run, or wait for long already."""
        batch = formats.decode(self.place.content(key) or b"", JobEndBatch)
        number = int(key.split("/")[3])
        for over in batch.over:
            self._closed.add((number, over.index))
            for task in self.tasks:
                if (task.submission.number, task.index) != (number, over.index) or not task.is_live:
                    continue
                waits_s = self.world.now_s - task.accepted_s
                # One that a slow launch submitted just now finds the closing, and claims nothing.
                is_late = over.detail == NEVER and waits_s < SETTLE_S / 2
                is_late |= over.word == "EXITED" and task.word == "RUNNING" and not task.claims
                if task.claims or not is_late:
                    what = (
                        f"{task.number}_{task.index} is {task.word} and was closed: {over.word} {over.detail}"
                    )
                    self.world.fail(RuleBroken(2, f"jobs: {what}"))

    def _start(self, task: Task, restart: int) -> None:
        if task.word != "PENDING" or task.restarts != restart:
            return
        machine = self.world.random.choice(self.machines)
        task.word, task.since_s, task.claims = "RUNNING", self.world.now_s, True
        name = f"job{task.number}_{task.index}.{task.restarts}"
        process = task.process = self.world.start(name, machine, lambda: self._job(task, name, machine))
        children = self.children[name] = SimulatedChildren(self.world, process)

        def ended() -> None:
            children.orphan()
            if task.process is process and task.word == "RUNNING":
                self._over(task, "NODE_FAIL" if process.is_killed else "COMPLETED")

        process.on_end = ended

    def _over(self, task: Task, word: str) -> None:
        task.word, task.since_s, task.claims = word, self.world.now_s, False

    def _requeue(self, task: Task) -> None:
        """End a start of a job, and have it start again."""
        if task.word != "RUNNING" or task.process is None:
            return
        process, task.process = task.process, None
        task.restarts += 1
        task.word, task.claims = "PENDING", False
        task.since_s = task.submitted_s = self.world.now_s
        again_s = 2 + 20 * self.world.random.random()
        self.world.after(again_s, functools.partial(self._start, task, task.restarts))
        self.world.kill(process, "requeued")

    def befall(self, name: str) -> None:
        """Let something happen."""
        world = self.world
        live = [task for task in self.tasks if task.is_live]
        match name:
            case "monitor":
                mine = [process for process in world.processes if process.name.startswith("monitor")]
                self.events[name] += 1
                if mine:
                    world.kill(world.random.choice(mine))
            case "preempt" if live:
                self.events[name] += 1
                self._requeue(world.random.choice(live))
            case "unclear":
                self.events[name] += 1
                self._is_unclear = True
            case "silent":
                self.events[name] += 1
                self.silent_s = world.now_s + world.random.choice((5.0, 40.0))
            case "blank":
                self.events[name] += 1
                self._blank(world.random.choice((1.0, 3.0, 4.5)))
            case "evict" if live:  # a node is drained while the controller starts anew
                self.events[name] += 1
                task = world.random.choice(live)
                if task.process is not None:
                    self._stops[task.process.name] = "stopped"
                world.after(1.0, functools.partial(self._blank, 4.0))
            case "forget" if live:  # it loses its last seconds, and kills what it does not know
                self.events[name] += 1
                task = world.random.choice(live)
                self._over(task, "LOST")
                if task.process is not None:
                    world.kill(task.process, "unknown to the scheduler")
            case "preempt" | "forget" | "evict":
                pass
            case _:
                super().befall(name)

    def _blank(self, seconds: float) -> None:
        """Have the scheduler list nothing, but never at both looks of a pass: no asker could see that."""
        if self.blank_s == 0.0 or self.world.now_s > self.blank_s + 4 * SECOND_LOOK_S:
            self.blank_s = self.world.now_s + seconds

    # What runs as a job

    def _job(self, task: Task, name: str, machine: Machine) -> None:
        """What `orchestrator.launchers.slurm.job` does, without Slurm's commands."""
        submission, restart = task.submission, task.restarts
        try:
            ledger = self.place.ledger(self.children[name].worker, lambda: "")
            submissions = Submissions(ledger, NAME)
            if submissions.is_closed(submission.number, task.index) is not None:
                self.world.note("say", "this task was given up: it claims nothing")
                task.claims = False
                return
            if (submission.number, task.index) in self._closed:
                self.world.fail(RuleBroken(1, f"jobs: {name} was given up, and claims"))
            context = JobContext(
                cluster=CLUSTER,
                job=task.number,
                array_index=task.index,
                restart_count=restart,
                node=machine.name,
                before=Cause.PREEMPTED if restart else None,
                gone=tuple(gone_of(submissions.read())),
            )
            order = Assignment(
                store=self.place.url,
                sweep=NAME,
                revision=1,
                cells=submission.tasks[task.index],
                settings=self.settings,
                code_digest="code",
                job=context,
                request=submission.request,
            )
            process = Process(boot_id=machine.name, namespace="simulated", pid=1, start=name)
            owner = Owner(
                host=machine.name,
                process=process,
                cluster=CLUSTER,
                job=task.number,
                array_index=task.index,
                restart_count=restart,
            )
            code = self.work(name, order, owner)
        except (OSError, InfrastructureError) as error:  # as without a store no report can be written
            self.world.note("say", str(error))
            return
        is_again = code == RELEASED
        report = JobExitReport(
            code=code,
            cause=cause_of_code(code),
            why="",
            claimed=True,
            requeued=is_again,
            restart=restart,
            node=machine.name,
            seconds=0.0,
            at=provenance.now(),
        )
        task.claims = is_again  # from its last report on, it does nothing
        try:
            submissions.report(submission.number, task.index, restart, report)
        except (OSError, InfrastructureError) as error:
            self.world.note("say", str(error))
        if is_again:
            self._requeue(task)

    # What watches

    def begin(self) -> None:
        """Start monitors."""
        for _ in range(self.world.random.choice((1, 2, 2))):
            self.start_monitor(self.world.random.choice(self.machines), 2 * self.world.random.random())

    def end(self) -> None:
        """Start a monitor to which nothing happens."""
        self.silent_s = self.blank_s = 0.0
        self._is_unclear = False
        self._num_monitors = MAX_MONITORS
        self.start_monitor(Machine("the last"), 0.0)

    def start_monitor(self, machine: Machine, after_s: float) -> None:
        """Start a monitor, which is replaced when it dies."""
        self._num_monitors += 1
        process: SimulatedProcess | None = None

        def main() -> None:
            assert process is not None
            view: SweepState | None = None
            while True:
                try:
                    if view is None:
                        ledger = self.place.ledger(process, lambda: "")
                        view = SweepState(ledger, self.sweep, 1, sealed=True)
                    limits = Limits(CLUSTER, 10)
                    asked = [PendingLaunch(each, SimulatedSubmitter(), limits) for each in launches(view)]
                    view = submit_pass(view, asked, notify=lambda line: None).view
                    if not any(is_open(view, cell) for cell in self.sweep.cells):
                        return
                except (OSError, InfrastructureError) as error:
                    self.world.note("say", str(error))
                    view = None
                self.world.sleep(3.0 + 4.0 * self.world.random.random())

        process = self.world.start(f"monitor{self._num_monitors}", machine, main, after_s=after_s)

        def ended() -> None:
            if process is not None and process.is_killed and self._num_monitors < MAX_MONITORS:
                other = self.world.random.choice(self.machines)
                self.start_monitor(other, 60 * self.world.random.random())

        process.on_end = ended
