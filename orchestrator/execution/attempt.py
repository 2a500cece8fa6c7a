"""One attempt from its claim to its end: inputs, checkpoint, child process, heartbeats and product."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
from msgspec.structs import replace

from orchestrator import provenance
from orchestrator.core.identity import uses_of
from orchestrator.core.records import Claim, Done, End, StartRecord
from orchestrator.core.state import NOT_KEPT, Attempt, Former
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.costs import STOP_FACTOR
from orchestrator.entry import MARK
from orchestrator.errors import MAX_LINE, InfrastructureError, escaped, one_line
from orchestrator.execution import child
from orchestrator.execution.assignment import (
    Assignment,
    AttemptSpec,
    ChildOutcome,
    Message,
    Shortage,
    git_of,
    log_tail,
    read_outcome,
    send,
)
from orchestrator.execution.conclude import (
    INPUT_RETIRED,
    NO_RECORD,
    SUPERSEDED,
    Conclusion,
    Fact,
    Facts,
    conclude,
)
from orchestrator.execution.inheritance import Inherited, going_on, has_progressed, inherit, started
from orchestrator.execution.keeper import await_news
from orchestrator.execution.liveness import Fence, HeartbeatWriter, warn
from orchestrator.formats import encode
from orchestrator.manifest import damage
from orchestrator.processes import end_attempt, end_outlived, mark_of, oom_kills, reap_adopted
from orchestrator.stage import StageSpec
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
        order: the worker's assignment.
        spec: the stage in the sweep.
        cell: on whose behalf the attempt runs.
        instance: the stage instance.
        number: number of the attempt.
        claim: the claim that won.
        inputs: stage name to label to verified folder.
        input_generations: digest of each input to the generation of its product.
        context: forks children.
        stop_asked: returns why this worker should stop, "" while it should not.
        code_now: returns the current digest of the code that stages run.
        shortage: returns the lack of memory on the node that stops the worker; None without one.
        former: the product of an earlier version of the stage. It can stand in for retired inputs.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        order: Assignment,
        spec: StageSpec,
        cell: Cell,
        instance: StageInstance,
        number: int,
        claim: Claim,
        inputs: dict[str, dict[str, str]],
        input_generations: dict[str, int],
        context: BaseContext,
        stop_asked: Callable[[], str],
        code_now: Callable[[], str],
        shortage: Callable[[], Shortage | None] = lambda: None,
        former: Former | None = None,
    ) -> None:
        self._ledger, self._order, self._spec = ledger, order, spec
        self._cell, self._instance, self.number, self._claim = cell, instance, number, claim
        self._inputs, self._generations = inputs, input_generations
        self._context, self._stop_asked, self._code_now = context, stop_asked, code_now
        self._shortage, self._former = shortage, former
        self._goes_without = False  # whether inputs were retired before the start
        self._start_s = time.monotonic()
        self._heartbeats = HeartbeatWriter(ledger, instance, number, lease_s=claim.lease_s)
        self._fence = Fence(
            ledger, instance, number=number, generation=claim.generation, inputs=input_generations
        )
        self._stop_reason, self._stopping_s = "", 0.0
        self._timed_out, self._resumed = False, False
        self._key = layout.payload(instance, number)
        self._folder = Path(layout.CHECKPOINTS)
        self._mark = mark_of(claim.nonce)
        self._publisher: Publisher | None = None
        self._recorded: StartRecord | None = None

    def run(self, earlier: Sequence[Attempt]) -> End:
        """Run the attempt to its end and return the end that was recorded."""
        try:
            return self._run(earlier)
        except (OSError, InfrastructureError) as error:
            return self._conclude(Facts(error=f"{type(error).__name__}: {error}"))
        finally:
            self._ledger.objects.release(self._key)

    def _run(self, earlier: Sequence[Attempt]) -> End:
        """Take over what earlier attempts left, run the child, and conclude."""
        if self._fence.is_pointless():
            return self._end(Conclusion("released", why="already_done"))
        self._goes_without = self._fence.retired_input() != ""
        if self._goes_without and self._former is None:
            return self._end(Conclusion("released", why=INPUT_RETIRED))
        objects = self._ledger.objects
        folder = self._folder = objects.workspace(self._key)
        end_outlived()  # a surviving process could still write into the folders that are taken over
        start = started(self._order, self._spec, self._cell, self._generations)
        # Without this record a successor would use nothing of an attempt that has inputs, so it comes first.
        self._record_start(start)
        taken = inherit(
            *(self._ledger, self._instance, self._spec, earlier, folder),
            former=self._former,
            pulse=self._heartbeats.pulse,
            record=lambda taken: self._record_start(going_on(start, taken)),
        )
        self._record_start(going_on(start, taken))
        if self._goes_without and taken.former is None:
            return self._end(Conclusion("released", why=NOT_KEPT, message="it is not whole"))
        self._resumed = taken.checkpoint is not None
        step = taken.checkpoint.step if taken.checkpoint else None
        self._publisher = objects.publisher(self._key, adopted=step, warn=warn)
        outcome, kills = None, oom_kills()
        process, pipe = self._fork(folder, taken)
        try:
            self._supervise(process, pipe)
        finally:
            if process.pid is not None:
                process.kill()
                if not end_attempt(self._mark, leader=process.pid):
                    warn(f"processes that attempt {self.number} started do not end")
            process.join()
            self._take_last_messages(pipe)
            pipe.close()
        outcome = read_outcome(folder)
        if self._publisher is not None:
            counts, pulse = self._stop_reason != SUPERSEDED, self._heartbeats.pulse
            has_failed = outcome is None or outcome.outcome != "succeeded"
            keeps = has_failed or self._order.settings.policy.keep_checkpoints
            self._publisher.finish(pulse, checkpoints=counts and keeps)
            if counts and outcome is not None and outcome.outcome == "failed":
                # Only results that could not be read are worth an upload: the next attempt reads them again.
                if outcome.unread == self.number:
                    self._publisher.failed(outcome.files, pulse)
                elif taken.unread is not None:
                    self._publisher.failed((), pulse)
        changed = damage(folder / layout.OUTPUT, outcome.files, content=False) if outcome else None
        return self._conclude(
            Facts(
                child=outcome or NO_RECORD,
                changed=changed or "",
                goes_without=self._goes_without,
                timed_out=self._timed_out,
                seconds=self._seconds,
                stop=self._stop_reason,
                exit_code=process.exitcode or 0,
                oom_killed=oom_kills() > kills,
            )
        )

    @property
    def was_running(self) -> bool:
        """Whether the child got as far as calling the stage."""
        return self._heartbeats.progress.phase not in ("", "starting")

    @property
    def made_progress(self) -> bool:
        """Whether the child left a checkpoint of its own, so that the next attempt need not start over."""
        return has_progressed(self._folder, num_adopted=1 if self._resumed else 0)

    # Starting

    def _record_start(self, start: StartRecord) -> None:
        """Record the start, unless it is recorded already in this form."""
        if start == self._recorded:
            return
        spec_key = layout.stage_spec(self._instance)
        if self._ledger.objects.get(spec_key) is None:
            self._ledger.objects.put(
                spec_key, self._ledger.encode(self._instance)
            )  # all writers write the same
        self._ledger.put(self._instance, self.number, layout.START, start)
        self._recorded = start
        self._heartbeats.write()

    def _fork(self, folder: Path, taken: Inherited) -> tuple[BaseProcess, Connection]:
        """Start the child, and return its process and this side's end of the pipe."""
        order = AttemptSpec(
            store=self._order.store,
            sweep=self._order.sweep,
            cell=self._cell.id,
            instance=self._instance,
            spec=self._spec,
            attempt=self.number,
            generation=self._claim.generation,
            folder=str(folder),
            inputs=self._inputs,
            uses=uses_of(self._spec, self._cell.config),
            config=self._cell.config,
            resume_step=taken.checkpoint.step if taken.checkpoint else None,
            resume_folder=str(taken.checkpoint.folder) if taken.checkpoint else "",
            former_folder=str(taken.former or ""),
            settings=self._order.settings,
            env={**self._order.env, MARK: self._mark},
            num_threads=self._order.num_threads,
            import_paths=self._order.import_paths,
            in_job=self._order.job is not None,
            unread=taken.unread,
        )
        mine, its = self._context.Pipe(duplex=True)
        # The forked child must not keep a copy of our end, or it would never see the pipe close.
        util.register_after_fork(mine, Connection.close)
        process = self._context.Process(target=child.main, args=(encode(order), its))  # type: ignore[attr-defined]
        process.start()
        its.close()
        return process, mine

    # While it runs

    def _supervise(self, process: BaseProcess, pipe: Connection) -> None:
        """Watch the child until it ends or must be killed: time limit, grace period after a stop, memory."""
        limits = self._order.settings.policy.limits_s
        limit_s = limits.get(self._instance.stage, self._spec.limit_s)
        told = False
        while process.exitcode is None:
            # The worker adopts the orphans of its stages: collect those that ended, or they stay as zombies.
            reap_adopted([process.pid or 0])
            ready = wait([process.sentinel, pipe], timeout=0.2) if not pipe.closed else []
            if pipe in ready:
                self._take_message(pipe)
            now_s = time.monotonic()
            if limit_s is not None and now_s - self._start_s > limit_s:
                self._timed_out = True
                return
            self._control()
            # A fenced attempt publishes nothing more: its files could only mislead a reader.
            if self._publisher is not None and self._stop_reason != SUPERSEDED:
                self._publisher.step()
            if self._stop_reason and not told:
                told, self._stopping_s = True, now_s
                if (shortage := self._shortage()) is not None and shortage.at_once:
                    return
                send(pipe, Message(stop=self._stop_reason))
            if told and now_s - self._stopping_s > self._grace_s:
                return

    @property
    def _grace_s(self) -> float:
        """Seconds that the child has to end after a stop: the configured ones, or those that it needs."""
        return max(self._order.settings.policy.grace_s, STOP_FACTOR * self._heartbeats.progress.stop_s)

    def _take_message(self, pipe: Connection) -> None:
        try:
            message = msgspec.json.decode(pipe.recv_bytes(), type=Message)
        except (EOFError, OSError, msgspec.DecodeError):
            time.sleep(0.02)  # the child is ending: the caller's loop sees its exit code
            return
        self._heartbeats.receive(message)

    def _take_last_messages(self, pipe: Connection) -> None:
        """Read the messages that the child sent before it ended, to record how far it came."""
        with contextlib.suppress(EOFError, OSError, msgspec.DecodeError):
            while pipe.poll():
                self._heartbeats.progress = msgspec.json.decode(pipe.recv_bytes(), type=Message)

    def _control(self) -> None:
        """Check the reasons to stop, and record a heartbeat when one is due."""
        if not self._stop_reason and (why := self._stop_asked()):
            self._stop_reason = why
        # The worker's own notice comes before the job's end, but maybe too late for this stage.
        end_at = self._order.job.end_at if self._order.job else None
        needed_s = STOP_FACTOR * self._heartbeats.progress.stop_s
        if not self._stop_reason and end_at is not None and needed_s and end_at - time.time() < needed_s:
            self._stop_reason = "deadline"
        if self._heartbeats.pulse() and not self._stop_reason and self._fence.is_superseded():
            self._stop_reason = SUPERSEDED

    # Ending

    def _conclude(self, facts: Facts) -> End:
        """Establish the facts on which the decision depends, record the end, and return it."""
        establish: dict[Fact, Callable[[], object]] = {
            Fact.RECORDED: self._fence.is_recorded,
            Fact.REFUSAL: lambda: self._publish(facts.child),
            Fact.SUPERSEDED: self._fence.is_superseded,
            Fact.RETIRED_INPUT: self._fence.retired_input,
            Fact.SHORTAGE: self._shortage,
            Fact.STOP_CONFIRMED: lambda: await_news(lambda: self._stop_reason or self._stop_asked()),
        }
        while isinstance(decision := conclude(facts), Fact):
            facts = replace(facts, **{decision: establish[decision]()})
        end = self._end(decision)
        if facts.refusal == "" and not self._order.settings.policy.keep_checkpoints:
            attempts = [a for a in self._ledger.attempts(self._instance) if a.number <= self.number]
            drop_work(self._ledger, self._instance, attempts, generation=self._claim.generation)
        return end

    def _publish(self, outcome: ChildOutcome) -> str:
        """Create `done`, which makes the product count; return why that is refused, "" if it is not."""
        if self._publisher is None:
            self._ledger.objects.upload(self._key)
        else:
            self._publisher.output(outcome.files, self._heartbeats.pulse)
        done = Done(
            nonce=new_nonce(),
            stage=self._instance.stage,
            digest=self._instance.digest,
            generation=self._claim.generation,
            attempt=self.number,
            files=outcome.files,
            rows=outcome.rows,
            seconds=self._seconds,
            inputs=self._generations,
            retire=outcome.retire,
            code=provenance.code_version(self._order.code_digest, git_of(self._order), now=self._code_now()),
            at=provenance.now(),
        )
        # The stage may have read an incomplete input.
        if not self._goes_without and self._fence.retired_input():
            return INPUT_RETIRED
        if self._fence.has_discarded_input() or not self._ledger.finish(done):
            return SUPERSEDED
        return ""

    @property
    def _seconds(self) -> float:
        """Wall time of the attempt so far."""
        return round(time.monotonic() - self._start_s, 3)

    def _end(self, conclusion: Conclusion) -> End:
        """Record the end of the attempt and return it; texts are cut, escaped and redacted."""
        tail = log_tail(self._folder / layout.LOG) if conclusion.with_log else ""
        end = End(
            nonce=new_nonce(),
            outcome=conclusion.outcome,
            cause=conclusion.cause,
            why=conclusion.why,
            exception=one_line(conclusion.exception),
            message=one_line(provenance.without_secrets(conclusion.message[: 8 * MAX_LINE])),
            log_tail=escaped(provenance.without_secrets(tail)),
            seconds=self._seconds,
            at=provenance.now(),
        )
        self._ledger.end(self._instance, self.number, end)
        return end
