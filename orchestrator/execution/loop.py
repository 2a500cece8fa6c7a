"""The worker: it scans its cells, claims one stage at a time and runs it, until nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import cached_property, partial

from msgspec.structs import replace

from orchestrator import provenance
from orchestrator.core.decisions import decided
from orchestrator.core.evidence import NO_HOLDS, Attempt, Evidence, chosen_before
from orchestrator.core.failure import Cause
from orchestrator.core.gates import NO_GATES, gates_of, with_gates
from orchestrator.core.plan import Claimable, RequestSummary
from orchestrator.core.records import Claim, End, Owner, Revision, Supersedes
from orchestrator.core.remedies import pause_after, status_in_job
from orchestrator.core.state import StageStatus, SweepFacts, is_disk_full
from orchestrator.core.sweep import StageInstance, gates_among
from orchestrator.errors import InfrastructureError
from orchestrator.execution.assignment import Assignment, ClaimedAttempt, Shortage, share
from orchestrator.execution.attempt import AttemptRun
from orchestrator.execution.gpus import GpuPool
from orchestrator.execution.history import CANCEL_POLL_S, RequestReader, WorkerHistory, is_replaced
from orchestrator.execution.inheritance import Products
from orchestrator.execution.liveness import Idleness, Leaving, Watcher, next_lease_s
from orchestrator.execution.scanning import HoldReader, StoreScanner
from orchestrator.execution.spending import HeldTime
from orchestrator.execution.supervision import Children, WorkerHooks
from orchestrator.jobs.nodes import NodeReports, named
from orchestrator.jobs.records import BROKEN_NODE, NO_MEMORY, OTHER_CODE
from orchestrator.jobs.submissions import request_of
from orchestrator.store import layout
from orchestrator.store.access import error_line, new_nonce
from orchestrator.store.checkout import Checkout
from orchestrator.store.decisions import DecisionLog
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger

IDLE_S, MAX_IDLE_S = 0.1, 2.0
"""First and longest pause, in seconds, of a worker that finds nothing to claim. They grow by a half each."""


class Worker:
    """A process that claims and runs stages of a revision's cells.

    Args:
        ledger: the store.
        revision: the sealed sweep.
        order: this worker's assignment.
        owner: this worker's identity.
        children: starts the processes of attempts.
        stop_asked: returns why it should stop ("stopped", "deadline", ...), "" while it should not.
        shortage: returns the lack of memory on its node because of which it should stop; None without one.
        log: writes a line to the worker's log.
        checkout: the code that it runs in place; None if that cannot change or need not be watched.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        revision: Revision,
        order: Assignment,
        owner: Owner,
        children: Children,
        stop_asked: Callable[[], str],
        shortage: Callable[[], Shortage | None] = lambda: None,
        log: Callable[[str], None] = print,
        checkout: Checkout | None = None,
    ) -> None:
        self._ledger = ledger
        self._order = order
        self._owner = owner
        self._hooks = WorkerHooks(
            children=children,
            stop_asked=stop_asked,
            shortage=shortage,
            held=HeldTime(ledger, order, owner),
            checkout=checkout,
        )
        self._log = log
        self._watcher = Watcher(owner, job=order.job)
        self._idleness = Idleness(self._watcher, order)
        self._leaving = Leaving()
        self._history = WorkerHistory(in_job=order.job is not None)
        self._decisions = DecisionLog(ledger, revision.sweep, order.revision)
        self._take_over()

    def _take_over(self) -> None:
        """Take over the sweep as its decisions have left it: its cells, gates, requests and products."""
        self._decisions.check()
        ledger, order, sweep = self._ledger, self._order, self._decisions.unfolded.sweep
        gates, later = NO_GATES, set[str]()
        in_job = bool(order.job and order.job.job)
        is_alone = in_job and order.max_idle_s is None
        if order.request and (sweep.has_decisions or gates_among(sweep.specs)):
            request = request_of(ledger, sweep.name, order.request)
            gates = gates_of(sweep, request.gates, request.cells)._replace(are_first=not is_alone)
            # In a job of a scheduler they would be claimed with resources that are meant for other cells.
            later = decided(sweep) if request.cells is None and not in_job else later
        sweep = with_gates(sweep, gates)
        holds = HoldReader(sweep, order.settings.policy, order.code_digest, gates, takes_turns=not in_job)
        cells = share(sweep.cells, order, later=later)
        self._scanner = StoreScanner(cells, sweep.stages, self._status, gates, holds)
        self._requests = RequestReader(ledger, order.sweep, [cell.id for cell in sweep.cells])
        self._products = Products(ledger, sweep, gates, by=f"worker on {self._owner.host}", log=self._log)

    def _decides(self, reader: EvidenceReader, summary: RequestSummary) -> bool:
        """Make the decisions that can be made, and return whether any was made here or elsewhere."""
        status_of = partial(self._status, reader, summary)
        facts = SweepFacts(status_of, reader.evidence, summary.cancelled, self._scanner.holds)
        if self._decisions.advance(facts, by=f"worker on {self._owner.host}"):
            self._take_over()
            return True
        return False

    @cached_property
    def _gpus(self) -> GpuPool | None:
        """The GPUs that the launch's workers share; None if this worker has its own."""
        return None if self._order.gpus is None else GpuPool(self._order.gpus)

    @cached_property
    def _nodes(self) -> NodeReports:
        """The reports about nodes, by which this worker leaves its own alone."""
        return NodeReports(self._ledger, self._order.settings.policy.quarantine_s)

    @property
    def num_claims(self) -> int:
        """The number of attempts that it claimed."""
        return self._history.num_claims

    def run(self) -> int:
        """Work until nothing is left to claim or to wait for; return the exit code."""
        with self._hooks.held.recorded():
            return self._run()

    def _run(self) -> int:
        idle_s = IDLE_S
        while not self._hooks.stop_asked():
            if (refusal := self._history.refusal(self._attributed)) is not None:
                why, code = refusal
                self._history.report_faults(self._nodes, self._owner, self._order.sweep, self._log)
                self._log(f"{why}: this worker claims no more")
                return code
            self._idleness.start_scan()
            summary = self._requests.read(at_most_s=0.0)
            if (hold := self._hooks.held.budget.hold(summary.limit)) is not None:
                self._log(f"{hold.reason}: this worker claims no more")
                return 0
            # New evidence for each scan. A decision from an old scan is checked again in `_try`.
            reader = self._products.reader(self._watcher)
            holds = NO_HOLDS if self._gpus is None else self._gpus.holds(self._products.sweep.stages)
            scan = self._scanner.next_stage(reader, summary, holds)
            if scan.claimable is not None and (left_s := self._short_of_time()) is not None:
                self._log(f"{left_s:.0f} s are left, too few to start {scan.claimable.instance.name}")
                return self._history.exit_code("deadline")
            if scan.claimable is not None and self._has_other_code():
                return OTHER_CODE
            if scan.claimable is not None and (found := self._nodes.of(self._owner)) is not None:
                self._log(f"{named(self._owner.host, found)}: this worker claims no more")
                return BROKEN_NODE
            if scan.claimable is None and self._decides(reader, summary):
                idle_s = IDLE_S
            elif scan.claimable is not None:
                idle_s = IDLE_S if self._try_or_leave(scan.claimable, reader) else self._pause(idle_s)
                self._idleness.end()
            elif scan.waiting:
                if why := self._idleness.why_leave(self._scanner.lacks_space):
                    self._log(f"{why}: this worker leaves")
                    return 0
                self._leaving.reset()  # others still work, so it stays whatever the unreadable stages do
                idle_s = self._pause(idle_s)
                self._history.has_progressed = True
            elif self._is_worth_another_look(reader):
                idle_s = self._pause(idle_s)
            else:
                # Otherwise the log of a scheduler's job would be empty.
                if self.num_claims == 0 and self._order.job is not None:
                    self._log(self._scanner.held_back() or "nothing was left to do")
                self._retain()
                return NO_MEMORY if self._history.is_starved else 0
        return self._history.exit_code(self._hooks.stop_asked())

    def _attributed(self, digests: Collection[str]) -> set[str]:
        """Return the failed stages whose failures come from what their cells have in common."""
        reader = self._products.reader(self._watcher)
        return self._scanner.attributed(reader, self._requests.read(at_most_s=0.0), digests)

    def _has_other_code(self) -> bool:
        """Whether the checkout was edited since the launch: its products would have another version."""
        checkout = self._hooks.checkout
        if checkout is None or checkout.is_code_of(self._order.code_digest):
            return False
        names = checkout.changed() or ["the code"]
        more = f" and {len(names) - 3} more files" if len(names) > 3 else ""
        self._log(
            f"{', '.join(names[:3])}{more} changed since the launch: this worker claims no more; "
            "launch again to go on with the code as it is now (launcher.snapshot=true runs a copy)"
        )
        return True

    def _short_of_time(self) -> float | None:
        """Return the seconds left of a scheduler's job, if they are too few to start a stage; else None."""
        job = self._order.job
        if job is None or job.end_at is None:
            return None
        left_s = job.end_at - time.time()
        return left_s if self._history.is_late or left_s < job.min_left_s else None

    def _pause(self, idle_s: float) -> float:
        time.sleep(min(idle_s, self._scanner.stands_s))
        self._hooks.held.keepalive()
        return min(max(MAX_IDLE_S, self._ledger.objects.poll_s), idle_s * 1.5)

    def _try_or_leave(self, claimable: Claimable, reader: EvidenceReader) -> bool:
        """Run `_try`; if only this stage's folders fail, leave it for a while, so that others go on."""
        try:
            was_worked_on = self._try_with_gpus(claimable, reader)
        except (OSError, InfrastructureError) as error:
            if not self._ledger.objects.waits_out or not self._answers():
                raise
            self._log(f"{claimable.cell.id} {claimable.instance.name}: left for now: {error_line(error)}")
            self._leaving.leave(claimable.instance.digest, error)
            self._scanner.look_again(claimable.instance.digest)
            return True
        self._leaving.reset()
        return was_worked_on

    def _answers(self) -> bool:
        try:
            return self._ledger.objects.get(layout.STORE) is not None
        except OSError:
            return False

    def _is_worth_another_look(self, reader: EvidenceReader) -> bool:
        return self._leaving.is_worth_another_look(
            is_passing=any(reader.evidence(digest).is_passing for digest in self._scanner.digests())
        )

    def _status(self, reader: EvidenceReader, summary: RequestSummary, digest: str) -> StageStatus:
        if (left := self._leaving.status(digest)) is not None:
            return left
        budget = summary.budget(digest, self._order.settings.policy.retries)
        return status_in_job(reader.evidence(digest), budget, self._order.rungs)

    def _retain(self, claimable: Claimable | None = None) -> None:
        """Retire files that no stage needs after the one just done; without a stage, check all products."""
        policy = self._order.settings.policy
        if claimable is not None and policy.retention == "all":
            return
        try:
            if self._requests.read(at_most_s=0.0).revision not in (0, self._order.revision):
                return  # a newer revision was launched: its stages may need what these do not
            if claimable is None:
                self._products.retain(policy)
            else:
                done = claimable.instance
                sources = [taken.digest for taken in done.inputs]
                self._products.retain(policy, after=f"{claimable.cell.id} {done.name}", sources=sources)
        except (OSError, InfrastructureError) as error:  # the next worker completes the deletion
            self._log(f"retention: {error}")

    # Claiming

    def _try_with_gpus(self, claimable: Claimable, reader: EvidenceReader) -> bool:
        """Run `_try` while this worker holds the GPUs of the stage, where workers share them.

        A worker that held a claim and waited for GPUs could wait for ever. So the GPUs come first.
        """
        pool, digest = self._gpus, claimable.instance.digest
        if pool is None:
            return self._try(claimable, reader, self._order)
        if pool.chosen(digest):
            stages = [self._products.sweep.stages[each] for each in claimable.cell.stage_digests]
            attempts = [a for each in stages if pool.chosen(each.digest) for a in self._ledger.attempts(each)]
            pool.keep(digest, chosen_before(claimable.cell.id, attempts))
        with pool.hold(digest) as environment:
            if environment is None:
                return False
            order = replace(self._order, env={**self._order.env, **environment})
            return self._try(claimable, reader, order)

    def _try(self, claimable: Claimable, reader: EvidenceReader, order: Assignment) -> bool:
        """Claim and run a stage.

        Args:
            claimable: the stage.
            reader: the evidence of the scan that found it.
            order: this worker's assignment, with the environment of the stage.

        Returns:
            False if another worker was first, so that a pause is due; True to scan again at once.
        """
        instance = claimable.instance
        if (inputs := self._products.folders(instance, reader)) is None:
            return True  # an input was voided: scan again at once
        evidence = reader.evidence(instance.digest)
        if evidence.damaged:
            self._products.void_damaged(instance, evidence)
            return True
        attempts = self._ledger.attempts(instance)
        if attempts != evidence.attempts or self._ledger.is_done_or_void(instance, evidence.generation):
            return False  # another worker claimed or finished meanwhile, or the owner sent a heartbeat
        number = (attempts[-1].number if attempts else 0) + 1
        after = self._requests.summary.after
        begin = self._products.remedies.start(claimable.cell, instance, reader, after)
        # A job's time limit is not its stage's, so of a job's rungs only that for memory is the attempt's.
        if Cause.OOM_HOST in order.rungs:
            begin = begin._replace(rungs={Cause.OOM_HOST: order.rungs[Cause.OOM_HOST], **begin.rungs})
        claim = self._claim(claimable, evidence, attempts)
        # `claim` creates the record of the next number: of all workers that try, one succeeds.
        if not self._ledger.claim(instance, number, claim):
            return False
        self._log(f"{claimable.cell.id} {instance.name}: attempt {number}")
        self._history.num_claims += 1
        self._hooks.held.begins(layout.payload(instance, number))
        status = self._status(reader, self._requests.summary, instance.digest)
        claimed = ClaimedAttempt(
            order=order,
            spec=self._products.sweep.specs[instance.stage],
            cell=claimable.cell,
            instance=instance,
            number=number,
            claim=claim,
            inputs=inputs,
            input_generations={i.digest: reader.evidence(i.digest).generation for i in instance.inputs},
            begin=begin,
            former=evidence.former if status.going_on else None,
        )
        hooks = replace(self._hooks, stop_asked=lambda: self._why_stop(instance))
        run = AttemptRun(self._ledger, claimed, hooks)
        end = run.run(attempts)
        self._products.unpin(instance, reader)
        self._learn(claimed, run, end, attempts)
        if end.outcome == "succeeded":
            self._retain(claimable)
        line = f"attempt {number} {end.outcome} {end.why or end.message}".rstrip()
        self._log(f"{claimable.cell.id} {instance.name}: {line}")
        return True

    def _learn(self, claimed: ClaimedAttempt, run: AttemptRun, end: End, earlier: Sequence[Attempt]) -> None:
        """Conclude from an attempt's end what this worker leaves alone, and for how long."""
        instance = claimed.instance
        gave_way = end.why == "superseded" and is_replaced(self._ledger.attempts(instance), self._owner)
        what = f"{claimed.cell.id} {instance.name} attempt {claimed.number}"
        self._history.add(instance.digest, run, end, what, is_replaced=gave_way)
        self._history.report_faults(self._nodes, self._owner, self._order.sweep, self._log)
        if end.outcome == "failed":
            self._scanner.look_at_holds()
        # Another try in this job would run out of memory again; the worker's exit code requests a larger one.
        if end.cause is Cause.OOM_HOST and self._order.job is not None:
            self._scanner.leave_out(instance.digest)
        if pause_s := pause_after(end, earlier):
            if is_disk_full(end):  # files that no stage needs any more may make room
                self._retain()
            self._leaving.back_off(instance.digest, pause_s, f"a pause of {pause_s:.0f} s: {end.message}")

    def _claim(self, claimable: Claimable, evidence: Evidence, attempts: Sequence[Attempt]) -> Claim:
        """Return the claim for the next attempt; it records why the previous one is taken for dead."""
        supersedes, num_lost = None, 0
        if attempts and attempts[-1].end is None:
            supersedes = Supersedes(
                attempt=attempts[-1].number, evidence=evidence.liveness_reason, cause=evidence.liveness_cause
            )
            num_lost = 1
        num_lost += sum(1 for a in attempts if a.claim and a.claim.supersedes)
        base_s = max(self._order.settings.policy.lease_s, self._ledger.objects.min_lease_s)
        return Claim(
            nonce=new_nonce(),
            owner=self._owner,
            lease_s=next_lease_s(base_s, num_lost),
            generation=evidence.generation,
            sweep=self._order.sweep,
            cell=claimable.cell.id,
            supersedes=supersedes,
            at=provenance.now(),
            chosen_gpus=self._gpus.chosen(claimable.instance.digest) if self._gpus is not None else 0,
        )

    # Stopping

    def _why_stop(self, instance: StageInstance) -> str:
        """Return why an attempt should stop: the worker should, or all cells of its stage were cancelled."""
        if why := self._hooks.stop_asked():
            return why
        try:
            at_most_s = max(CANCEL_POLL_S, self._ledger.objects.poll_s)
            summary = self._requests.read(at_most_s=at_most_s)
            if self._hooks.held.budget.is_over(summary.limit, at_most_s=at_most_s):
                return "budget"
            if self._scanner.is_given_up(
                instance.digest, lambda: self._products.reader(self._watcher), summary
            ):
                return "held"
        except (OSError, InfrastructureError):  # read again soon: no reason to lose a running stage
            return ""
        is_wanted = not summary.cancelled or self._scanner.is_wanted(instance.digest, summary.cancelled)
        return "" if is_wanted else "cancelled"
