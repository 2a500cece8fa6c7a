"""Causes of failures, and which failures look alike. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.core.tracebacks import Line, exceptions_in, marked

if TYPE_CHECKING:  # the records import the causes
    from orchestrator.core.records import End
    from orchestrator.core.sweep import Cell


class Cause(StrEnum):
    """The kind of a failure. Each cause has its own retry budget in the policy."""

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
"""Causes that would probably recur. A launch gives them no fresh retry budget; `sweep rerun` does."""

OF_MACHINES = frozenset(
    {Cause.OOM_GPU, Cause.OOM_HOST, Cause.NODE_LOST, Cause.COMMUNICATION, Cause.STORAGE, Cause.BAD_NODE}
)
"""Causes for which a user is not to blame."""

PASSING = frozenset(
    {Cause.PREEMPTED, Cause.NODE_LOST, Cause.COMMUNICATION, Cause.STORAGE, Cause.BAD_NODE, Cause.UNKNOWN}
)
"""Causes that come from outside, or that nobody knows. They end no stage that advances."""


def cause_named(name: object) -> Cause:
    """Return the cause of this name; `unknown` if there is none."""
    return Cause(name) if isinstance(name, str) and name in set(Cause) else Cause.UNKNOWN


NUM_FRAMES = 3
"""Innermost frames of the user's own code that count; our choice."""
FINGERPRINT_LENGTH = 10
"""Hexadecimal digits of a fingerprint: 40 bits, so that a thousand differ with near certainty."""

_QUOTED = re.compile(r"(?<!\w)(['\"])([^'\"]*)\1")
_PATH = re.compile(r"(?<![\w.~+@-])(?:[A-Za-z]:)?[\w.~+@-]*[/\\][\w./\\~+@=,-]*")
_IDS = re.compile(
    r"\b(?:0x[0-9a-fA-F]+|(?=[0-9a-f]*\d)[0-9a-f]{8,}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\b"
)
_NUMBERS = re.compile(r"[-+]?\b\d[\d_,.]*(?:[eE][-+]?\d+)?(?:\s?[KMGT]i?B\b)?")


class Fingerprint(NamedTuple):
    """What failures that look alike have in common.

    Attributes:
        digest: the first hexadecimal digits of a SHA-256 over the other fields.
        stage, cause: that failed, and of the failure.
        exception: class name; "" if no exception was raised.
        message: without numbers, ids and paths.
        frames: the innermost frames of the user's own code, as ``file:function``, the innermost last.
    """

    digest: str
    stage: str
    cause: str
    exception: str
    message: str
    frames: tuple[str, ...]


def fingerprint(stage: str, end: End) -> Fingerprint:
    """Return the fingerprint of a failed attempt, equal for failures that look alike.

    Ten cells that fail on ten different rows of one broken file are one problem. Their messages differ in
    numbers and paths, so these are taken out::

        ValueError: row 17 of /data/en.jsonl has no answer  ->  ValueError: row # of <path> has no answer
    """
    cause = str(end.cause or "unknown")
    message = without_particulars(end.message.removeprefix(f"{end.exception}: "))
    frames = own_frames(end.log_tail)
    parts = "\0".join((stage, cause, end.exception, message, *frames))
    digest = hashlib.sha256(parts.encode()).hexdigest()[:FINGERPRINT_LENGTH]
    return Fingerprint(digest, stage, cause, end.exception, message, frames)


def without_particulars(message: str) -> str:
    """Return a message with paths, ids and numbers replaced by signs."""
    # A path in quotes may hold spaces.
    found = _QUOTED.sub(lambda quoted: "<path>" if re.search(r"[/\\]", quoted[2]) else quoted[0], message)
    found = _IDS.sub("<id>", _PATH.sub("<path>", found))
    return " ".join(_NUMBERS.sub("#", found).split())


def own_frames(log: str) -> tuple[str, ...]:
    """Return the innermost frames of the last traceback of a log that are not of installed packages.

    Line numbers are left out: an edit above a function moves them. If all are of packages, those count.
    """
    lines = [*map(marked, log.splitlines()), Line("", "Cut")]  # ends a traceback that the log's end cuts
    shown = [each.raised for each in exceptions_in(lines) if each.side != "ignored"]
    frames = [frame for frame in shown[-1].first.frames if frame.function] if shown else []
    own = [frame for frame in frames if not frame.module] or frames
    names = (each.file.replace("\\", "/").rpartition("/")[2] for each in own)
    return tuple(f"{name}:{each.function}" for name, each in zip(names, own, strict=True))[-NUM_FRAMES:]


class Alike(NamedTuple):
    """Stage instances that failed alike under the same code.

    Attributes:
        failure: their common fingerprint.
        code: digest of the code.
        ends: digest of a stage to the end of its attempt.
        axes: the axes on which all cells of these stages agree, and others differ, with the value.
        cell: id of a cell of the first one.
    """

    failure: Fingerprint
    code: str
    ends: Mapping[str, End]
    axes: Mapping[str, str]
    cell: str

    def box(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that agree with the failed ones on every axis on which these agree."""
        for name, value in self.axes.items():
            cells = [cell for cell in cells if cell.axes.get(name) == value]
        return list(cells)
