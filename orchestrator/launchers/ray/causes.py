"""What Ray's errors count as, by their type and by the sentences of Ray 2.40 to 2.60. Pure.

Single words prove nothing, so whole sentences are matched. For example, the message of a dead node lists "out
of memory" among what may have happened. The message of the memory monitor names the node.
"""

from __future__ import annotations

import re

from orchestrator.core.failure import Cause

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


def of_error(types: tuple[str, ...], message: str, *, drained: bool = False) -> Cause:
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


def of_job(message: str, error_type: str) -> Cause:
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
