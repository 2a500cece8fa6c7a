"""One attempt from its claim to its end: inputs, checkpoint, child process, heartbeats and product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from orchestrator import provenance
from orchestrator.core.evidence import NOT_KEPT, Attempt
from orchestrator.core.failure import Cause
from orchestrator.core.identity import uses_of
from orchestrator.core.records import Done, End, StartRecord
from orchestrator.core.remedies import adapted, with_shipped
from orchestrator.core.sweep import StageInstance
from orchestrator.entry import MARK
from orchestrator.errors import MAX_LINE, InfrastructureError, escaped, means_full_disk, one_line
from orchestrator.execution.assignment import (
    AttemptSpec,
    ChildOutcome,
    ClaimedAttempt,
    drop_half,
    git_of,
    log_tail,
    read_outcome,
)
from orchestrator.execution.checkpoints import candidates, drop_partial
from orchestrator.execution.command_text import command_facts
from orchestrator.execution.conclude import (
    INPUT_RETIRED,
    NO_RECORD,
    SUPERSEDED,
    Conclusion,
    Fact,
    Facts,
    conclude,
)
from orchestrator.execution.inheritance import Inherited, has_progressed, inherit
from orchestrator.execution.keeper import await_news
from orchestrator.execution.liveness import Fence, HeartbeatWriter, warn
from orchestrator.execution.spending import CHILD, AttemptClock
from orchestrator.execution.supervision import RunningChild, Supervision, WorkerHooks
from orchestrator.formats import encode
from orchestrator.manifest import damage
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import Publisher
from orchestrator.store.retention import drop_work


class AttemptRun:
    """One claimed attempt, and the supervision of its child process.

    It collects the facts of its end, and acts on what `orchestrator.execution.conclude` decides from them.

    Args:
        ledger: the store.
        claimed: the attempt, and what it starts from.
        hooks: functions of its worker.
    """

    def __init__(self, ledger: Ledger, claimed: ClaimedAttempt, hooks: WorkerHooks) -> None:
        self._ledger = ledger
        self._claimed = claimed
        self._hooks = hooks
        self._heartbeats = HeartbeatWriter(ledger, claimed, AttemptClock(hooks.held))
        self._fence = Fence(ledger, claimed)
        self._supervision = Supervision(claimed, hooks, self._heartbeats, self._fence)
        self._supervision.on_adapted = self._record_adapted
        self._mark = hooks.children.mark(claimed.claim.nonce)
        self._folder: Path | None = None  # until it is made
        self._goes_without = False  # whether inputs were retired before the start
        self._resumed = False
        self._publisher: Publisher | None = None
        self._recorded: StartRecord | None = None

    def run(self, earlier: Sequence[Attempt]) -> End:
        """Run the attempt to its end and return the end that was recorded."""
        try:
            return self._run(earlier)
        except (OSError, InfrastructureError) as error:
            return self._conclude(Facts(error=f"{type(error).__name__}: {error}"))
        finally:
            self._ledger.objects.release(self._claimed.key)

    def _run(self, earlier: Sequence[Attempt]) -> End:
        """Take over what earlier attempts left, run the child, and conclude."""
        claimed = self._claimed
        if self._fence.is_pointless():
            return self._end(Conclusion("released", why="already_done"))
        self._goes_without = self._fence.retired_input() != ""
        if self._goes_without and claimed.former is None:
            return self._end(Conclusion("released", why=INPUT_RETIRED))
        objects = self._ledger.objects
        folder = self._folder = objects.workspace(claimed.key)
        # A surviving process could still write into the folders that are taken over.
        self._hooks.children.end_outlived()
        start = _started(claimed)
        # Without this record a successor would use nothing of an attempt that has inputs, so it comes first.
        self._record_start(start)
        with self._heartbeats.clock.phases.during("restore"):
            taken = inherit(
                *(self._ledger, claimed.instance, claimed.spec, earlier, folder),
                former=claimed.former,
                keepalive=self._heartbeats.keepalive,
                record=lambda taken: self._record_start(_going_on(start, taken)),
            )
        self._record_start(_going_on(start, taken))
        if self._goes_without and taken.former is None:
            return self._end(Conclusion("released", why=NOT_KEPT, message="it is not whole"))
        before = claimed.instance.before
        if before is not None and taken.checkpoint is None and taken.unread is None:
            return self._end(self._without_part(before))
        drop_partial(self._ledger, claimed.instance, earlier, generation=claimed.claim.generation)
        self._resumed = taken.checkpoint is not None
        step = taken.checkpoint.step if taken.checkpoint else None
        self._publisher = objects.publisher(claimed.key, adopted=step, warn=warn)
        kills = self._hooks.children.oom_kills()
        child = self._start_child(folder, taken)
        try:
            self._heartbeats.clock.phases.enter(CHILD)
            self._supervision.watch(child, self._publisher)
        finally:
            self._heartbeats.clock.phases.enter("save")
            if not child.end():
                warn(f"processes that attempt {claimed.number} started do not end")
            self._supervision.take_last_messages(child.pipe)
            child.pipe.close()
        outcome = read_outcome(folder)
        self._finish_uploads(outcome, taken)
        changed = damage(folder / layout.OUTPUT, outcome.files, content=False) if outcome else None
        return self._conclude(
            Facts(
                child=outcome or NO_RECORD,
                changed=changed or "",
                goes_without=self._goes_without,
                timed_out=self._supervision.has_timed_out,
                seconds=self._heartbeats.clock.seconds,
                stop=self._supervision.stop_reason,
                exit_code=child.exitcode or 0,
                oom_killed=self._hooks.children.oom_kills() > kills,
                log="" if outcome else log_tail(folder / layout.LOG),
            )
        )

    def _without_part(self, before: StageInstance) -> Conclusion:
        """Return why the part of a stage cannot go on: nothing was saved, or nothing saved is whole."""
        if any(candidates(self._ledger, before, self._ledger.attempts(before))):
            fix = f"`sweep discard --stage {before.stage}` has it made again"
            why = f"the checkpoints of {before.name} are damaged: {fix}"
            return Conclusion("failed", cause=Cause.STORAGE, message=why)
        why = f"{before.name} left no checkpoint to go on from: it has to save one at its last step"
        return Conclusion("failed", cause=Cause.CONFIG, message=why)

    @property
    def was_running(self) -> bool:
        """Whether the child got as far as calling the stage."""
        return self._heartbeats.progress.phase not in ("", "starting")

    @property
    def made_progress(self) -> bool:
        """Whether the child left a checkpoint of its own, so that the next attempt need not start over."""
        return bool(self._folder and has_progressed(self._folder, num_adopted=1 if self._resumed else 0))

    def _record_start(self, start: StartRecord) -> None:
        """Record the start, unless it is recorded already in this form."""
        if start == self._recorded:
            return
        spec_key = layout.stage_spec(self._claimed.instance)
        if self._ledger.objects.get(spec_key) is None:
            # All writers write the same.
            self._ledger.objects.put(spec_key, self._ledger.encode(self._claimed.instance))
        self._ledger.put(self._claimed.instance, self._claimed.number, layout.START, start)
        self._recorded = start
        self._heartbeats.write()

    def _record_adapted(self, values: dict[str, Any]) -> None:
        """Record the values that the stage chose itself, as remedies are recorded."""
        claimed = self._claimed
        spec = with_shipped(claimed.spec)
        begin = adapted(spec, uses_of(spec, claimed.cell.config), claimed.begin, values)
        assert self._recorded is not None
        changed = replace(self._recorded, uses=begin.uses, remedies=begin.rungs, before=begin.before)
        self._record_start(changed)

    def _start_child(self, folder: Path, taken: Inherited) -> RunningChild:
        """Start the process that runs the stage."""
        claimed = self._claimed
        order = claimed.order
        spec = AttemptSpec(
            store=order.store,
            sweep=order.sweep,
            cell=claimed.cell.id,
            instance=claimed.instance,
            spec=claimed.spec,
            attempt=claimed.number,
            generation=claimed.claim.generation,
            folder=str(folder),
            inputs=claimed.inputs,
            uses=claimed.begin.uses,
            config=claimed.cell.config,
            resume_step=taken.checkpoint.step if taken.checkpoint else None,
            resume_folder=str(taken.checkpoint.folder) if taken.checkpoint else "",
            former_folder=str(taken.former or ""),
            settings=order.settings,
            env={**order.env, MARK: self._mark},
            num_threads=order.num_threads,
            import_paths=order.import_paths,
            in_job=order.job is not None,
            unread=taken.unread,
        )
        return self._hooks.children.start(encode(spec), self._mark)

    def _conclude(self, facts: Facts) -> End:
        """Establish the facts on which the decision depends, record the end, and return it."""
        establish: dict[Fact, Callable[[], object]] = {
            Fact.RECORDED: self._fence.is_recorded,
            Fact.REFUSAL: lambda: self._publish(facts.child),
            Fact.SUPERSEDED: self._fence.is_superseded,
            Fact.RETIRED_INPUT: self._fence.retired_input,
            Fact.SHORTAGE: self._hooks.shortage,
            Fact.STOP_CONFIRMED: lambda: await_news(self._supervision.why_stop),
        }
        while isinstance(decision := conclude(facts), Fact):
            facts = replace(facts, **{decision: establish[decision]()})
        is_full = decision.cause is Cause.STORAGE and means_full_disk(decision.message)
        if is_full and self._folder and self._recorded is not None:
            drop_half(self._folder)  # the record of the end needs space too
        end = self._end(decision)
        is_published = facts.refusal == ""  # else it was refused, or never tried
        if is_published and not self._keeps_checkpoints:
            claimed = self._claimed
            attempts = [a for a in self._ledger.attempts(claimed.instance) if a.number <= claimed.number]
            drop_work(self._ledger, claimed.instance, attempts, generation=claimed.claim.generation)
        return end

    @property
    def _keeps_checkpoints(self) -> bool:
        """Whether checkpoints stay after the end: by the policy, or for the next part of the stage."""
        return self._claimed.order.settings.policy.keep_checkpoints or self._claimed.instance.later > 0

    def _finish_uploads(self, outcome: ChildOutcome | None, taken: Inherited) -> None:
        """Upload to a bucket what the next attempt needs; without a publisher it is in place already."""
        if self._publisher is None:
            return
        keepalive = self._heartbeats.keepalive
        counts = self._supervision.stop_reason != SUPERSEDED
        has_failed = outcome is None or outcome.outcome != "succeeded"
        keeps = has_failed or self._keeps_checkpoints
        self._publisher.finish(keepalive, checkpoints=counts and keeps)
        if counts and outcome is not None and outcome.outcome == "failed":
            # Only results that could not be read are worth an upload: the next attempt reads them again.
            if outcome.unread == self._claimed.number:
                self._publisher.failed(outcome.files, keepalive)
            elif taken.unread is not None:
                self._publisher.failed((), keepalive)

    def _publish(self, outcome: ChildOutcome) -> str:
        """Create `done`, which makes the product count; return why that is refused, "" if it is not."""
        claimed = self._claimed
        order = claimed.order
        checkout = self._hooks.checkout
        if self._publisher is None:
            self._ledger.objects.upload(claimed.key)
        else:
            self._publisher.output(outcome.files, self._heartbeats.keepalive)
        code_now = checkout.digest() if checkout else ""
        done = Done(
            nonce=new_nonce(),
            stage=claimed.instance.stage,
            digest=claimed.instance.digest,
            generation=claimed.claim.generation,
            attempt=claimed.number,
            files=outcome.files,
            rows=outcome.rows,
            seconds=self._heartbeats.clock.seconds,
            inputs=claimed.input_generations,
            retire=outcome.retire,
            code=provenance.code_version(order.code_digest, git_of(order), now=code_now),
            at=provenance.now(),
        )
        # The stage may have read an incomplete input.
        if not self._goes_without and self._fence.retired_input():
            return INPUT_RETIRED
        if self._fence.has_discarded_input() or not self._ledger.finish(done):
            return SUPERSEDED
        return ""

    def _end(self, conclusion: Conclusion) -> End:
        """Record the end of the attempt and return it; texts are cut, escaped and redacted."""
        tail = log_tail(self._folder / layout.LOG) if self._folder and conclusion.with_log else ""
        end = End(
            nonce=new_nonce(),
            outcome=conclusion.outcome,
            cause=conclusion.cause,
            why=conclusion.why,
            exception=one_line(conclusion.exception),
            message=one_line(provenance.without_secrets(conclusion.message[: 8 * MAX_LINE])),
            log_tail=escaped(provenance.without_secrets(tail)),
            seconds=self._heartbeats.clock.seconds,
            at=provenance.now(),
            spent=self._heartbeats.clock.spent(self._heartbeats.progress),
        )
        self._heartbeats.clock.held.ends(
            self._heartbeats.clock.until_saved_s(is_done=end.outcome == "succeeded")
        )
        self._ledger.end(self._claimed.instance, self._claimed.number, end)
        return end


def _started(claimed: ClaimedAttempt) -> StartRecord:
    """Return the record of an attempt's start from nothing."""
    order, begin = claimed.order, claimed.begin
    facts = provenance.of_attempt(order.code_digest, git_of(order))
    return StartRecord(
        parent=None,
        uses=begin.uses,
        provenance=facts | command_facts(claimed.spec, order.import_paths),
        inputs=dict(claimed.input_generations),
        at=provenance.now(),
        remedies=begin.rungs,
        before=begin.before,
    )


def _going_on(start: StartRecord, taken: Inherited) -> StartRecord:
    """Return the start record, extended by what is taken over."""
    return replace(start, parent=taken.parent, work=taken.work, unread=taken.unread)
