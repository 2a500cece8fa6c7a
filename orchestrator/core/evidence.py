"""The evidence about a stage, what its attempts count for, and which failures look alike. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from orchestrator.core.failure import DETERMINISTIC, Cause
from orchestrator.core.records import Claim, Done, End, Heartbeat, Retired, StartRecord
from orchestrator.core.sweep import StageInstance

NOT_KEPT = "not_kept"
"""Reason of a release: inputs were retired, and the earlier version's product was not enough without them."""


FAILED = frozenset({"failed", "unknown"})
"""Outcomes that count against a retry budget. ``unknown`` stands for an outcome of a later version."""

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
_FRAME = re.compile(r'\s*File "(?P<file>[^"]+)", line \d+, in (?P<name>.+)')
_FOREIGN = re.compile(r"(^|[/\\])(site-packages|dist-packages|lib[/\\]python\d)|^<")


class Liveness(StrEnum):
    """What an observer concludes about the owner of an attempt without an `end` record."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


class Attempt(NamedTuple):
    """The records of one attempt. A record that is absent or unreadable is None.

    Attributes:
        number: of the attempt, from 1.
        claim: who owns it.
        start: what it started from.
        heartbeat: the latest one.
        end: how it ended.
        problem: which record is unreadable and why, "" if none is.
    """

    number: int
    claim: Claim | None = None
    start: StartRecord | None = None
    heartbeat: Heartbeat | None = None
    end: End | None = None
    problem: str = ""


class Former(NamedTuple):
    """The product of an earlier version of a stage, made from the same inputs.

    Attributes:
        instance: the stage instance under the earlier version.
        done: the record of the product; None if the product does not count.
        how: what the stage does with the product, for people.
        problem: why the product cannot be used, "" if it can.
    """

    instance: StageInstance
    done: Done | None
    how: str
    problem: str = ""


class Evidence(NamedTuple):
    """The store's records about one stage instance.

    Attributes:
        attempts: by number, from 1.
        done: the product that counts, if there is one.
        generation: of `done`, or else of the product that the next attempt makes.
        problem: damage or an unreadable record, in words for the user.
        damaged: whether `generation` is that of a damaged product, to be voided before the next attempt.
        liveness: of the owner of the highest attempt, if that attempt has no `end`.
        liveness_reason: the observation behind `liveness`.
        liveness_cause: the cause that counts for the attempt if its owner is gone.
        retired: the product's files that were deleted on purpose.
        unreadable: why the records cannot be read, such as a folder without permission. It outranks all else.
        is_passing: whether `unreadable` may pass by itself in a moment.
        former: the product that an earlier version of an unfinished stage left; None if there is none.
    """

    attempts: tuple[Attempt, ...] = ()
    done: Done | None = None
    generation: int = 1
    problem: str = ""
    damaged: bool = False
    liveness: Liveness = Liveness.UNKNOWN
    liveness_reason: str = ""
    liveness_cause: Cause = Cause.NODE_LOST
    retired: tuple[Retired, ...] = ()
    unreadable: str = ""
    is_passing: bool = False
    former: Former | None = None


class Budget(NamedTuple):
    """How often each cause may be retried, and which attempts count.

    Attributes:
        retries: cause to number of retries; a cause that is not listed has none.
        after: attempts up to this number count for no cause, because a rerun or discard came after them.
        after_chance: attempts up to this number count only for deterministic causes, because a launch came
            after them.
    """

    retries: Mapping[str, int]
    after: int = 0
    after_chance: int = 0


def causes(evidence: Evidence) -> Iterator[tuple[int, Cause]]:
    """Yield (attempt, cause) for each attempt that failed or was lost, or whose product was lost.

    Each attempt's cause comes from the first of these that exists: its `end` record, its successor's
    `supersedes`, or, for the last attempt, the finding that its owner is gone.

    An attempt also counts if its owner was alive after all and gave way to its successor. If it did not
    count, two workers that consider each other dead could take over from each other without end:

        attempt 1  (worker A)   released: superseded      counts as node_lost, from attempt 2's claim
        attempt 2  (worker B)   released: superseded      counts as node_lost, from attempt 3's claim
        ...                     until the budget of node_lost is spent, and the stage has failed
    """
    superseded = {
        later.claim.supersedes.attempt: later.claim.supersedes.cause
        for later in evidence.attempts
        if later.claim is not None and later.claim.supersedes is not None
    }
    for attempt in evidence.attempts:
        if attempt.end is not None:
            if attempt.end.outcome in FAILED:
                yield attempt.number, attempt.end.cause or Cause.UNKNOWN
            elif attempt.end.outcome == "succeeded" and evidence.done is None:
                yield attempt.number, Cause.STORAGE  # finished, but the product no longer exists
            elif attempt.end.why == "superseded" and attempt.number in superseded:
                yield attempt.number, superseded[attempt.number]
        elif attempt.number in superseded:
            yield attempt.number, superseded[attempt.number]
        elif attempt.number == evidence.attempts[-1].number and evidence.liveness is Liveness.GONE:
            yield attempt.number, evidence.liveness_cause


def spent(evidence: Evidence, budget: Budget) -> tuple[Cause, int] | None:
    """Return the cause whose budget is spent and the number of its attempts, or None.

    Args:
        evidence: of the stage.
        budget: the retries, and the attempts that count.
    """
    counts: dict[Cause, int] = {}
    for number, cause in causes(evidence):
        boundary = budget.after if cause in DETERMINISTIC else max(budget.after, budget.after_chance)
        if number > boundary and cause is not Cause.CANCELLED:  # a cancelled job is no fault of the stage
            counts[cause] = counts.get(cause, 0) + 1
    for cause, count in counts.items():
        if count > budget.retries.get(cause, 0):
            return cause, count
    return None


class Hold(NamedTuple):
    """A reason not to start a stage now, although its records allow it.

    Attributes:
        reason: one line, for people. It names the command that ends a final hold.
        is_final: whether the hold stays until somebody acts. The stage is then `blocked`; else it waits.
    """

    reason: str
    is_final: bool = True


class Holds(NamedTuple):
    """What is held back in a sweep, by rules that look at more than one stage.

    A held cell starts none of its stages; another cell that shares one of them may. A held stage is started
    for no cell. What is done or runs already is left as it is.

    Attributes:
        cells: id of a cell to its hold.
        stages: digest of a stage to its hold.
    """

    cells: Mapping[str, Hold] = {}
    stages: Mapping[str, Hold] = {}

    def of(self, cell: str, digest: str) -> Hold | None:
        """Return the hold of a stage on behalf of a cell, a final one before others; None if there is none.

        Args:
            cell: its id.
            digest: of the stage.
        """
        found = [hold for hold in (self.cells.get(cell), self.stages.get(digest)) if hold is not None]
        return min(found, key=lambda hold: not hold.is_final, default=None)


NO_HOLDS = Holds()


class Fingerprint(NamedTuple):
    """What failures that look alike have in common.

    Attributes:
        digest: the first hexadecimal digits of a SHA-256 over the other fields.
        stage: that failed.
        cause: of the failure.
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
    numbers and paths, so these are taken out. The form is ours::

        ValueError: row 17 of /data/en.jsonl has no answer  ->  ValueError: row # of <path> has no answer
        ValueError: row 93 of /data/de.jsonl has no answer  ->  the same

    Args:
        stage: name of the stage in the sweep file.
        end: record of the attempt's end.
    """
    cause = str(end.cause or "unknown")
    message, frames = (
        without_particulars(end.message.removeprefix(f"{end.exception}: ")),
        own_frames(end.log_tail),
    )
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

    Line numbers are left out: an edit above a function moves them. If all frames are of packages, the
    innermost of those are returned.
    """
    frames: list[tuple[str, str]] = []
    is_inside = False
    for line in log.splitlines():
        if "Traceback (most recent call last):" in line:
            frames, is_inside = [], True
        elif is_inside and (match := _FRAME.search(line)):
            frames.append((match["file"], match["name"].strip()))
    own = [frame for frame in frames if not _FOREIGN.search(frame[0])] or frames
    return tuple(
        f"{file.replace(chr(92), '/').rpartition('/')[2]}:{name}" for file, name in own[-NUM_FRAMES:]
    )
