"""Which nodes are left out, and when they come back."""

from __future__ import annotations

import pytest

from orchestrator.core.nodes import AgedReport, NodeReport, left_out

MINUTE = 60.0


def report(
    number: int, minutes: float, kind: str = "failed", node: str = "n1", cluster: str = "c"
) -> AgedReport:
    made = NodeReport(nonce="x", number=number, node=node, cluster=cluster, kind=kind)  # type: ignore[arg-type]
    return AgedReport(made, minutes * MINUTE)


@pytest.mark.parametrize(
    ("reports", "left"),
    [
        pytest.param([], None, id="nothing was reported"),
        pytest.param([report(1, 5)], None, id="one failure may be chance"),
        pytest.param([report(1, 5), report(2, 5)], 55, id="two are not"),
        pytest.param([report(1, 5, "check")], 55, id="a failed check suffices"),
        pytest.param([report(1, 70), report(2, 50)], 10, id="by the age of the second"),
        pytest.param([report(1, 70), report(2, 5)], None, id="too far apart"),
        pytest.param([report(1, 90), report(2, 61)], None, id="it is over"),
        pytest.param([report(1, 61, "check")], None, id="that of a check too"),
        pytest.param([report(1, 70), report(2, 50), report(3, 20)], 40, id="a third failure prolongs it"),
        pytest.param([report(1, 5), report(2, 4), report(3, 3, "cleared")], None, id="a user freed it"),
        pytest.param(
            [report(1, 5), report(2, 4, "cleared"), report(3, 3)], None, id="what was before counts no more"
        ),
        pytest.param([report(1, 90), report(2, 85), report(3, 15)], 105, id="again: at once, and longer"),
        pytest.param([report(1, 200), report(2, 190), report(3, 15)], None, id="well for a while meanwhile"),
        pytest.param(
            [report(1, 300), report(2, 295), report(3, 230), report(4, 100)], 140, id="and longer again"
        ),
        pytest.param([report(1, 5), report(2, 4, node="n2")], None, id="another node"),
        pytest.param([report(1, 5), report(2, 4, cluster="d")], None, id="of the same name elsewhere"),
        pytest.param([report(1, 5, "unknown"), report(2, 4, "unknown")], None, id="of a later version"),
    ],
)
def test_a_node_is_left_out_after_two_failures_until_they_are_old(
    reports: list[AgedReport], left: float | None
) -> None:
    found = left_out(reports, 60 * MINUTE).get(("c", "n1"))
    assert (None if found is None else found.left_s / MINUTE) == left


def test_the_evidence_is_named_and_no_node_is_left_out_without_a_limit() -> None:
    reports = [report(1, 5), report(2, 4)]
    assert [each.number for each in left_out(reports, 3600)["c", "n1"].reports] == [1, 2]
    assert left_out(reports, 0) == {}
