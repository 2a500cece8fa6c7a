"""Which nodes are left out because work fails on them at once, and for how long. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

from orchestrator.core.failure import Cause
from orchestrator.core.records import Record

NUM_FAILURES = 2
"""Failures by which a node is left out; one may be chance. A failed check of the node suffices alone."""


class NodeReport(Record, frozen=True, kw_only=True):
    """`nodes/<n>.json`: what happened on a node, or that a user freed it. Nodes are shared by all sweeps.

    Attributes:
        nonce: identifies the writer.
        number: position in the sequence of the store's reports.
        node: name of the machine, as its scheduler names it.
        cluster: name of the scheduler's cluster, ``local`` without one.
        kind: ``failed`` is an attempt that failed before its stage ran, or by the node; ``check`` a failed
            check of the node. ``unknown`` stands for a value that a later version wrote; it counts as
            nothing.
        why: what was seen, one line.
        cause: of the failure.
        sweep, attempt: on whose behalf, and the attempt in words; "" without one.
        by: who wrote the record.
        at: time of the record.
    """

    nonce: str
    number: int
    node: str
    cluster: str
    kind: Literal["failed", "check", "cleared", "unknown"]
    why: str = ""
    cause: Cause | None = None
    sweep: str = ""
    attempt: str = ""
    by: str = ""
    at: str = ""


class AgedReport(NamedTuple):
    """A report, and for how many seconds it has existed."""

    report: NodeReport
    age_s: float


class LeftOut(NamedTuple):
    """A node that is left out.

    Attributes:
        left_s: seconds until it comes back.
        reports: the evidence, oldest first.
    """

    left_s: float
    reports: tuple[NodeReport, ...]


MAX_DOUBLINGS = 5
"""How often the time for which a node is left out is doubled, at most; ours."""


def left_out(reports: Iterable[AgedReport], limit_s: float) -> dict[tuple[str, str], LeftOut]:
    """Return the nodes that are left out, by cluster and name.

    A node is left out when it fails its check, or fails `NUM_FAILURES` times within the limit. It comes back
    when the last of these failures is older than the limit, or when a user clears it. If it fails again
    within the limit after it came back, it is left out at once, and twice as long as the last time::

        limit 60 min    failed 70 min ago, 50 min ago     left out for 10 more minutes
                        failed 70 min ago,  5 min ago     not left out: too far apart
                        failed 90, 85 and 15 min ago      left out for 105 more minutes

    Args:
        reports: in the order of their numbers.
        limit_s: how long a node is left out at first, in seconds; 0 for never.
    """
    evidence: dict[tuple[str, str], list[AgedReport]] = {}
    for each in reports:
        place = each.report.cluster, each.report.node
        if each.report.kind == "cleared":
            evidence.pop(place, None)
        elif each.report.kind in ("failed", "check") and limit_s > 0:
            evidence.setdefault(place, []).append(each)
    found = {}
    for place, seen in evidence.items():
        times, back_s = 0, math.inf  # how often it was left out, and how long ago it came back from that
        for index, last in enumerate(seen):
            first = seen[max(0, index + 1 - NUM_FAILURES)]
            is_enough = index + 1 >= NUM_FAILURES and first.age_s - last.age_s <= limit_s
            is_out = times > 0 and last.age_s > back_s
            is_again = times > 0 and 0 <= back_s - last.age_s <= limit_s
            if is_enough or is_again or last.report.kind == "check":
                times = times if is_out else times + 1 if is_again else 1
                back_s = last.age_s - limit_s * 2 ** min(times - 1, MAX_DOUBLINGS)
                if back_s < 0:
                    found[place] = LeftOut(-back_s, tuple(one.report for one in seen[: index + 1]))
    return found
