"""What jobs of all schedulers have in common: requests, resource steps, lost workers and exit codes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.core.failure import Cause
from orchestrator.core.records import Request
from orchestrator.core.settings import RunSettings
from orchestrator.errors import InfrastructureError
from orchestrator.execution.assignment import (
    BROKEN_NODE,
    NO_MEMORY,
    OTHER_CODE,
    REFUSED,
    RELEASED,
    TOO_SHORT,
    LostWorker,
)
from orchestrator.jobs.judgement import SubmissionState, ending
from orchestrator.provenance import age_s
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger

BEAT_S = 20.0
"""Longest interval between two status records of a driver, in seconds."""

SETUP_FAILED = 78
"""Exit code of a job in which a line of `cluster.setup` failed: EX_CONFIG of sysexits.h."""

EXITS: Mapping[int, tuple[Cause | None, str]] = {
    0: (None, "its worker ended as it should"),
    RELEASED: (None, "its worker gave its work back"),
    TOO_SHORT: (Cause.TIMEOUT, "no checkpoint was finished within its time limit: ask for more hours"),
    NO_MEMORY: (Cause.OOM_HOST, "a stage ran out of host memory: its next job asks for twice as much"),
    REFUSED: (Cause.BAD_NODE, "its worker refused to work"),
    BROKEN_NODE: (Cause.BAD_NODE, "its node did not pass the check"),
    OTHER_CODE: (Cause.CODE, "its worker found other code than that at launch"),
    # the exit code of InfrastructureError, which a worker raises when the store does not answer
    3: (Cause.STORAGE, "its worker could not use the store"),
    SETUP_FAILED: (Cause.CONFIG, "a line of cluster.setup failed"),
}
"""Exit codes of a worker, which its job passes on: the cause that each counts as, and its meaning."""


def cause_of_code(code: int) -> Cause | None:
    """Return the cause that a worker's exit code counts as; None for a good end."""
    return EXITS[code][0] if code in EXITS else Cause.UNKNOWN


def meaning_of_code(code: int) -> str:
    """Return the meaning of an exit code where it explains more than the worker's last line, else ""."""
    return EXITS[code][1] if code in (TOO_SHORT, NO_MEMORY) else ""


def request_of(ledger: Ledger, sweep: str, number: int) -> Request:
    """Read the request that a submission was made for.

    Raises:
        InfrastructureError: the request cannot be read.
    """
    request, problem = ledger.read(layout.request(sweep, number), Request)
    if request is None:
        raise InfrastructureError(
            f"request {number} of {sweep} cannot be read: {problem or 'it is not there'}"
        )
    return request


def settings_of(request: Request) -> RunSettings:
    """Return the settings of a launch or rerun request.

    Raises:
        InfrastructureError: the request is neither, so it has no settings.
    """
    if request.settings is None:
        raise InfrastructureError(f"request {request.number} is a {request.verb}: it starts nothing")
    return request.settings


def gone_of(filed: Sequence[SubmissionState], *, grace_s: float = 0.0) -> Iterator[LostWorker]:
    """Yield the jobs, and the workers of drivers, that are over and ended badly.

    An attempt of such a worker can be taken over at once. Without this evidence, another worker would wait
    until the lease of the attempt expires.

    Args:
        filed: all submissions.
        grace_s: how long workers may still save a checkpoint after their job was found over.
    """
    for each in filed:
        if each.accepted is None:
            # without an id it never became a job, so no worker can have claimed anything
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
        # no grace here: a driver applies it before it records a worker as lost
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
    """Round up to the next of 1, 1.5, 2, 3, 4, 6, 8, ...

    Cells with similar needs then request the same amount, and can share one job array. For example, 5 and 5.7
    both become 6.
    """
    power = 2.0 ** max(0, math.ceil(math.log2(amount)))
    return 0.75 * power if amount <= 0.75 * power and power > 1 else power
