"""Why an attempt failed: the causes, and how one is told from what a dead child leaves behind."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from enum import StrEnum


class Cause(StrEnum):
    """Whose fault a failure is; each cause has its own retry budget in the policy."""

    CONFIG = "config"
    DATA = "data"
    CODE = "code"
    OOM_GPU = "oom_gpu"
    OOM_HOST = "oom_host"
    NAN = "nan"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    NODE_LOST = "node_lost"
    COMMUNICATION = "communication"
    STORAGE = "storage"
    CANCELLED = "cancelled"
    BAD_NODE = "bad_node"
    UNKNOWN = "unknown"


DETERMINISTIC = frozenset({Cause.CONFIG, Cause.DATA, Cause.CODE})
"""Causes that chance does not cure: never retried by themselves, left to `rerun`."""

_BY_TYPE = {
    "OutOfMemoryError": Cause.OOM_GPU,
    "MemoryError": Cause.OOM_HOST,
    "FloatingPointError": Cause.NAN,
    "TimeoutError": Cause.COMMUNICATION,
    "ConnectionError": Cause.COMMUNICATION,
    "DistBackendError": Cause.COMMUNICATION,
    "DistNetworkError": Cause.COMMUNICATION,
    "UnicodeDecodeError": Cause.DATA,
    "JSONDecodeError": Cause.DATA,
    "ImportError": Cause.CODE,
    "SyntaxError": Cause.CODE,
    "NameError": Cause.CODE,
    "AttributeError": Cause.CODE,
    "TypeError": Cause.CODE,
    "LookupError": Cause.CODE,
    "ArithmeticError": Cause.CODE,
    "AssertionError": Cause.CODE,
    "NotImplementedError": Cause.CODE,
    "ValueError": Cause.CODE,
    "UserError": Cause.CONFIG,
    "InfrastructureError": Cause.STORAGE,
    "OSError": Cause.STORAGE,
}

_BY_MESSAGE = (
    ("CUDA out of memory", Cause.OOM_GPU),
    ("NCCL", Cause.COMMUNICATION),
    ("Connection reset by peer", Cause.COMMUNICATION),
    ("can't allocate memory", Cause.OOM_HOST),
    ("not enough memory", Cause.OOM_HOST),
    ("No space left on device", Cause.STORAGE),
)


def cause_of_exception(type_names: Sequence[str], message: str) -> Cause:
    """Tells the cause of an exception.

    Args:
        type_names: the names of its class and its bases, nearest first.
        message: its text.

    A missing input file is `data`; any other refusal of the file system is `storage`.
    """
    for text, cause in _BY_MESSAGE:
        if text in message:
            return cause
    if "FileNotFoundError" in type_names or "IsADirectoryError" in type_names:
        return Cause.DATA
    for name in type_names:
        if name in _BY_TYPE:
            return _BY_TYPE[name]
    return Cause.UNKNOWN


def cause_of_exit(exit_code: int, *, oom_killed: bool) -> tuple[Cause, str]:
    """Tells the cause of a child that left no outcome, and says what happened.

    Args:
        exit_code: as `multiprocessing` gives it; negative for a signal.
        oom_killed: whether the kernel's OOM killer acted on this machine while the child ran.
    """
    if exit_code >= 0:
        return Cause.UNKNOWN, f"the stage's process exited with code {exit_code} without finishing"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    if name == "SIGKILL" and oom_killed:
        return Cause.OOM_HOST, "the stage's process was killed while the kernel was out of memory"
    return Cause.UNKNOWN, f"the stage's process was killed by {name}"
