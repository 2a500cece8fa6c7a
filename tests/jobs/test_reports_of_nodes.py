"""The check of a node, and the reports about nodes in a store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.core.failure import Cause
from orchestrator.jobs import nodes
from orchestrator.jobs.nodes import NodeReports, failed_check
from orchestrator.store import layout
from tests.store.builders import ledger_at


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (None, ""),
        ("true", ""),
        ("echo all is well; echo but slow >&2", ""),
        ("exit 3", "the node's check failed: exit 3: exit code 3"),
        ("echo a; echo b; false", "the node's check failed: echo a; echo b; false: b"),
        (
            "echo a; echo 'no GPU' >&2; false",
            "the node's check failed: echo a; echo 'no GPU' >&2; false: no GPU",
        ),
        ("printf '\\377'; false", "the node's check failed: printf '\\377'; false: \ufffd"),
        ("sleep 60", "the node's check took longer than 0 s: sleep 60"),
    ],
)
def test_a_node_passes_its_check_or_the_reason_is_named(
    check: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "CHECK_S", 0.2 if check and check.startswith("sleep") else 60.0)
    assert failed_check(check) == why


def test_a_node_is_left_out_after_two_failures_or_a_failed_check_until_it_is_cleared(tmp_path: Path) -> None:
    reports = NodeReports(ledger_at(tmp_path), 3600.0)
    assert reports.read() == [] and reports.left_out() == {}
    reports.add("lab", "n1", "failed", "no GPU", cause=Cause.BAD_NODE, sweep="s", attempt="fit 1")
    reports.add("lab", "n2", "check", "no disk")
    assert [*reports.left_out()] == [("lab", "n2")]
    reports.add("lab", "n1", "failed", "no GPU", cause=Cause.BAD_NODE)
    assert {*reports.left_out()} == {("lab", "n1"), ("lab", "n2")}
    reports.clear("lab", "n2")
    assert [*reports.left_out()] == [("lab", "n1")]
    assert [(each.number, each.node, each.kind) for each in reports.read()] == [
        (1, "n1", "failed"),
        (2, "n2", "check"),
        (3, "n1", "failed"),
        (4, "n2", "cleared"),
    ]


def test_a_report_that_is_a_copy_of_another_or_damaged_counts_as_nothing(tmp_path: Path) -> None:
    reports = NodeReports(ledger_at(tmp_path), 3600.0)
    reports.add("lab", "n1", "failed", "no GPU")
    shutil.copy(tmp_path / layout.node_report(1), tmp_path / layout.node_report(2))
    (tmp_path / layout.node_report(3)).write_text("{")
    assert [each.number for each in reports.read()] == [1]
    assert NodeReports(ledger_at(tmp_path), 3600.0).left_out() == {}
