"""What Ray's errors mean, by their type and by the sentences of Ray 2.40 to 2.60 that name them. Pure.

A cause is never taken from a word that another cause's message may hold: that of a dead node lists "out of
memory" among what may have happened, and that of the memory monitor names the node.
"""

from __future__ import annotations

import re

from orchestrator.core.failure import Cause

_MEMORY = re.compile(
    r"(?:(?P<number>\d+) worker\(s\) were|Task was) killed due to the node running low on memory"
)
_PREEMPTED = re.compile(
    r"the actor's node was preempted:|\bDRAIN_NODE_REASON_PREEMPTION\b|forcibly preempted"
)
_NODE = re.compile(
    r"The actor died because its node has died|the actor's node was terminated"
    r"|^Job supervisor actor died|^(?:The )?[Nn]ode \S+ (?:has )?died"
)
_BY_TYPE = {
    "ObjectStoreFullError": Cause.STORAGE,
    "OutOfDiskError": Cause.STORAGE,
    "RuntimeEnvSetupError": Cause.BAD_NODE,
    "ActorUnschedulableError": Cause.UNKNOWN,
    "RayActorError": Cause.NODE_LOST,
    "NodeDiedError": Cause.NODE_LOST,
}


def of_error(types: tuple[str, ...], message: str, *, drained: bool = False) -> Cause:
    """Return what the loss of an actor counts as.

    Args:
        types: the names of the error's class and its bases, nearest first.
        message: of the error.
        drained: whether its node was about to go.
    """
    if found := _MEMORY.search(message):
        # of several at once at most one is at fault: the monitor ends as many as it takes
        return Cause.OOM_HOST if found["number"] in (None, "1") else Cause.PREEMPTED
    if drained or _PREEMPTED.search(message):
        return Cause.PREEMPTED
    return next((_BY_TYPE[name] for name in types if name in _BY_TYPE), Cause.UNKNOWN)


def of_job(message: str, error_type: str) -> Cause:
    """Return what the end of a job counts as that has no exit code: its supervisor was lost, or never was.

    Args:
        message: the job's, of the Jobs API.
        error_type: a name of Ray's `JobErrorType`; "" where the server has none.
    """
    if _MEMORY.search(message) or _PREEMPTED.search(message):
        return Cause.PREEMPTED  # a driver needs little memory: another is at fault
    if error_type == "JOB_SUPERVISOR_ACTOR_DIED" or _NODE.search(message):
        return Cause.NODE_LOST
    return Cause.UNKNOWN
