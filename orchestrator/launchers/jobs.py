"""What the jobs of all schedulers have in common: request, resources, jobs that are over, and exit codes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.core.failure import Cause
from orchestrator.core.records import Request
from orchestrator.core.settings import RunSettings
from orchestrator.errors import InfrastructureError
from orchestrator.execution.assignment import LostWorker
from orchestrator.execution.loop import BROKEN_NODE, NO_MEMORY, OTHER_CODE, REFUSED, RELEASED, TOO_SHORT
from orchestrator.jobs.judgement import SubmissionState, ending
from orchestrator.provenance import age_s
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger

BEAT_S = 20.0
"""A driver writes what it sees at least so often."""

SETUP_FAILED = 78
"""Exit code of a job of which a line of `cluster.setup` failed: EX_CONFIG of sysexits.h."""

EXITS: Mapping[int, tuple[Cause | None, str]] = {
    0: (None, "its worker ended as it should"),
    RELEASED: (None, "its worker gave its work back"),
    TOO_SHORT: (Cause.TIMEOUT, "no checkpoint was finished within its time limit: ask for more hours"),
    NO_MEMORY: (Cause.OOM_HOST, "a stage ran out of host memory: its next job asks for twice as much"),
    REFUSED: (Cause.BAD_NODE, "its worker refused to work"),
    BROKEN_NODE: (Cause.BAD_NODE, "its node did not pass the check"),
    OTHER_CODE: (Cause.CODE, "its worker found other code than that at launch"),
    3: (Cause.STORAGE, "its worker could not use the store"),
    SETUP_FAILED: (Cause.CONFIG, "a line of cluster.setup failed"),
}
"""Exit codes of a worker, which a job passes on: what they count as, and what they mean."""


def cause_of_code(code: int) -> Cause | None:
    """Returns what a worker's exit code counts as."""
    return EXITS[code][0] if code in EXITS else Cause.UNKNOWN


def meaning_of_code(code: int) -> str:
    """Says what an exit code means where that tells more than a worker's last line, "" elsewhere."""
    return EXITS[code][1] if code in (TOO_SHORT, NO_MEMORY) else ""


def request_of(ledger: Ledger, sweep: str, number: int) -> Request:
    """Reads the request that a submission was made for.

    Raises:
        InfrastructureError: it cannot be read.
    """
    request, problem = ledger.read(layout.request(sweep, number), Request)
    if request is None:
        raise InfrastructureError(
            f"request {number} of {sweep} cannot be read: {problem or 'it is not there'}"
        )
    return request


def settings_of(request: Request) -> RunSettings:
    """Returns the settings that a launch or rerun was asked with.

    Raises:
        InfrastructureError: it is neither.
    """
    if request.settings is None:
        raise InfrastructureError(f"request {request.number} is a {request.verb}: it starts nothing")
    return request.settings


def gone_of(filed: Sequence[SubmissionState], *, grace_s: float = 0.0) -> Iterator[LostWorker]:
    """Yields the jobs, and the workers of drivers, that are known to be over and did not end well.

    Args:
        filed: all submissions.
        grace_s: how long workers may still save a checkpoint after their job was found over.
    """
    for each in filed:
        if each.accepted is None:
            continue
        cluster, job = each.submission.cluster, each.accepted.job
        for index, over in each.over.items():
            if over.cause is not None and age_s(each.closed_at.get(index, "")) >= grace_s:
                yield LostWorker(
                    cluster=cluster,
                    job=job,
                    array_index=index,
                    restart_count=over.restarts,
                    cause=over.cause,
                    evidence=ending(f"{job}_{index}", over),
                )
        for lost in each.driver.lost if each.driver else ():
            yield LostWorker(
                cluster=cluster,
                job=job,
                slot=lost.slot,
                restart_count=lost.restart,
                cause=lost.cause,
                evidence=lost.why,
            )


def stepped(amount: float) -> float:
    """Returns the next of 1, 1.5, 2, 3, 4, 6, 8, ...: so that like cells ask for the same, in one array."""
    power = 2.0 ** max(0, math.ceil(math.log2(amount)))
    return 0.75 * power if amount <= 0.75 * power and power > 1 else power
