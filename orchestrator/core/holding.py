"""What is held back in a sweep, by rules that look at more than one stage. Pure.

Whether one stage may start follows from its own records and its inputs (`orchestrator.core.plan`). The rules
here look at all stages of the sweep. Workers, drivers, submissions, `status` and the simulation call
`holds_of` with what they have read, so all of them decide alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from orchestrator.core.evidence import Evidence, Hold, Holds
from orchestrator.core.plan import RequestSummary
from orchestrator.core.settings import Policy
from orchestrator.core.state import StageStatus
from orchestrator.core.sweep import ComposedSweep


class SweepRecords(NamedTuple):
    """What the rules may look at. What is not needed is not read: each read may be a request to a bucket.

    Attributes:
        sweep: the sealed or composed content.
        evidence: returns the evidence about a stage by digest; repeated calls return the same.
        status: returns a stage's own state by digest, which follows from its evidence.
        unfinished: digests of stages that were attempted and have no product.
        requests: the combined effect of the users' requests.
        policy: of the launch that is decided about.
        codes: id of a cell to the digest of the code that would run it.
    """

    sweep: ComposedSweep
    evidence: Callable[[str], Evidence]
    status: Callable[[str], StageStatus]
    unfinished: Iterable[str]
    requests: RequestSummary
    policy: Policy
    codes: Mapping[str, str]


Rule = Callable[[SweepRecords], Holds]
"""One rule. Its result must follow from the records alone."""

RULES: tuple[Rule, ...] = ()


def holds_of(records: SweepRecords) -> Holds:
    """Return what all rules hold back. Of two holds of a cell or stage, a final one counts, else the first.

    Args:
        records: what is known about the sweep.
    """
    cells: dict[str, Hold] = {}
    stages: dict[str, Hold] = {}
    for rule in RULES:
        found = rule(records)
        for into, more in ((cells, found.cells), (stages, found.stages)):
            for key, hold in more.items():
                if key not in into or (hold.is_final and not into[key].is_final):
                    into[key] = hold
    return Holds(cells, stages)
