"""The worker: it scans its cells, claims one stage at a time and runs it, until nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext

from msgspec.structs import replace

from orchestrator import provenance
from orchestrator.core.failure import Cause
from orchestrator.core.plan import Claimable, RequestSummary, Scanner, summarize_requests
from orchestrator.core.records import Claim, End, Owner, Revision, Supersedes, Void, remaining_files
from orchestrator.core.state import Attempt, Evidence, StageStatus, stage_status
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.errors import InfrastructureError
from orchestrator.execution.assignment import Assignment, ClaimedAttempt, Shortage, share
from orchestrator.execution.attempt import AttemptRun, WorkerHooks
from orchestrator.execution.liveness import Leaving, Watcher, next_lease_s
from orchestrator.jobs.records import NO_MEMORY, OTHER_CODE, REFUSED, RELEASED, TOO_SHORT
from orchestrator.manifest import damage
from orchestrator.store import layout
from orchestrator.store.access import error_line, new_nonce
from orchestrator.store.checkout import Checkout
from orchestrator.store.evidence import EvidenceReader, examine
from orchestrator.store.ledger import Ledger
from orchestrator.store.retention import retain

IDLE_S = 0.1
"""First pause in seconds of a worker that finds nothing to claim; each further one is 1.5 times as long."""

MAX_IDLE_S = 2.0
"""Longest such pause in seconds, unless the store is polled less often."""

CANCEL_POLL_S = 1.0
"""Seconds between two looks for a cancel while a stage runs, unless the store is polled less often."""

MAX_FAILED_STARTS = 2


class Worker:
    """A process that claims and runs stages of a revision's cells.

    Args:
        ledger: the store.
        revision: the sealed sweep.
        order: this worker's assignment.
        owner: this worker's identity.
        context: forks children.
        stop_asked: returns why it should stop ("stopped", "deadline", ...), "" while it should not.
        shortage: returns the lack of memory on its node because of which it should stop; None without one.
        say: writes a line to the worker's log.
        checkout: the code that it runs in place; None if that cannot change or need not be watched.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        revision: Revision,
        order: Assignment,
        owner: Owner,
        context: BaseContext,
        stop_asked: Callable[[], str],
        shortage: Callable[[], Shortage | None] = lambda: None,
        say: Callable[[str], None] = print,
        checkout: Checkout | None = None,
    ) -> None:
        self._ledger, self._order, self._owner = ledger, order, owner
        self._sweep = revision.sweep
        self._hooks = WorkerHooks(
            context=context, stop_asked=stop_asked, shortage=shortage, checkout=checkout
        )
        self._say = say
        self._scanner = Scanner(share(self._sweep.cells, order), self._sweep.stages)
        self._all_ids = tuple(cell.id for cell in self._sweep.cells)
        self._watcher = Watcher(owner, job=order.job)
        self._trusted: set[tuple[str, int]] = set()
        self._verified: set[tuple[str, int]] = set()
        self._failed_starts, self._replaced, self._starved = 0, False, False
        self._is_late, self._is_on_bad_node = False, False
        self.num_claims, self._progressed = 0, False  # whether a successor of this job could get further
        self._idle_since_s: float | None = None
        self._leaving = Leaving()
        self._scan_s = 0.0
        self._requests_read_s = 0.0
        self._summary = RequestSummary(frozenset(), {}, {})

    def run(self) -> int:
        """Work until nothing is left to claim or to wait for; return the exit code."""
        idle_s = IDLE_S
        while not self._hooks.stop_asked():
            if self._replaced:
                self._say("a later start of this job goes on: this worker claims no more")
                return self._exit_code_for("replaced")
            if self._failed_starts >= MAX_FAILED_STARTS:
                self._say("two failures in the start phase in a row: this worker claims no more")
                return REFUSED
            if self._is_on_bad_node:
                self._say("this machine cannot run the stages: this worker claims no more")
                return REFUSED
            self._scan_s = time.monotonic()
            summary = self._read_requests(at_most_s=0.0)
            # New evidence for each scan, read lazily. A decision from an old scan is checked again in `_try`.
            reader = EvidenceReader(
                self._ledger,
                self._sweep.stages.values(),
                observer=self._watcher,
                count_attempts=False,
                trusted=self._trusted,
                specs=self._sweep.specs,
            )
            scan = self._scanner.next_stage(
                lambda digest, r=reader, s=summary: self._status(r, s, digest),  # type: ignore[misc]
                cancelled=summary.cancelled,
            )
            if scan.claimable is not None and (left_s := self._short_of_time()) is not None:
                self._say(f"{left_s:.0f} s are left, too few to start {scan.claimable.instance.name}")
                return self._exit_code_for("deadline")
            if scan.claimable is not None and self._has_other_code():
                return OTHER_CODE
            if scan.claimable is not None:
                idle_s = IDLE_S if self._try_or_leave(scan.claimable, reader) else self._pause(idle_s)
                self._idle_since_s = None
            elif scan.waiting:
                if self._is_idle_for_long():
                    self._say("nothing to claim while others work: this worker leaves")
                    return 0
                self._leaving.reset()  # others still work, so it stays whatever the unreadable stages do
                idle_s, self._progressed = self._pause(idle_s), True
            elif self._is_worth_another_look(reader):
                idle_s = self._pause(idle_s)
            else:
                # Otherwise the log of a scheduler's job would be empty.
                if self.num_claims == 0 and self._order.job is not None:
                    self._say("nothing was left to do")
                self._retain(f"worker on {self._owner.host}")
                return NO_MEMORY if self._starved else 0
        return self._exit_code_for(self._hooks.stop_asked())

    def _has_other_code(self) -> bool:
        """Whether the checkout was edited since the launch: its products would have another version."""
        checkout = self._hooks.checkout
        if checkout is None or checkout.digest() == self._order.code_digest:
            return False
        names = checkout.changed() or ["the code"]
        more = f" and {len(names) - 3} more files" if len(names) > 3 else ""
        self._say(
            f"{', '.join(names[:3])}{more} changed since the launch: this worker claims no more; "
            "launch again to go on with the code as it is now (launcher.snapshot=true runs a copy)"
        )
        return True

    def _is_idle_for_long(self) -> bool:
        now_s, most_s = time.monotonic(), self._order.max_idle_s
        self._idle_since_s = now_s if self._idle_since_s is None else self._idle_since_s
        if most_s is None or now_s - self._idle_since_s < most_s:
            return False
        # An attempt that may be dead keeps this worker here. Each successor would start watching from zero,
        # and none would watch for a whole lease.
        return not self._watcher.suspects(read_s=self._scan_s, since_s=self._idle_since_s)

    def _exit_code_for(self, why: str) -> int:
        """Return the exit code of a worker that leaves work behind; it matters to a scheduler only."""
        if self._order.job is None:
            return 0
        return RELEASED if self._progressed or why != "deadline" else TOO_SHORT

    def _short_of_time(self) -> float | None:
        """Return the seconds left of a scheduler's job, if they are too few to start a stage; else None."""
        job = self._order.job
        if job is None or job.end_at is None:
            return None
        left_s = job.end_at - time.time()
        return left_s if self._is_late or left_s < job.min_left_s else None

    def _pause(self, idle_s: float) -> float:
        time.sleep(idle_s)
        return min(max(MAX_IDLE_S, self._ledger.objects.poll_s), idle_s * 1.5)

    def _try_or_leave(self, claimable: Claimable, reader: EvidenceReader) -> bool:
        """Run `_try`; if only this stage's folders fail, leave it for a while, so that others go on."""
        try:
            was_worked_on = self._try(claimable, reader)
        except (OSError, InfrastructureError) as error:
            if not self._ledger.objects.in_place or not self._answers():
                raise
            self._say(f"{claimable.cell.id} {claimable.instance.name}: left for now: {error_line(error)}")
            self._leaving.leave(claimable.instance.digest, error)
            return True
        self._leaving.reset()
        return was_worked_on

    def _answers(self) -> bool:
        try:
            return self._ledger.objects.get(layout.STORE) is not None
        except OSError:
            return False

    def _is_worth_another_look(self, reader: EvidenceReader) -> bool:
        digests = {digest for cell in self._scanner.cells for digest in cell.stage_digests}
        return self._leaving.is_worth_another_look(
            is_passing=any(reader.evidence(digest).is_passing for digest in digests)
        )

    def _status(self, reader: EvidenceReader, summary: RequestSummary, digest: str) -> StageStatus:
        if (left := self._leaving.status(digest)) is not None:
            return left
        budget = summary.budget(digest, self._order.settings.policy.retries)
        return stage_status(reader.evidence(digest), budget)

    def _read_requests(self, *, at_most_s: float) -> RequestSummary:
        """Return the summary of all requests, read again if it is older than `at_most_s` seconds."""
        if time.monotonic() - self._requests_read_s >= at_most_s:
            self._summary = summarize_requests(self._ledger.requests(self._order.sweep), self._all_ids)
            self._requests_read_s = time.monotonic()
        return self._summary

    def _retain(self, by: str, instance: StageInstance | None = None) -> None:
        """Retire files that no stage needs after the one just done; without a stage, check all products."""
        policy = self._order.settings.policy
        if instance is not None and policy.retention == "all":
            return
        sources = None if instance is None else [taken.digest for taken in instance.inputs]
        try:
            if self._read_requests(at_most_s=0.0).revision not in (0, self._order.revision):
                return  # a newer revision was launched: its stages may need what these do not
            news = retain(self._ledger, self._sweep, policy, by=by, sources=sources, trusted=self._trusted)
        except (OSError, InfrastructureError) as error:  # the next worker completes the deletion
            self._say(f"retention: {error}")
            return
        for retired in news:
            self._say(f"retired {len(retired.files)} files under policy {retired.policy}: {retired.why}")

    # Claiming

    def _try(self, claimable: Claimable, reader: EvidenceReader) -> bool:
        """Claim and run a stage.

        Returns:
            False if another worker was first, so that a pause is due; True to scan again at once.
        """
        instance = claimable.instance
        if (inputs := self._inputs(instance, reader)) is None:
            return True  # an input was voided: scan again at once
        evidence = reader.evidence(instance.digest)
        if evidence.damaged:
            self._void_damaged(instance, evidence)
            return True
        attempts = self._ledger.attempts(instance)
        if attempts != evidence.attempts or self._ledger.is_done_or_void(instance, evidence.generation):
            return False  # another worker claimed or finished meanwhile, or the owner sent a heartbeat
        number = (attempts[-1].number if attempts else 0) + 1
        claim = self._claim(claimable.cell, evidence, attempts)
        # `claim` creates the record of the next number: of all workers that try, one succeeds.
        if not self._ledger.claim(instance, number, claim):
            return False
        self._say(f"{claimable.cell.id} {instance.name}: attempt {number}")
        self.num_claims += 1
        claimed = ClaimedAttempt(
            order=self._order,
            spec=self._sweep.specs[instance.stage],
            cell=claimable.cell,
            instance=instance,
            number=number,
            claim=claim,
            inputs=inputs,
            input_generations={i.digest: reader.evidence(i.digest).generation for i in instance.inputs},
            former=evidence.former if self._status(reader, self._summary, instance.digest).going_on else None,
        )
        hooks = replace(self._hooks, stop_asked=lambda: self._why_stop(instance))
        run = AttemptRun(self._ledger, claimed, hooks)
        end = run.run(attempts)
        self._unpin_inputs(instance, reader)
        self._count_start(run, end)
        self._replaced = end.why == "superseded" and self._is_replaced(instance)
        self._is_late |= end.why == "deadline"
        self._is_on_bad_node |= end.cause is Cause.BAD_NODE
        # Another try in this job would run out of memory again; the worker's exit code requests a larger one.
        if end.cause is Cause.OOM_HOST and self._order.job is not None:
            self._starved = True
            self._scanner.cells = tuple(
                cell for cell in self._scanner.cells if instance.digest not in cell.stage_digests
            )
        self._progressed |= end.outcome == "succeeded" or end.why != "deadline" or run.made_progress
        if end.outcome == "succeeded":
            self._retain(f"worker on {self._owner.host}, after {claimable.cell.id} {instance.name}", instance)
        said = f"attempt {number} {end.outcome} {end.why or end.message}".rstrip()
        self._say(f"{claimable.cell.id} {instance.name}: {said}")
        return True

    def _claim(self, cell: Cell, evidence: Evidence, attempts: Sequence[Attempt]) -> Claim:
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
            cell=cell.id,
            supersedes=supersedes,
            at=provenance.now(),
        )

    def _is_replaced(self, instance: StageInstance) -> bool:
        """Whether a scheduler that took this worker for dead restarted its job elsewhere."""
        me = self._owner
        owners = [attempt.claim.owner for attempt in self._ledger.attempts(instance) if attempt.claim]
        return bool(me.job) and any(
            (o.cluster, o.job, o.array_index) == (me.cluster, me.job, me.array_index)
            and o.restart_count > me.restart_count
            for o in owners
        )

    def _count_start(self, run: AttemptRun, end: End) -> None:
        failed = end.outcome == "failed" and not run.was_running
        self._failed_starts = self._failed_starts + 1 if failed else 0

    # Inputs

    def _inputs(self, instance: StageInstance, reader: EvidenceReader) -> dict[str, dict[str, str]] | None:
        """Return the verified folders of a stage's inputs; None if one does not count.

        Contents are verified the first time only, later sizes alone. A damaged product is voided.
        """
        folders: dict[str, dict[str, str]] = {}
        for taken in instance.inputs:
            source, evidence = self._sweep.stages[taken.digest], reader.evidence(taken.digest)
            if evidence.done is None:
                return None
            prefix = layout.output(source, evidence.done.attempt)
            folder = self._ledger.objects.fetch(prefix, ())  # keeps a cached copy from being evicted
            key = (taken.digest, evidence.generation)
            if damage(folder, remaining_files(evidence.done.files, evidence.retired), content=False):
                self._verified.discard(key)
            if examine(self._ledger, source, evidence.done, content=key not in self._verified)[0]:
                self._void_damaged(source, evidence)
                return None
            self._verified.add(key)
            folders.setdefault(taken.stage, {})[taken.label] = str(folder)
        return folders

    def _unpin_inputs(self, instance: StageInstance, reader: EvidenceReader) -> None:
        """Allow the cache to evict the copies of a stage's inputs."""
        for source in (self._sweep.stages[taken.digest] for taken in instance.inputs):
            done = reader.evidence(source.digest).done
            if done is not None:
                prefix = layout.payload(source, done.attempt)
                self._ledger.objects.release(prefix)

    def _void_damaged(self, instance: StageInstance, evidence: Evidence) -> None:
        """Void a product that a second check finds damaged, or that was made from a discarded one."""
        # One failed check may be a caching effect of a network file system; voiding is permanent.
        time.sleep(IDLE_S)
        done, problem = self._ledger.product(instance, evidence.generation)
        discarded = "" if done is None else self._ledger.discarded_input(instance, done)
        if done is not None:
            problem = discarded or examine(self._ledger, instance, done)[0]
            if not problem:
                return
        self._trusted.discard((instance.digest, evidence.generation))
        self._say(f"{instance.name} {instance.digest[:8]}: product does not count: {problem}")
        void = Void(
            nonce=new_nonce(),
            generation=evidence.generation,
            kind="discarded" if discarded else "damaged",
            reason=problem or "its done record is unreadable",
            by=f"worker on {self._owner.host}",
            at=provenance.now(),
        )
        self._ledger.void(instance, void)

    # Stopping

    def _why_stop(self, instance: StageInstance) -> str:
        """Return why an attempt should stop: the worker should, or all cells of its stage were cancelled."""
        if why := self._hooks.stop_asked():
            return why
        try:
            at_most_s = max(CANCEL_POLL_S, self._ledger.objects.poll_s)
            cancelled = self._read_requests(at_most_s=at_most_s).cancelled
        except (OSError, InfrastructureError):  # read again soon: no reason to lose a running stage
            return ""
        if not cancelled:
            return ""
        wanted = any(
            instance.digest in cell.stage_digests and cell.id not in cancelled for cell in self._scanner.cells
        )
        return "" if wanted else "cancelled"
