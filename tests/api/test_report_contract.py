"""The reports that ship pass the suite of all reports."""

from __future__ import annotations

from orchestrator.testing import ReportContract

ROWS = [
    {"cell": f"{name}.seed{seed}", "name": name, "seed": seed, "loss": 0.1 * seed + len(name)}
    for name in ("a", "bb")
    for seed in (0, 1)
]


class TestGeneral(ReportContract):
    name = "general"
    rows = ROWS
