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

from orchestrator import provenance
from orchestrator.core.cell import uses_of
from orchestrator.core.failure import Cause, cause_of_exit
from orchestrator.core.records import Claim, Done, End, Heartbeat, StartRecord
from orchestrator.core.state import NOT_KEPT, Attempt, Former
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.entry import MARK
from orchestrator.errors import InfrastructureError, NotKept
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
from orchestrator.execution.inheritance import Inherited, going_on, has_progressed, inherit, started
from orchestrator.execution.keeper import await_news
from orchestrator.execution.publishing import BucketPublisher, complain
from orchestrator.formats import encode
from orchestrator.manifest import damage
from orchestrator.processes import end_attempt, end_outlived, mark_of, oom_kills, reap_adopted
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger
from orchestrator.store.remote import RemoteStore
from orchestrator.store.retention import drop_work
from orchestrator.text import MAX_LINE, escaped, one_line

MAX_HEARTBEAT_S = 10.0
INPUT_RETIRED = "input_retired"


class AttemptRun:
    """One claimed attempt, and the supervision of its child process.

    Fencing: two workers may both run a stage, because the first was wrongly taken for dead. This is safe:
    each attempt writes only into its own folder, and `done` can be created only once per generation::

        attempt 1: claim .... no heartbeat .... create done: refused, so released (superseded)
        attempt 2:                claim ... create done: its product is the result

    An attempt therefore looks for a successor at each heartbeat, and again when it fails.

    Args:
        ledger: the store.
        order: the worker's assignment.
        spec: the stage in the sweep.
        cell: on whose behalf the attempt runs.
        node: the stage instance.
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
        node: StageInstance,
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
        self._cell, self._node, self.number, self._claim = cell, node, number, claim
        self._inputs, self._generations = inputs, input_generations
        self._context, self._stop_asked, self._code_now = context, stop_asked, code_now
        self._shortage, self._former = shortage, former
        self._goes_without = False  # whether inputs were retired before the start
        self._start_s = time.monotonic()
        self._beat, self._beat_s = 0, 0.0
        self._message = Message(phase="starting")
        self._released, self._stopping_s = "", 0.0
        self._timed_out, self._resumed = False, False
        self._key = layout.payload(node.stage, node.digest, number)
        self._folder = Path(layout.CHECKPOINTS)
        self._mark = mark_of(claim.nonce)
        self._shipper: BucketPublisher | None = None
        self._recorded: StartRecord | None = None

    def run(self, earlier: Sequence[Attempt]) -> End:
        """Run the attempt to its end and return the end that was recorded."""
        try:
            return self._run(earlier)
        except (OSError, InfrastructureError) as error:
            done, _ = self._ledger.product(self._node, self._claim.generation)
            # The error may have come after `done` was created: a product that exists counts.
            if done is not None and done.attempt == self.number:
                return self._end("succeeded")
            if self._is_superseded():
                return self._end("released", why="superseded")
            return self._end("failed", cause=Cause.STORAGE, message=f"{type(error).__name__}: {error}")
        finally:
            self._ledger.objects.release(self._key)

    def _run(self, earlier: Sequence[Attempt]) -> End:
        """Take over what earlier attempts left, run the child, and conclude."""
        if self._ledger.is_done_or_void(self._node, self._claim.generation):
            return self._end("released", why="already_done")
        self._goes_without = self._retired_input() != ""
        if self._goes_without and self._former is None:
            return self._end("released", why=INPUT_RETIRED)
        objects = self._ledger.objects
        folder = self._folder = objects.workspace(self._key)
        end_outlived()  # a surviving process could still write into the folders that are taken over
        start = started(self._order, self._spec, self._cell, self._generations)
        # Without this record a successor would use nothing of an attempt that has inputs, so it comes first.
        self._record_start(start)
        taken = inherit(
            *(self._ledger, self._node, self._spec, earlier, folder),
            former=self._former,
            pulse=self._pulse,
            record=lambda taken: self._record_start(going_on(start, taken)),
        )
        self._record_start(going_on(start, taken))
        if self._goes_without and taken.former is None:
            return self._end("released", why=NOT_KEPT, message="it is not whole")
        self._resumed = taken.checkpoint is not None
        if isinstance(objects, RemoteStore):
            step = taken.checkpoint.step if taken.checkpoint else None
            self._shipper = BucketPublisher(objects, self._key, adopted=step, complain=complain)
        outcome, kills = None, oom_kills()
        process, pipe = self._fork(folder, taken)
        try:
            self._supervise(process, pipe)
        finally:
            if process.pid is not None:
                process.kill()
                if not end_attempt(self._mark, leader=process.pid):
                    complain(f"processes that attempt {self.number} started do not end")
            process.join()
            self._take_last_messages(pipe)
            pipe.close()
        outcome = read_outcome(folder)
        if self._shipper is not None:
            succeeded = outcome is not None and outcome.outcome == "succeeded"
            wanted = self._order.settings.policy.keep_checkpoints or not succeeded
            self._shipper.finish(self._pulse, checkpoints=wanted and self._released != "superseded")
            if outcome is not None and self._released != "superseded":
                self._shipper.failed(outcome, self.number, self._pulse, has_read=taken.unread is not None)
        return self._conclude(outcome, process.exitcode or 0, folder, oom_killed=oom_kills() > kills)

    @property
    def was_running(self) -> bool:
        """Whether the child got as far as calling the stage."""
        return self._message.phase not in ("", "starting")

    @property
    def made_progress(self) -> bool:
        """Whether the child left a checkpoint of its own, so that the next attempt need not start over."""
        return has_progressed(self._folder, num_adopted=1 if self._resumed else 0)

    # Starting

    def _record_start(self, start: StartRecord) -> None:
        """Record the start, unless it is recorded already in this form."""
        if start == self._recorded:
            return
        spec_key = layout.stage_spec(self._node.stage, self._node.digest)
        if self._ledger.objects.get(spec_key) is None:
            self._ledger.objects.put(spec_key, self._ledger.encode(self._node))  # all writers write the same
        self._ledger.put(self._node, self.number, layout.START, start)
        self._recorded = start
        self._heartbeat()

    def _fork(self, folder: Path, taken: Inherited) -> tuple[BaseProcess, Connection]:
        """Start the child, and return its process and this side's end of the pipe."""
        order = AttemptSpec(
            store=self._order.store,
            sweep=self._order.sweep,
            cell=self._cell.cell,
            node=self._node,
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
        limit_s = limits.get(self._node.stage, self._spec.limit_s)
        grace_s = self._order.settings.policy.grace_s
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
            if self._shipper is not None and self._released != "superseded":
                self._shipper.step()
            if self._released and not told:
                told, self._stopping_s = True, now_s
                if (shortage := self._shortage()) is not None and shortage.at_once:
                    return
                send(pipe, Message(stop=self._released))
            if told and now_s - self._stopping_s > grace_s:
                return

    def _take_message(self, pipe: Connection) -> None:
        try:
            message = msgspec.json.decode(pipe.recv_bytes(), type=Message)
        except (EOFError, OSError, msgspec.DecodeError):
            time.sleep(0.02)  # the child is ending: the caller's loop sees its exit code
            return
        was, self._message = self._message, message
        known = was.process, was.phase, was.step is None
        # A changed phase or process is recorded at once, a step with the next regular heartbeat. Other
        # workers on this machine need the process to prove that the child is gone.
        if known != (message.process, message.phase, message.step is None):
            self._heartbeat()

    def _take_last_messages(self, pipe: Connection) -> None:
        """Read the messages that the child sent before it ended, to record how far it came."""
        with contextlib.suppress(EOFError, OSError, msgspec.DecodeError):
            while pipe.poll():
                self._message = msgspec.json.decode(pipe.recv_bytes(), type=Message)

    def _control(self) -> None:
        """Check the reasons to stop, and record a heartbeat when one is due."""
        if not self._released and (why := self._stop_asked()):
            self._released = why
        if self._pulse() and not self._released and self._is_superseded():
            self._released = "superseded"

    def _is_superseded(self) -> bool:
        try:
            return self._ledger.is_claimed(self._node, self.number + 1) or self._ledger.is_done_or_void(
                self._node, self._claim.generation
            )
        except OSError:
            return False

    def _pulse(self) -> bool:
        """Record a heartbeat if one is due; return whether it was."""
        if time.monotonic() - self._beat_s < min(self._claim.lease_s / 3, MAX_HEARTBEAT_S):
            return False
        self._heartbeat()
        return True

    def _heartbeat(self) -> None:
        self._beat, self._beat_s = self._beat + 1, time.monotonic()
        message = self._message
        beat = Heartbeat(
            counter=self._beat,
            phase=message.phase,
            step=message.step,
            num_steps=message.num_steps,
            child=message.process,
            at=provenance.now(),
        )
        try:
            self._ledger.put(self._node, self.number, layout.HEARTBEAT, beat)
        except OSError as error:
            complain(f"heartbeat of {self._node.name} attempt {self.number} failed: {error}")

    # Ending

    def _conclude(
        self, outcome: ChildOutcome | None, exit_code: int, folder: Path, *, oom_killed: bool
    ) -> End:
        """Decide how the attempt ended, and record it.

        Several things can be true at once: a stage may fail because its input was deleted, while its worker
        is being stopped. The order of the tests ranks them. Causes outside the stage come before the stage's
        own error, so that they do not spend its retry budget::

            product > superseded > changed output > retired input > time limit > memory > outcome > stop >
                exit code

        Args:
            outcome: what the child recorded; None if it died without an outcome.
            exit_code: of the child.
            folder: the attempt's payload folder.
            oom_killed: whether the kernel's OOM killer was active on this machine meanwhile.
        """
        tail = log_tail(folder / layout.LOG)
        succeeded = outcome is not None and outcome.outcome == "succeeded"
        changed = damage(folder / layout.OUTPUT, outcome.files, content=False) if outcome else None
        if outcome is not None and succeeded and changed is None:
            return self._finish(outcome)
        if self._is_superseded():  # fenced: any error may be a consequence, so it costs no retry budget
            return self._end("released", why="superseded")
        if succeeded:
            message = f"the output changed after the stage returned: {changed}"
            return self._end("failed", cause=Cause.CODE, message=message, log_tail=tail)
        if self._goes_without and outcome is not None and outcome.exception == NotKept.__name__:
            return self._end("released", why=NOT_KEPT, message=outcome.message, log_tail=tail)
        if (outcome is None or outcome.outcome == "failed") and (stage := self._retired_input()):
            message = f"files of its input {stage} were retired meanwhile"
            message += f": {outcome.message}" if outcome else ""
            return self._end("released", why=INPUT_RETIRED, message=message, log_tail=tail)
        if self._timed_out:
            message = f"no end after its limit of {time.monotonic() - self._start_s:.0f} s"
            return self._end("failed", cause=Cause.TIMEOUT, message=message, log_tail=tail)
        if (shortage := self._shortage()) is not None:
            return self._end("failed", cause=shortage.cause, message=shortage.message, log_tail=tail)
        if outcome is not None and outcome.outcome == "released":
            # A scheduler signals all processes at once: the child may end before the worker's signal arrives.
            if outcome.why != "stopped" or await_news(lambda: self._released or self._stop_asked()):
                return self._end("released", why=outcome.why)
            message = "the stage's process received SIGTERM, but nobody asked for a stop"
            return self._end("failed", cause=Cause.UNKNOWN, message=message, log_tail=tail)
        if outcome is not None:
            return self._end(
                "failed",
                cause=outcome.cause,
                exception=outcome.exception,
                message=outcome.message,
                log_tail=tail,
            )
        if self._released:
            return self._end("released", why=self._released)
        cause, message = cause_of_exit(exit_code, oom_killed=oom_killed)
        if exit_code == child.NO_OUTCOME:
            cause, message = Cause.STORAGE, "the stage's process could not write its outcome to the store"
        return self._end("failed", cause=cause, message=message, log_tail=tail)

    def _finish(self, outcome: ChildOutcome) -> End:
        """Create `done`, which makes the product count, and then `end`."""
        if self._shipper is None:
            self._ledger.objects.upload(self._key)
        else:
            self._shipper.output(outcome.files, self._pulse)
        done = Done(
            nonce=new_nonce(),
            stage=self._node.stage,
            digest=self._node.digest,
            generation=self._claim.generation,
            attempt=self.number,
            files=outcome.files,
            rows=outcome.rows,
            seconds=round(time.monotonic() - self._start_s, 3),
            inputs=self._generations,
            retire=outcome.retire,
            code=provenance.code_version(self._order.code_digest, git_of(self._order), now=self._code_now()),
            at=provenance.now(),
        )
        if self._retired_input():  # the stage may have read an incomplete input
            return self._end("released", why=INPUT_RETIRED)
        if self._has_discarded_input() or not self._ledger.finish(done):
            return self._end("released", why="superseded")
        end = self._end("succeeded")
        if not self._order.settings.policy.keep_checkpoints:
            attempts = [a for a in self._ledger.attempts(self._node) if a.number <= self.number]
            drop_work(self._ledger, self._node, attempts, generation=self._claim.generation)
        return end

    def _retired_input(self) -> str:
        """Return the stage of an input that was retired; "" for none, or if the attempt started without it.

        Another sweep may still take a product whose files its own sweep no longer needs.
        """
        return "" if self._goes_without else self._ledger.retired_input(self._node, self._generations)

    def _has_discarded_input(self) -> bool:
        """Whether an input was discarded while the attempt ran: what was made from it must not count."""
        return any(
            self._ledger.is_discarded(taken, self._generations[taken.digest]) for taken in self._node.inputs
        )

    def _end(
        self,
        outcome: str,
        *,
        why: str = "",
        cause: Cause | None = None,
        exception: str = "",
        message: str = "",
        log_tail: str = "",
    ) -> End:
        """Record the end of the attempt and return it; texts are cut, escaped and redacted."""
        end = msgspec.convert(
            {
                "nonce": new_nonce(),
                "outcome": outcome,
                "cause": cause,
                "why": why,
                "exception": one_line(exception),
                "message": one_line(provenance.without_secrets(message[: 8 * MAX_LINE])),
                "log_tail": escaped(provenance.without_secrets(log_tail)),
                "seconds": round(time.monotonic() - self._start_s, 3),
                "at": provenance.now(),
            },
            End,
        )
        self._ledger.end(self._node, self.number, end)
        return end
