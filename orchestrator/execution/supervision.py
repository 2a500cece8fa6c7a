"""The supervision of an attempt's child by its worker: its messages, its time limit, and its stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import msgspec

from orchestrator.costs import STOP_FACTOR
from orchestrator.execution import child
from orchestrator.execution.assignment import ClaimedAttempt, Message, Shortage
from orchestrator.execution.conclude import SUPERSEDED
from orchestrator.execution.liveness import Fence, HeartbeatWriter
from orchestrator.execution.spending import HeldTime
from orchestrator.processes import end_attempt, end_outlived, mark_of, oom_kills, reap_adopted
from orchestrator.store.checkout import Checkout
from orchestrator.store.objects import Publisher


class Pipe(Protocol):
    """The worker's end of the pipe to a child, as `multiprocessing.connection.Connection` has it."""

    @property
    def closed(self) -> bool:
        """Whether this end is closed."""

    def poll(self) -> bool:
        """Return whether there is something to read, or the other end is closed."""

    def recv_bytes(self) -> bytes:
        """Return the next message; raise `EOFError` when the other end is closed."""

    def send_bytes(self, data: bytes, /) -> None:
        """Send a message; raise `OSError` when the other end is closed."""

    def close(self) -> None:
        """Close this end, after which the child ends itself."""


def send(pipe: Pipe, message: Message) -> None:
    """Send a message to a child. The message is dropped if the child is ending."""
    # The child's end is noticed by its exit code; a failed message needs no other reaction.
    with contextlib.suppress(OSError):
        pipe.send_bytes(msgspec.json.encode(message))


class RunningChild(Protocol):
    """A process that runs one attempt."""

    @property
    def pipe(self) -> Pipe:
        """The pipe to the process."""

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for a message, the process's end or the timeout; return whether there is a message."""

    def end(self) -> bool:
        """Kill the process and all that it started; return False if something still runs."""


class Children(Protocol):
    """What starts the processes of a worker's attempts: the only place where a worker starts any."""

    def mark(self, nonce: str) -> str:
        """Return the mark of the attempt whose claim has this nonce, see `orchestrator.processes.mark_of`."""

    def start(self, order_json: bytes, mark: str) -> RunningChild:
        """Start `orchestrator.execution.child.main` in a process of its own."""

    def end_outlived(self) -> None:
        """End what earlier workers on this machine left behind."""

    def oom_kills(self) -> int:
        """Return how many processes the kernel has ended here for lack of memory."""


class ForkedChildren:
    """Children that are forked.

    Args:
        context: forks them.
    """

    def __init__(self, context: BaseContext) -> None:
        self._context = context

    mark = staticmethod(mark_of)
    end_outlived = staticmethod(end_outlived)
    oom_kills = staticmethod(oom_kills)

    def start(self, order_json: bytes, mark: str) -> RunningChild:
        """Fork a process; see `Children.start`."""
        return _ForkedChild(self._context, order_json, mark)


class _ForkedChild:
    """A forked process; see `RunningChild`."""

    def __init__(self, context: BaseContext, order_json: bytes, mark: str) -> None:
        self.pipe, its = context.Pipe(duplex=True)
        # The forked child must not keep a copy of our end, or it would never see the pipe close.
        util.register_after_fork(self.pipe, Connection.close)
        self._mark = mark
        self._process = context.Process(target=child.main, args=(order_json, its))  # type: ignore[attr-defined]
        self._process.start()
        its.close()

    @property
    def exitcode(self) -> int | None:
        """The exit code; None while the process runs."""
        code: int | None = self._process.exitcode
        return code

    def wait(self, timeout_s: float) -> bool:
        """Wait for a message, the process's end or the timeout."""
        # The worker adopts the orphans of its stages: collect those that ended, or they stay as zombies.
        reap_adopted([self._process.pid or 0])
        ready = [] if self.pipe.closed else wait([self._process.sentinel, self.pipe], timeout=timeout_s)
        return self.pipe in ready

    def end(self) -> bool:
        """Kill the process and all that it started."""
        has_ended = True
        if self._process.pid is not None:
            self._process.kill()
            has_ended = end_attempt(self._mark, leader=self._process.pid)
        self._process.join()
        return has_ended


class WorkerHooks(msgspec.Struct, frozen=True, kw_only=True):
    """Functions of the worker that an attempt calls while it runs.

    Attributes:
        children: starts the processes of attempts.
        stop_asked: returns why the work should stop, "" while it should not.
        shortage: returns the lack of memory on the node that stops the worker; None without one.
        held: the time for which the worker holds its GPUs.
        checkout: the code that runs in place; None if that cannot change or need not be watched.
    """

    children: Children
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

    def watch(self, child: RunningChild, publisher: Publisher | None) -> None:
        """Watch the child until it ends or must be killed: time limit, grace period after a stop, memory."""
        limits = self._claimed.order.settings.policy.limits_s
        limit_s = limits.get(self._claimed.instance.stage, self._claimed.spec.limit_s)
        stopping_s: float | None = None  # since when the child knows of the stop
        while child.exitcode is None:
            if child.wait(0.2):
                self._take_message(child.pipe)
            now_s = time.monotonic()
            # This worker may look long after the child has ended in time.
            if limit_s is not None and now_s - self._start_s > limit_s and child.exitcode is None:
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
                send(child.pipe, Message(stop=self.stop_reason))
            if stopping_s is not None and now_s - stopping_s > self._grace_s:
                return

    @property
    def _grace_s(self) -> float:
        """Seconds that the child has to end after a stop: the configured ones, or those that it needs."""
        grace_s = self._claimed.order.settings.policy.grace_s
        return max(grace_s, STOP_FACTOR * self._heartbeats.progress.stop_s)

    def _take_message(self, pipe: Pipe) -> None:
        try:
            message = msgspec.json.decode(pipe.recv_bytes(), type=Message)
        except (EOFError, OSError, msgspec.DecodeError):
            time.sleep(0.02)  # the child is ending: the caller's loop sees its exit code
            return
        self._heartbeats.receive(message)
        if message.adapted:
            self.on_adapted(message.adapted)

    def take_last_messages(self, pipe: Pipe) -> None:
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
        if self._heartbeats.keepalive() and not self.stop_reason and self._fence.is_superseded():
            self.stop_reason = SUPERSEDED
