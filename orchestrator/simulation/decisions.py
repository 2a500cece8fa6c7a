"""A sweep on a cluster under a virtual clock, decided by what workers decide by. No process is started.

What may start, in which order, which failure is retried and what is given up is decided by the functions of
`orchestrator.core` from records, as in a real sweep. Here is only what a cluster does: a scheduler starts a
job as soon as a node has enough free GPUs, attempts take their time, nodes fail, jobs are preempted.

A job is a worker with GPUs of one node. It runs all stages that are a cell's own, one after another, or one
stage that cells share. When nothing of these may start, the job ends and its GPUs are free.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from orchestrator.core.evidence import Holds
from orchestrator.core.gates import GateRule, is_given_up
from orchestrator.core.goodput import Holder, goodput
from orchestrator.core.holding import merged
from orchestrator.core.plan import Claimable, ReadyIndex, Scan
from orchestrator.core.records import TimeSpent
from orchestrator.core.state import State, cell_status
from orchestrator.core.sweep import Cell
from orchestrator.simulation.cluster import (
    Clock,
    HowFar,
    Outcome,
    RunningAttempt,
    SimulatedDisk,
    SimulatedJob,
    SimulatedNodes,
    Tally,
    WaitingJobs,
)
from orchestrator.simulation.records import Saved, SimulatedRecords, SimulatedSpending, owner_on
from orchestrator.simulation.scenario import FaultKind, Scenario, Target, cells_of_units, ranks_of

RESTART_S = 22.0
"""Seconds until the process of a stage that goes on computes again, beside what it loads: 6 to import, 16 as
the second one of a rehearsal of 0.4 B parameters on an H100. A start from nothing is part of the estimate.
"""

_NOTHING_CANCELLED: frozenset[str] = frozenset()


class Decisions:
    """One run of a sweep on a simulated cluster.

    Args:
        scenario: what runs where.

    Raises:
        ValueError: a job needs more GPUs than a node has.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._clock = Clock()
        policy = scenario.policy
        self._nodes = SimulatedNodes(
            scenario.num_gpus, scenario.gpus_per_node, quarantine_s=policy.quarantine_s, clock=self._clock
        )
        disk = SimulatedDisk(scenario.faults.faults, self._clock, self._decide_holds)
        self._records = SimulatedRecords(
            scenario.sweep, scenario.cells, scenario.stages, policy, disk, scenario.gates
        )
        self._jobs: dict[int, list[SimulatedJob]] = {}
        self._tally = Tally()
        self._spending = SimulatedSpending(
            policy.budget,
            start_at=scenario.start_at,
            checkpoint_s=policy.checkpoint_interval_s,
            sweep=scenario.sweep.name,
        )
        self._cells, self._unit_of = cells_of_units(scenario)
        self._rank = ranks_of(scenario)
        # A queue for each number of GPUs: a job that does not fit does not hold back smaller ones.
        cells: dict[int, list[Cell]] = {}
        for name in self._rank:
            if (num_gpus := scenario.units[name].num_gpus) > self._nodes.largest:
                raise ValueError(f"a stage needs {num_gpus} GPUs, and a node has {self._nodes.largest}")
            cells.setdefault(num_gpus, []).extend(self._cells[name])
        self._queues = {num_gpus: self._index(of_class) for num_gpus, of_class in sorted(cells.items())}
        self._waiting = WaitingJobs(scenario, cells, self._records.status)

    def run(self) -> Outcome:
        """Run until nothing can start or end any more."""
        clock = self._clock
        while True:
            if not self._spending.is_stopping and self._spending.is_over(clock.now_s):
                self._stop("budget")
            # What takes no time is over before others start: of the cells then ready, the longest is first.
            if clock.run_due() or self._wake() or self._start_job():
                continue
            next_s = clock.next_s()
            if next_s is None:
                return self._outcome()
            spent_s = None if self._spending.is_stopping else self._spending.end_s()
            clock.advance(next_s if spent_s is None else min(next_s, max(clock.now_s, spent_s)))

    def _outcome(self) -> Outcome:
        scenario, tally, stages = self._scenario, self._tally, self._scenario.sweep.stages
        statuses = {
            digest: self._records.status(digest) for c in scenario.cells for digest in scenario.gates.chain(c)
        }
        evidence = [(stages[digest].stage, self._records.evidence(digest)) for digest in scenario.stages]
        found = goodput(scenario.sweep.name, tally.holders, evidence)
        hold = {n: self._spending.hold(n, self._clock.now_s) for n in self._queues}
        of_budget = ((d, hold[scenario.units[unit].num_gpus]) for d, unit in self._unit_of.items())
        of_gates = GateRule(scenario.cells, scenario.gates).holds(statuses.__getitem__)
        of_all = Holds(stages={**of_gates, **{d: each for d, each in of_budget if each is not None}})
        holds = merged(self._records.holds, of_all)
        return Outcome(
            tally.end_s / 3600,
            {
                cell.id: cell_status(
                    cell, stages, statuses, cancelled=False, sweep=scenario.sweep.name, holds=holds
                )
                for cell in scenario.cells
            },
            dict(tally.attempts),
            self._records.remedies.num_applied,
            self._nodes.num_left_out,
            dict(tally.faults),
            next((each for each in found if each.unit == "gpu_seconds"), None),
            tally.gate_gpu_s / 3600,
            self._nodes.away_gpu_s(tally.end_s) / 3600,
        )

    # Jobs

    def _start_job(self) -> bool:
        """Start the first job for which GPUs are free; return False if there is none."""
        best: tuple[int, bool, int, Claimable] | None = None
        for num_gpus, queue in self._queues.items():
            if not self._nodes.fits(num_gpus) or self._spending.hold(num_gpus, self._clock.now_s) is not None:
                continue
            early = self._waiting.first(num_gpus, self._records.holds)
            for found, is_early in ((self._search(queue).claimable, False), (early, True)):
                if found is not None:
                    rank = self._rank[self._unit_of[found.instance.digest]]
                    if best is None or (rank, is_early) < best[:2]:
                        best = rank, is_early, num_gpus, found
        if best is None:
            return False
        _, is_early, num_gpus, claimable = best
        self._tally.num_jobs += 1
        node = self._nodes.take(num_gpus)
        unit = self._unit_of[claimable.instance.digest]
        # A stage that cells share is claimed for one of them, and the job takes no other stage.
        cells = self._cells[unit] if unit == claimable.cell.id else [claimable.cell]
        owner = owner_on(node, self._tally.num_jobs)
        job = SimulatedJob(owner, node, num_gpus, cells, self._clock.now_s)
        self._jobs.setdefault(node, []).append(job)
        self._spending.change(num_gpus, self._clock.now_s)
        if is_early:
            job.cells = self._waiting.cells(cells)
            self._waiting.add(claimable.instance.digest, job)
        else:
            self._claim(job, claimable)
        return True

    def _wake(self) -> bool:
        """Have workers that wait for gates look again; return False if none had to."""
        jobs = self._waiting.take_due()
        for job in jobs:
            found = self._search(self._index(job.cells))
            if found.claimable is not None:
                self._waiting.remove(job)
                self._claim(job, found.claimable)
            elif not found.waiting and not self._waiting.may_wait(job):
                self._end_job(job)
        return bool(jobs)

    def _go_on(self, job: SimulatedJob) -> None:
        """Have a worker claim its next stage; end it if there is none."""
        found = self._search(self._index(job.cells)).claimable
        if found is None or self._spending.hold(job.num_gpus, self._clock.now_s) is not None:
            self._end_job(job)
        else:
            self._claim(job, found)

    def _stop(self, why: str) -> None:
        """Have all that runs save and end."""
        self._spending.is_stopping = True
        for job in [job for jobs in self._jobs.values() for job in jobs]:
            if (attempt := job.attempt) is not None and job.num_gpus:
                stop_s = self._scenario.stages[attempt.digest].stop_s
                self._clock.after(stop_s, partial(self._release_soon, job, attempt, why, stop_s))
            elif attempt is None:
                self._end_job(job)

    def _release_soon(self, job: SimulatedJob, attempt: RunningAttempt, why: str, stop_s: float) -> None:
        if not attempt.is_over:
            self._release(job, attempt, why, stop_s)

    def _end_job(self, job: SimulatedJob) -> None:
        self._waiting.remove(job)
        self._jobs[job.node].remove(job)
        self._nodes.give_back(job.node, job.num_gpus)
        self._spending.change(-job.num_gpus, self._clock.now_s)
        self._tally.holders.append(Holder(job.owner, job.num_gpus, self._clock.now_s - job.start_s))

    def _index(self, cells: Sequence[Cell]) -> ReadyIndex:
        """Return the search for what may start of the stages that these cells name."""
        scenario = self._scenario
        return ReadyIndex(cells, scenario.sweep.stages, scenario.gates, chain=lambda cell: cell.stage_digests)

    def _search(self, index: ReadyIndex) -> Scan:
        """Return the first stage of a search that may start now."""
        status = self._records.status
        return index.next_stage(status, cancelled=_NOTHING_CANCELLED, holds=self._records.holds)

    def _touch(self, digest: str) -> None:
        """Have the records of a stage looked at again, which just changed; so may what waits for space."""
        for queue in self._queues.values():
            queue.touch([digest])
        self._waiting.touch(digest)
        if self._records.holds.stages or self._records.holds.until is not None:
            self._decide_holds()

    def _decide_holds(self) -> None:
        """Evaluate the rules that look at more than one stage, again when time alone changes their result."""
        self._records.decide_holds()
        until, now_s = self._records.holds.until, self._clock.now_s
        if until is not None and any(self._spending.hold(each, now_s) is None for each in self._queues):
            self._clock.after_once(until - now_s, self._decide_holds)

    # Attempts

    def _claim(self, job: SimulatedJob, claimable: Claimable) -> None:
        """Start an attempt, and plan the first of what can end it."""
        scenario, now_s = self._scenario, self._clock.now_s
        digest = claimable.instance.digest
        stage, saved = scenario.stages[digest], self._records.saved.get(digest)
        start = self._records.claim(claimable, job.owner)
        number = len(self._records.evidence(digest).attempts)
        self._touch(digest)
        resumed_s = 0.0 if saved is None else saved.seconds
        wait_s = 0.0 if saved is None else RESTART_S + stage.load_s
        wait_s += scenario.job_start_s if now_s == job.start_s else 0.0
        attempt = RunningAttempt(digest, number, now_s, wait_s, number == 1, resumed_s)
        job.attempt = attempt
        ends: list[tuple[float, Callable[[SimulatedJob, RunningAttempt], None]]] = []
        ends.append((wait_s + stage.seconds - resumed_s, self._succeed))
        drawn = random.Random(f"{scenario.seed}/{digest}/{number}")
        labels = claimable.cell.axes
        target = Target(job.num_gpus, claimable.instance.stage, labels, start.remedies, job.node)
        strike = scenario.faults.draw(drawn, target)
        if strike is not None:
            ends.append((strike.seconds, partial(self._fail, fault=strike.fault)))
        if scenario.preempt_s is not None and job.num_gpus:
            left_s = max(0.0, job.start_s + scenario.preempt_s - now_s)
            ends.append((left_s + stage.stop_s, partial(self._release, why="preempted", stop_s=stage.stop_s)))
        seconds, end = min(ends, key=lambda each: each[0])
        if job.num_gpus:
            self._spending.saw_checkpoint(wait_s + min(stage.interval_s or stage.seconds, stage.seconds))
        self._clock.after(seconds, lambda: None if attempt.is_over else end(job, attempt))

    def _succeed(self, job: SimulatedJob, attempt: RunningAttempt) -> None:
        stage, stages = self._scenario.stages[attempt.digest], self._scenario.sweep.stages
        names = (stages[a.digest].stage for jobs in self._jobs.values() for job in jobs if (a := job.attempt))
        full = self._records.disk.refuses(stage.seconds, stage.interval_s)
        if (
            full := full or self._scenario.faults.without_room(stages[attempt.digest].stage, names)
        ) is not None:
            self._fail(job, attempt, full)
            return
        spent = self._spent(job, attempt, kept_s=stage.seconds)
        if attempt.digest in self._scenario.gates.instances:
            self._tally.gate_gpu_s += spent.seconds * job.num_gpus
        self._close(job, attempt, "succeeded")
        self._records.end(attempt.digest, "succeeded", spent)
        self._touch(attempt.digest)
        if self._records.holds.cells:  # a stage that did work may end a hold
            self._decide_holds()
        self._go_on(job)

    def _fail(self, job: SimulatedJob, attempt: RunningAttempt, fault: FaultKind) -> None:
        """End an attempt by a fault; with its node, if that is out of use afterwards."""
        self._tally.faults[fault.name] += 1
        if fault.cause == "node_lost":
            self._lose(job, attempt)
        else:
            spent = self._spent(job, attempt, kept_s=None if fault.keeps else attempt.resumed_s)
            self._close(job, attempt, "failed")
            self._records.end(attempt.digest, "failed", spent, cause=fault.cause, message=fault.name)
            self._touch(attempt.digest)
            if fault.cause == "storage" or self._records.status(attempt.digest).state is State.FAILED:
                self._decide_holds()
                self._give_up_gates()
            if not fault.node_hours and self._may_go_on(job, attempt, spent):
                self._go_on(job)
                return
            self._end_job(job)
        if fault.node_hours:
            self._take_out(job.node, fault.node_hours)

    def _give_up_gates(self) -> None:
        """Stop the gates that the failures of others have made needless; a worker may take its grace."""
        gates, grace_s = self._scenario.gates, self._scenario.policy.grace_s
        for job in [job for jobs in self._jobs.values() for job in jobs]:
            attempt = job.attempt
            if attempt is not None and is_given_up(attempt.digest, gates, self._records.holds):
                self._clock.after(grace_s, partial(self._release_soon, job, attempt, "held", 0.0))

    def _may_go_on(self, job: SimulatedJob, attempt: RunningAttempt, spent: TimeSpent) -> bool:
        """Return whether a worker claims another stage after a failure; report failures of its node."""
        end = self._records.evidence(attempt.digest).attempts[-1].end
        assert end is not None
        ran = HowFar(was_running=spent.seconds > RESTART_S, made_progress=bool(spent.saved_s))
        job.history.add(attempt.digest, ran, end, attempt.digest, is_replaced=False)
        refusal = job.history.refusal(self._records.attributed)
        while job.history.faults:
            self._nodes.report(job.owner, job.node, job.history.faults.pop()[1])
        return refusal is None

    def _take_out(self, node: int, hours: float) -> None:
        """Lose all that runs on a node, and start nothing there for a while."""
        for job in list(self._jobs[node]):
            if job.attempt is not None:
                self._lose(job, job.attempt)
            else:
                self._end_job(job)
        self._nodes.take_out(node, 3600 * hours)

    def _lose(self, job: SimulatedJob, attempt: RunningAttempt) -> None:
        """End an attempt and its worker without a word. Others see it when the lease is over."""
        digest = attempt.digest
        spent = self._spent(job, attempt)
        self._close(job, attempt, "lost")
        lease_s = self._records.beat(digest, spent)
        self._end_job(job)

        def see() -> None:
            self._records.lose(digest)
            self._touch(digest)

        self._clock.after(lease_s, see)

    def _release(self, job: SimulatedJob, attempt: RunningAttempt, why: str, stop_s: float) -> None:
        """End an attempt that was stopped, and its job; a stage with checkpoints has saved one."""
        spent = self._spent(job, attempt, stop_s=stop_s)
        self._close(job, attempt, "released")
        self._records.end(attempt.digest, "released", spent, why=why)
        self._touch(attempt.digest)
        self._end_job(job)

    def _close(self, job: SimulatedJob, attempt: RunningAttempt, outcome: str) -> None:
        attempt.is_over = True
        job.attempt = None
        self._tally.attempts[outcome] += 1
        self._tally.end_s = self._clock.now_s

    def _spent(
        self,
        job: SimulatedJob,
        attempt: RunningAttempt,
        *,
        kept_s: float | None = None,
        stop_s: float | None = None,
    ) -> TimeSpent:
        """Return how an attempt spent its time until now, and note what it saved.

        Args:
            job: of the attempt.
            attempt: that ends.
            kept_s: work that its product holds, from the start of the stage; None if it ends without one.
            stop_s: time in which it saved once more, in a stage with checkpoints; None if it could not.
        """
        stage, now_s = self._scenario.stages[attempt.digest], self._clock.now_s
        seconds = now_s - attempt.start_s
        wait_s = min(seconds, attempt.wait_s)
        save_s = 0.0 if stop_s is None else min(stop_s, seconds - wait_s)
        worked_s = seconds - wait_s - save_s
        reached_s = attempt.resumed_s + worked_s
        if kept_s is None:
            kept_s = attempt.resumed_s
            if stage.interval_s:
                has_stopped = stop_s is not None
                kept_s = max(
                    kept_s, self._records.disk.saved_s(reached_s, stage.interval_s, just_now=has_stopped)
                )
            if kept_s > attempt.resumed_s:
                self._records.saved[attempt.digest] = Saved(attempt.number, kept_s)
        computed = 1.0 - stage.save_share
        return TimeSpent(
            held_s=now_s - job.start_s,
            seconds=seconds,
            phases={
                stage.phase: worked_s * computed,
                "save": save_s + worked_s * stage.save_share,
                "start" if attempt.is_first else "restore": wait_s,
            },
            saved_step=round(kept_s) if kept_s > 0 else None,
            saved_s=(kept_s - attempt.resumed_s) * computed,
        )
