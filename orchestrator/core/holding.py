"""What is held back in a sweep, by rules that look at more than one stage; which failures look alike. Pure.

Whether one stage may start follows from its own records and its inputs (`orchestrator.core.plan`). The rules
here look at all stages of the sweep. Workers, drivers, submissions, `status` and the simulation call
`holds_of` with what they have read, so all of them decide alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from orchestrator.core.evidence import NO_HOLDS, Evidence, Hold, Holds, Spending, budget_hold
from orchestrator.core.plan import RequestSummary
from orchestrator.core.records import End, Request
from orchestrator.core.settings import Policy, SpendingLimit
from orchestrator.core.state import StageStatus, State
from orchestrator.core.sweep import ComposedSweep
from orchestrator.errors import UserError, counted

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


class SweepRecords(NamedTuple):
    """What the rules may look at. What is not needed is not read: each read may be a request to a bucket.

    Attributes:
        sweep: the sealed or composed content.
        evidence: returns the evidence about a stage by digest; repeated calls return the same.
        status: returns a stage's own state by digest, which follows from its evidence.
        unfinished: digests of stages of the sweep that were attempted and have no product.
        requests: the combined effect of the users' requests.
        policy: of the launch that is decided about.
        codes: id of a cell to the digest of the code that would run it.
        spending: what the sweep has spent; None if it has no budget, or if the reader checks it itself.
    """

    sweep: ComposedSweep
    evidence: Callable[[str], Evidence]
    status: Callable[[str], StageStatus]
    unfinished: Iterable[str]
    requests: RequestSummary
    policy: Policy
    codes: Mapping[str, str]
    spending: Spending | None = None


def within_budget(records: SweepRecords) -> Holds:
    """Hold every stage when the sweep's budget does not suffice for one more to reach a checkpoint."""
    spent = records.spending
    if spent is None:
        return NO_HOLDS
    limit, name = records.policy.budget, records.sweep.name
    hold = budget_hold(limit, spent, num_gpus=spent.worker_gpus, now=spent.at, sweep=name)
    return NO_HOLDS if hold is None else Holds(stages=dict.fromkeys(records.sweep.stages, hold))


class Forecast(NamedTuple):
    """The GPU time of a launch, beside what the sweep has spent, in seconds.

    Attributes:
        gpu_seconds: spent so far.
        by_cell: id of each cell that is not done to what its unfinished stages add. A shared stage is the
            first cell's. Empty where workers hold no GPUs.
    """

    gpu_seconds: float
    by_cell: dict[str, float]

    @property
    def total(self) -> float:
        """What will have been spent when all is done."""
        return self.gpu_seconds + sum(self.by_cell.values())


def refuse_over_budget(limit: SpendingLimit, found: Forecast, sweep: str, *, now: float) -> None:
    """Raise if a launch would cost more than its budget allows.

    Args:
        limit: the budget.
        found: what it would cost.
        sweep: the sweep's name.
        now: the time on this machine's clock, in seconds since 1970.

    Raises:
        UserError: it costs more, or the budget has ended.
    """
    if limit.has_ended(now):
        raise UserError(f"policy.budget.until={limit.until} is past", fix="policy.budget.until=null")
    if limit.gpu_hours is None or not found.by_cell:
        return
    # The cost of stages without an estimate is not known before one has run: then the rest is zero.
    if found.total > 3600 * limit.gpu_hours or found.gpu_seconds >= 3600 * limit.gpu_hours:
        spent, rest = found.gpu_seconds / 3600, (found.total - found.gpu_seconds) / 3600
        raise UserError(
            f"the forecast is {found.total / 3600:.4g} GPU-hours, over the budget of {limit.gpu_hours:.4g}",
            where=f"{spent:.4g} are spent, {rest:.4g} are needed for {counted(len(found.by_cell), 'cell')}",
            fix=f"sweep plan {sweep} --budget names cells to drop (--only), or raise the budget",
        )


Rule = Callable[[SweepRecords], Holds]
"""One rule. Its result must follow from the records alone."""

RULES: tuple[Rule, ...] = (within_budget,)


def holds_of(records: SweepRecords) -> Holds:
    """Return what all rules hold back.

    Args:
        records: what is known about the sweep.
    """
    return merged(*(rule(records) for rule in RULES))


def merged(*found: Holds) -> Holds:
    """Return all holds together. Of two holds of a cell or stage, a final one counts, else the first."""
    cells: dict[str, Hold] = {}
    stages: dict[str, Hold] = {}
    for holds in found:
        for into, more in ((cells, holds.cells), (stages, holds.stages)):
            for key, hold in more.items():
                if key not in into or (hold.is_final and not into[key].is_final):
                    into[key] = hold
    return Holds(cells, stages)


def code_of(request: Request) -> str:
    """Return the digest of the code that the workers of a request run, "" if it was not recorded."""
    return str(request.provenance.get("code", ""))


def codes_of(requests: Iterable[Request], asked: Mapping[str, int]) -> dict[str, str]:
    """Return the digest of the code that would run each cell: that of the last request that named it.

    Args:
        requests: of the sweep.
        asked: id of a cell to the number of that request.
    """
    codes = {request.number: code_of(request) for request in requests}
    return {cell: codes.get(number, "") for cell, number in asked.items()}


def failed_end(status: StageStatus, evidence: Evidence) -> End | None:
    """Return how the last attempt of an unfinished stage failed; None if it did not fail.

    Args:
        status: the stage's own state.
        evidence: of the stage.
    """
    is_over = status.state not in (State.DONE, State.RUNNING, State.UNKNOWN)
    end = evidence.attempts[-1].end if is_over and evidence.attempts else None
    return end if end is not None and end.outcome == "failed" else None


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
