"""Reports about nodes, and nodes that new jobs leave out, as recorded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from orchestrator.core.failure import Cause
from orchestrator.jobs.judgement import SubmissionState
from orchestrator.jobs.nodes import NodeReports, named
from orchestrator.jobs.records import Accepted, JobEnd
from orchestrator.launchers.slurm.launcher import SlurmLauncher
from orchestrator.provenance import now
from tests.launchers.asked.jobs import Place, lines_of
from tests.recording import Answers
from tests.store.builders import submission_of


def nodes() -> Answers:
    """Reports about nodes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder) / "p", {"name": "slurm"}, {})
        ours = NodeReports(place.ledger, 3600.0)
        ours.add("lab", "n1", "check", "no GPU", sweep="s")
        ours.add("lab", "n2", "failed", "no disk", cause=Cause.BAD_NODE, sweep="s", attempt="fit 1")
        ours.add("lab", "n2", "failed", "no disk", cause=Cause.BAD_NODE, sweep="s", attempt="fit 2")
        for limit_s, is_reader in (
            (3600.0, True),
            (0.0, False),
            (-1.0, False),
            (1e9, False),
            (3600.0, False),
        ):
            again = NodeReports(place.ledger, limit_s, is_reader=is_reader)
            for (_, node), left in sorted(again.left_out().items()):
                yield f"{limit_s} {is_reader} {node}", named(node, left)
            yield f"{limit_s} {is_reader}", [node for _, node in again.left_out()]
        filed = [
            SubmissionState(
                submission_of(number, at=at),
                Accepted(nonce="n", job="1"),
                {0: JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN, node="n9", seconds=5.0, idle=True)},
                {},
            )
            for number, at in enumerate((now(), now(), "2026-01-01T00:00:00Z"))
        ]
        for hours, cluster in ((24.0, "LAB"), (24.0, "far"), (0.0, "lab"), (1e6, "lab")):
            launcher = SlurmLauncher({"bad_node_hours": hours}, 1)
            found = launcher.excluded(filed[1:], place.ledger, cluster, quarantine_s=3600.0, is_dry=True)
            both = launcher.excluded(filed, place.ledger, cluster, quarantine_s=0.0, is_dry=False)
            yield f"excluded {hours} {cluster}", (found, both)
        ours.clear("lab", "n1")
        yield "cleared", [node for _, node in ours.left_out()]
        yield "a moment later by another", [node for _, node in again.left_out()]
        yield from lines_of("records", [line for line in place.records() if line.startswith("nodes")])


ASKED: dict[str, Callable[[], Answers]] = {"nodes": nodes}
