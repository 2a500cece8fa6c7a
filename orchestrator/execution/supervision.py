"""The supervision of an attempt's child by its worker: its messages, its time limit, and its stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import msgspec

from orchestrator.costs import STOP_FACTOR
from orchestrator.execution.assignment import (
    ClaimedAttempt,
    Message,
    Shortage,
    send,
)
from orchestrator.execution.conclude import (
    SUPERSEDED,
)
from orchestrator.execution.liveness import Fence, HeartbeatWriter
from orchestrator.execution.spending import HeldTime
from orchestrator.processes import reap_adopted
from orchestrator.store.checkout import Checkout
from orchestrator.store.objects import Publisher


class WorkerHooks(msgspec.Struct, frozen=True, kw_only=True):
    """Functions of the worker that an attempt calls while it runs.

    Attributes:
        context: forks children.
        stop_asked: returns why the work should stop, "" while it should not.
        shortage: returns the lack of memory on the node that stops the worker; None without one.
        held: the time for which the worker holds its GPUs.
        checkout: the code that runs in place; None if that cannot change or need not be watched.
    """

    context: BaseContext
    stop_asked: Callable[[], str]
    shortage: Callable[[], Shortage | None]
    held: HeldTime
    checkout: Checkout | None = None


class Supervision:
    """The supervision of an attempt's child: its messages, its time limit, and why it must stop.

    Args:
        claimed: the attempt.
        hooks: functions of its worker.
        heartbeats: record what the child reports.
        fence: shows whether the product may still count.

    Attributes:
        on_adapted: called with the values that the stage chose in place of those that it was given.
        stop_reason: why the attempt stops, "" while it goes on.
        has_timed_out: whether the stage reached its time limit.
    """

    def __init__(
        self, claimed: ClaimedAttempt, hooks: WorkerHooks, heartbeats: HeartbeatWriter, fence: Fence
    ) -> None:
        self._claimed = claimed
        self._hooks = hooks
        self._heartbeats = heartbeats
        self._fence = fence
        self._start_s = time.monotonic()
        self.on_adapted: Callable[[dict[str, Any]], None] = lambda values: None
        self.stop_reason = ""
        self.has_timed_out = False

    def why_stop(self) -> str:
        """Return why the attempt stops, also by news that came after the child's end; "" without a reason."""
        return self.stop_reason or self._hooks.stop_asked()

    def watch(self, process: BaseProcess, pipe: Connection, publisher: Publisher | None) -> None:
        """Watch the child until it ends or must be killed: time limit, grace period after a stop, memory."""
        limits = self._claimed.order.settings.policy.limits_s
        limit_s = limits.get(self._claimed.instance.stage, self._claimed.spec.limit_s)
        stopping_s: float | None = None  # since when the child knows of the stop
        while process.exitcode is None:
            # The worker adopts the orphans of its stages: collect those that ended, or they stay as zombies.
            reap_adopted([process.pid or 0])
            ready = wait([process.sentinel, pipe], timeout=0.2) if not pipe.closed else []
            if pipe in ready:
                self._take_message(pipe)
            now_s = time.monotonic()
            if limit_s is not None and now_s - self._start_s > limit_s:
                self.has_timed_out = True
                return
            self._control()
            # A fenced attempt publishes nothing more: its files could only mislead a reader.
            if publisher is not None and self.stop_reason != SUPERSEDED:
                publisher.step()
            if self.stop_reason and stopping_s is None:
                stopping_s = now_s
                if (shortage := self._hooks.shortage()) is not None and shortage.at_once:
                    return
                send(pipe, Message(stop=self.stop_reason))
            if stopping_s is not None and now_s - stopping_s > self._grace_s:
                return

    @property
    def _grace_s(self) -> float:
        """Seconds that the child has to end after a stop: the configured ones, or those that it needs."""
        grace_s = self._claimed.order.settings.policy.grace_s
        return max(grace_s, STOP_FACTOR * self._heartbeats.progress.stop_s)

    def _take_message(self, pipe: Connection) -> None:
        try:
            message = msgspec.json.decode(pipe.recv_bytes(), type=Message)
        except (EOFError, OSError, msgspec.DecodeError):
            time.sleep(0.02)  # the child is ending: the caller's loop sees its exit code
            return
        self._heartbeats.receive(message)
        if message.adapted:
            self.on_adapted(message.adapted)

    def take_last_messages(self, pipe: Connection) -> None:
        """Read the messages that the child sent before it ended, to record how far it came."""
        with contextlib.suppress(EOFError, OSError, msgspec.DecodeError):
            while pipe.poll():
                self._heartbeats.progress = msgspec.json.decode(pipe.recv_bytes(), type=Message)

    def _control(self) -> None:
        """Check the reasons to stop, and record a heartbeat when one is due."""
        if not self.stop_reason and (why := self._hooks.stop_asked()):
            self.stop_reason = why
        # The worker's own notice comes before the job's end, but maybe too late for this stage.
        end_at = self._claimed.order.job.end_at if self._claimed.order.job else None
        needed_s = STOP_FACTOR * self._heartbeats.progress.stop_s
        if not self.stop_reason and end_at is not None and needed_s and end_at - time.time() < needed_s:
            self.stop_reason = "deadline"
        if self._heartbeats.pulse() and not self.stop_reason and self._fence.is_superseded():
            self.stop_reason = SUPERSEDED
