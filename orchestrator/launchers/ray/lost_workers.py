"""The workers of a driver, and which are gone, so that their attempts are taken over without their leases.

The three cases differ in how long a worker may still live, and save a checkpoint:

- Its process has ended: it is gone at once.
- Its actor is gone: it may live without it. It is gone with its node, or after the grace time.
- An earlier start of the driver had started it: it is gone after the grace time of this start.

What the loss counts as follows from the type of Ray's error and from the sentences of Ray 2.40 to 2.60.
Single words prove nothing, so whole sentences are matched. For example, the message of a dead node lists "out
of memory" among what may have happened. The message of the memory monitor names the node.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from types import FrameType
from typing import NamedTuple, Protocol

from orchestrator.core.failure import Cause
from orchestrator.execution.liveness import Watcher
from orchestrator.jobs.records import NODES_LOST, REFUSED, LostSlot, LostWorker, Submission
from orchestrator.jobs.submissions import Submissions, gone_of
from orchestrator.launchers.ray.settings import NodeResources
from orchestrator.provenance import without_secrets

_MEMORY = re.compile(
    r"(?:(?P<number>\d+) worker\(s\) were|Task was) killed due to the node running low on memory"
)
"""The memory monitor ended one or more workers."""

_PREEMPTED = re.compile(
    r"the actor's node was preempted:|\bDRAIN_NODE_REASON_PREEMPTION\b|forcibly preempted"
)
"""A node was taken away on purpose."""

_NODE = re.compile(
    r"The actor died because its node has died|the actor's node was terminated"
    r"|^Job supervisor actor died|^(?:The )?[Nn]ode \S+ (?:has )?died"
)
"""A node died."""

_BY_TYPE = {
    "ObjectStoreFullError": Cause.STORAGE,
    "OutOfDiskError": Cause.STORAGE,
    "RuntimeEnvSetupError": Cause.BAD_NODE,
    "ActorUnschedulableError": Cause.UNKNOWN,
    "RayActorError": Cause.NODE_LOST,
    "NodeDiedError": Cause.NODE_LOST,
}
"""What an error counts as by its class, if its message decides nothing."""


def cause_of_error(types: tuple[str, ...], message: str, *, drained: bool = False) -> Cause:
    """Return what the loss of an actor counts as.

    Args:
        types: names of the error's class and its bases, nearest first.
        message: of the error.
        drained: whether its node was about to go.
    """
    if found := _MEMORY.search(message):
        # the monitor ends as many workers as it takes; of several, at most one is at fault
        return Cause.OOM_HOST if found["number"] in (None, "1") else Cause.PREEMPTED
    if drained or _PREEMPTED.search(message):
        return Cause.PREEMPTED
    return next((_BY_TYPE[name] for name in types if name in _BY_TYPE), Cause.UNKNOWN)


def is_of_node(types: tuple[str, ...], message: str) -> bool:
    """Return whether an actor was lost with its node, or cannot be reached: its worker may be in order.

    Args:
        types: names of the error's class and its bases, nearest first.
        message: of the error.
    """
    return "ActorUnavailableError" in types or _NODE.search(message) is not None


def cause_of_job(message: str, error_type: str) -> Cause:
    """Return what the end of a job without an exit code counts as: its supervisor was lost, or never started.

    Args:
        message: of the job, from the Jobs API.
        error_type: a name of Ray's `JobErrorType`; "" if the server has none.
    """
    if _MEMORY.search(message) or _PREEMPTED.search(message):
        return Cause.PREEMPTED  # a driver needs little memory, so another process is at fault
    if error_type == "JOB_SUPERVISOR_ACTOR_DIED" or _NODE.search(message):
        return Cause.NODE_LOST
    return Cause.UNKNOWN


class Ended(NamedTuple):
    """A worker that has ended or was lost.

    Attributes:
        slot: its number.
        node: the id of its node, "" if it never had one.
        address: of the node.
        code: exit code of the process; None if the actor or its node was lost.
        cause: what an attempt that it held counts as.
    """

    slot: int
    node: str
    address: str
    code: int | None
    output: str  # the end of its output, or the error by which it was lost
    was_stopped: bool = False  # whether this driver had stopped it
    cause: Cause = Cause.NODE_LOST
    is_of_node: bool = False  # whether Ray's error states that its node died, or that it cannot be reached

    def last_words(self) -> tuple[str, int]:
        """Return its last message and the number of its claims; without JSON, its last line and 0."""
        lines = self.output.strip().splitlines() or [""]
        with contextlib.suppress(ValueError, TypeError, KeyError):
            summary = json.loads(lines[-1])
            return str(summary["said"]), int(summary["claims"])
        return lines[-1][:300], 0


class Workers(Protocol):
    """The workers of one driver, each in a place that the cluster gives it.

    Attributes:
        pending: slots of the workers that wait for resources.
        running: slots of the workers that have a node, each with the node's address.
    """

    @property
    def pending(self) -> list[int]: ...  # noqa: D102

    @property
    def running(self) -> dict[int, str]: ...  # noqa: D102

    def bar(self, hosts: Collection[str]) -> bool:
        """Start no worker on these machines from now on; return whether that is news."""

    def start(
        self,
        slot: int,
        argv: list[str],
        environment: Mapping[str, str],
        folder: str,
        *,
        avoid: Collection[str],
    ) -> None:
        """Request a worker, which starts once there are resources for it."""

    def drop(self, slot: int) -> None:
        """End a worker at once, whether it waits or runs."""

    def stop(self) -> None:
        """Stop all workers: they save a checkpoint and end. Those that wait are dropped."""

    def wait(self, timeout_s: float) -> Iterator[Ended]:
        """Wait until something happens, and yield the workers that have ended."""

    def leave_draining(self) -> list[str]:
        """Stop the workers on nodes that are about to go, and return the addresses of these nodes."""

    def monitor(self) -> dict[str, str]:
        """Return the cluster's settings of the memory monitor, as Ray's variables for workers."""

    def lives(self, node: str) -> bool:
        """Return whether a node is alive."""

    def nodes(self) -> dict[str, NodeResources]:
        """Return the live nodes, by a readable name."""

    def close(self) -> None:
        """Leave the cluster. Workers that still run end."""


class _Doubt(NamedTuple):
    """A worker whose actor is gone, and which may live until a time."""

    slot: int
    node: str
    cause: Cause
    why: str
    until_s: float


class Losses:
    """The workers that one start of a driver has found to be gone; it shares them with its watcher.

    Args:
        submissions: of the sweep.
        submission: the driver's.
        job: its id.
        restart: how often the driver was restarted.
        watcher: judges the attempts of workers.
        grace_s: how long a worker may take to save a checkpoint after its actor or driver is gone.

    Attributes:
        known: the workers that are gone, for the driver's status record.
    """

    def __init__(
        self,
        submissions: Submissions,
        submission: Submission,
        job: str,
        restart: int,
        *,
        watcher: Watcher,
        grace_s: float,
    ) -> None:
        self._submissions = submissions
        self._cluster = submission.cluster
        self._job = job
        self._restart = restart
        self._watcher = watcher
        self._grace_s = grace_s
        self._doubts: list[_Doubt] = []
        # earlier starts cannot be observed any more, so their workers get the whole grace time from now on
        self._former_until_s: float | None = time.monotonic() + grace_s
        before = submissions.driver(submission.number)
        self.known: list[LostSlot] = list(before.lost) if before else []
        for lost in self.known:
            self._learn(lost)
        # jobs of other submissions may have held stages of the same cells
        for gone in gone_of(submissions.read(), grace_s=grace_s):
            watcher.learn(gone)

    def add(self, slot: int | None, cause: Cause, why: str, *, restart: int | None = None) -> None:
        """Record that a worker is gone; without a slot, all workers of one start of the driver."""
        restart = self._restart if restart is None else restart
        lost = LostSlot(slot=slot, restart=restart, cause=cause, why=without_secrets(why)[:300])
        self.known.append(lost)
        self._learn(lost)

    def doubt(self, slot: int, node: str, cause: Cause, why: str) -> None:
        """Record that the actor of a worker is gone; the worker itself may still save a checkpoint."""
        self._doubts.append(_Doubt(slot, node, cause, why, time.monotonic() + self._grace_s))

    def settle(self, busy: Collection[int], lives: Callable[[str], bool]) -> None:
        """Decide which doubtful workers are gone by now.

        Args:
            busy: the slots whose attempts have no end.
            lives: whether a node, by its id, is alive.
        """
        now_s = time.monotonic()
        open_doubts = []
        for doubt in self._doubts:
            if doubt.slot not in busy:
                # its attempt has an end, so nothing is left to take over
                continue
            if not lives(doubt.node):
                self.add(doubt.slot, doubt.cause, f"the node of worker {doubt.slot} is gone: {doubt.why}")
            # the node lives, so the worker may have saved a checkpoint; by now its grace time is over
            elif now_s >= doubt.until_s:
                self.add(doubt.slot, doubt.cause, doubt.why)
            else:
                open_doubts.append(doubt)
        self._doubts = open_doubts
        if self._former_until_s is not None and now_s >= self._former_until_s:
            self._former_until_s = None
            self._forget_former()

    def _forget_former(self) -> None:
        """Record all workers of earlier starts as gone; they had the grace time to end."""
        for gone in gone_of(self._submissions.read()):
            self._watcher.learn(gone)
        if self._restart:
            # one record is enough: it matches this restart and all earlier ones
            why = "the driver that had started it was killed"
            self.add(None, Cause.NODE_LOST, why, restart=self._restart - 1)

    def _learn(self, lost: LostSlot) -> None:
        """Pass a loss on to the watcher."""
        self._watcher.learn(
            LostWorker(
                cluster=self._cluster,
                job=self._job,
                slot=lost.slot,
                restart_count=lost.restart,
                cause=lost.cause,
                evidence=lost.why,
            )
        )


MARGIN_S = 30.0
"""Time beyond `policy.grace_s` in which stopped workers must end."""


class Stop:
    """Whether a driver has to stop, and until when its workers may save checkpoints.

    Args:
        grace_s: how long a worker may take to save and end, in seconds.
        parent: process id of the driver's parent when the driver began.

    Attributes:
        is_requested: whether it has to stop.
    """

    def __init__(self, grace_s: float, parent: int) -> None:
        self.is_requested = False
        self._grace_s = grace_s
        self._parent = parent
        self._end_s = 0.0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.is_requested = True

    def check_parent(self) -> None:
        """Request a stop if the parent has ended: Ray calls the job over, so another may run."""
        if os.getppid() != self._parent:
            self.is_requested = True

    def is_overdue(self) -> bool:
        """Return whether the workers have had their time, which begins with the first call."""
        now_s = time.monotonic()
        self._end_s = self._end_s or now_s + self._grace_s + MARGIN_S
        return now_s > self._end_s


MAX_PAUSE_S = 60.0
"""Longest pause after failures."""

MAX_FRUITLESS = 4
"""Workers in a row that may fail without a claim, before the driver gives up if none of its workers works."""

MAX_LOST = 16
"""Workers in a row that may go with their nodes without a claim. Ray needs up to a minute to notice that one
is gone, and starts workers on it until then."""

MAX_BAD = 2
"""Such failures on one node, if they outnumber its good ends, after which workers avoid it."""


class Failures:
    """What the ends of workers mean for the next ones: when and where to start them, and whether at all.

    Attributes:
        claimed: slots of the workers that have claimed a stage.
        not_before_s: the monotonic time before which no further worker is started.
        given_up: why no further worker is started at all, "" if more may be.
        code: exit code of a driver that gives up.
    """

    def __init__(self) -> None:
        self.claimed: set[int] = set()
        self.not_before_s = 0.0
        self.given_up, self.code = "", REFUSED
        self._fruitless = 0
        self._num_lost = 0
        self._good: Counter[str] = Counter()
        self._bad: Counter[str] = Counter()

    @property
    def avoided(self) -> list[str]:
        """The nodes on which workers kept failing."""
        return [
            node
            for node, number in self._bad.items()
            if node and number >= MAX_BAD and number > self._good[node]
        ]

    def end_well(self, node: str) -> None:
        """Count a worker that ended as it should."""
        self._fruitless = self._num_lost = 0
        self._good[node] += 1

    def end_badly(self, slot: int, node: str, why: str, *, gives_up: bool, is_of_node: bool = False) -> None:
        """Count a worker that failed.

        Args:
            slot: its number.
            node: the id of its node, "" if it never had one.
            why: how it ended.
            gives_up: whether the failure may be one too many; not while others work.
            is_of_node: whether its node is gone or out of reach, which is no failure of the worker.
        """
        if slot in self.claimed:
            self._fruitless = self._num_lost = 0
            return
        self._bad[node] += not is_of_node
        self._num_lost += is_of_node
        self._fruitless += 1
        # exponential backoff: a broken environment fails every worker at once
        self.not_before_s = time.monotonic() + min(MAX_PAUSE_S, 2.0**self._fruitless)
        is_broken = self._fruitless - self._num_lost >= MAX_FRUITLESS
        if gives_up and (is_broken or self._num_lost >= MAX_LOST):
            self.code = REFUSED if is_broken else NODES_LOST
            self.given_up = f"{self._fruitless} workers in a row claimed nothing; the last: {why}"
