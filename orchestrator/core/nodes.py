"""Which nodes of a cluster to leave out, by how jobs ended on them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from orchestrator.core.dispatch import Filed

MIN_FAST_FAILS = 2


def bad_nodes(filed: Sequence[Filed], recent: Collection[int], *, fast_s: float) -> tuple[str, ...]:
    """Names nodes on which jobs ended early without claiming anything, twice or more and more often than not.

    Args:
        filed: all submissions.
        recent: numbers of the submissions whose ends count; older ones have expired.
        fast_s: an end within so many seconds is an early one.
    """
    good: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for each in filed:
        if each.submission.number not in recent:
            continue
        for over in each.over.values():
            if over.node and over.idle and over.cause and over.seconds is not None and over.seconds <= fast_s:
                bad[over.node] += 1
            elif over.node and over.cause is None:
                good[over.node] += 1
    return tuple(sorted(node for node, n in bad.items() if n >= MIN_FAST_FAILS and n > good[node]))
