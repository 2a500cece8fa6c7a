"""Reports about nodes, in the store, and the nodes that are left out now.

A report's age is measured by the store: how much later it would date a record that is written now. So no two
machines' clocks are compared. An observer asks once for each report, and then goes on by its own monotonic
clock.
"""

from __future__ import annotations

import subprocess
import time
from typing import Any, Literal

from orchestrator import provenance
from orchestrator.core.failure import Cause
from orchestrator.core.nodes import AgedReport, LeftOut, NodeReport, left_out
from orchestrator.core.records import Owner
from orchestrator.errors import InfrastructureError
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger

LOOK_S, CHECK_S = 2.0, 120.0
"""Seconds for which an observer goes by its last look at the reports, and that a check of a node may take."""


def failed_check(check: str | None) -> str:
    """Run a shell command that checks this node; return why it rejects the node, "" if it passes.

    Args:
        check: the command; None without a check.
    """
    if check is None:
        return ""
    try:
        done = subprocess.run(
            ["bash", "-c", check],
            capture_output=True,
            text=True,
            timeout=CHECK_S,
            check=False,
            errors="replace",  # a check may print in any encoding
        )
    except subprocess.TimeoutExpired:
        return f"the node's check took longer than {CHECK_S:.0f} s: {check}"
    if done.returncode == 0:
        return ""
    last = (done.stderr or done.stdout).strip().splitlines()[-1:]
    return f"the node's check failed: {check}: {last[0] if last else f'exit code {done.returncode}'}"


def named(node: str, found: LeftOut) -> str:
    """Return why a node is left out and what frees it, as one line."""
    last = found.reports[-1]
    what = " ".join(filter(None, (last.attempt, last.why)))
    return (
        f"node {node} is left out for {found.left_s / 60:.0f} more minutes"
        f" ({what}); mend it, or: sweep nodes --clear {node}"
    )


class NodeReports:
    """The reports about nodes in one store.

    Args:
        ledger: the store.
        limit_s: how long a node is left out, in seconds (`policy.quarantine_s`); 0 for never.
        is_reader: whether nothing is written. Ages are then those by this machine's clock, which suffice for
            people, but for no decision.
    """

    def __init__(self, ledger: Ledger, limit_s: float, *, is_reader: bool = False) -> None:
        self._ledger = ledger
        self._is_reader = is_reader
        self._limit_s = limit_s
        self._known: dict[int, tuple[NodeReport | None, float]] = {}  # with the monotonic time of its making
        self._found: dict[tuple[str, str], LeftOut] = {}
        self._looked_s: float | None = None

    def read(self) -> list[NodeReport]:
        """Return all readable reports, oldest first."""
        found = []
        for number in sorted(self._ledger.record_numbers(layout.NODES)):
            # A report that cannot be read counts as none: at worst a node is used too early.
            report, _ = self._ledger.read(layout.node_report(number), NodeReport, number=number)
            found += [report] if report is not None else []
        return found

    def left_out(self) -> dict[tuple[str, str], LeftOut]:
        """Return the nodes that are left out now, by cluster and name.

        The last result is returned again for a while, and while the store does not answer: a node that is
        used too early costs an attempt, and waiting would cost more.
        """
        now_s = time.monotonic()
        pause_s = max(LOOK_S, self._ledger.objects.poll_s)
        if self._limit_s <= 0 or (self._looked_s is not None and now_s - self._looked_s < pause_s):
            return self._found
        self._looked_s = now_s
        # Reports never change, so each is read once. Its age counts from then on by this process's clock.
        try:
            for number in sorted(set(self._ledger.record_numbers(layout.NODES)) - self._known.keys()):
                key = layout.node_report(number)
                report, _ = self._ledger.read(key, NodeReport, number=number)
                self._known[number] = (report, now_s - (self._age_s(key, report) if report else 0.0))
        except (OSError, InfrastructureError):
            return self._found
        aged = [
            AgedReport(report, now_s - made_s)
            for _, (report, made_s) in sorted(self._known.items())
            if report is not None
        ]
        self._found = left_out(aged, self._limit_s)
        return self._found

    def _age_s(self, key: str, report: NodeReport) -> float:
        # The store tells an age by dating a probe, which a reader must not write.
        return provenance.age_s(report.at) if self._is_reader else self._ledger.objects.age_s(key)

    def of(self, owner: Owner) -> LeftOut | None:
        """Return why a worker's node is left out; None if it is not."""
        return self.left_out().get((owner.cluster, owner.host))

    def add(
        self,
        cluster: str,
        node: str,
        kind: Literal["failed", "check"],
        why: str,
        *,
        cause: Cause | None = None,
        sweep: str = "",
        attempt: str = "",
    ) -> None:
        """Write a report about a node.

        Args:
            cluster, node: the name of the scheduler's cluster, and of the node in it.
            kind: what failed on it.
            why: what was seen.
            cause: of the failure.
            sweep, attempt: on whose behalf.

        Raises:
            OSError: the store did not answer.
        """
        what = {"why": why, "cause": cause, "sweep": sweep, "attempt": attempt}
        self._write(cluster, node, kind, **what)

    def clear(self, cluster: str, node: str) -> None:
        """Write that a node may be used again."""
        self._write(cluster, node, "cleared")

    def _write(
        self, cluster: str, node: str, kind: Literal["failed", "check", "cleared"], **what: Any
    ) -> None:
        """Create a record under the next free number."""
        by, at, is_written = provenance.user(), provenance.now(), False
        # Another writer may take the number between the look and the create. Then the next one is tried.
        while not is_written:
            number = max(self._ledger.record_numbers(layout.NODES), default=0) + 1
            report = NodeReport(
                nonce=new_nonce(), number=number, node=node, cluster=cluster, kind=kind, by=by, at=at, **what
            )
            is_written = self._ledger.create(layout.node_report(number), report, report.nonce)
        self._looked_s = None  # so that this process sees its own report at once
