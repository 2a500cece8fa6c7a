"""What every report of a sweep shares: the tables of what it cost, and how numbers of tables are computed."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.reporting import HeldFacts
from orchestrator.reports.page import Table

FORMULAS = {
    "Cells": ("the value in the row that the cell's stage returned; (mean): the mean of its rows", "rows"),
    "report.md": ("mean ± sample standard deviation (n - 1) over n cells, or a sum of records", "records"),
}
"""File or heading of a table of the general report to how its numbers are computed, and from what."""


def tables(held: Sequence[HeldFacts]) -> list[Table]:
    """Return for each unit a table of where the held time went, and one of why work was lost, if any was."""
    return [table for facts in held for table in (_parts(facts), _lost(facts)) if table.rows]


def _parts(facts: HeldFacts) -> Table:
    """Return the table with one line for each stage, and one for each worker's own time."""
    names = list(facts.hours)
    total = sum(facts.hours.values())
    lines = [
        [stage or "between stages", *(f"{parts.get(name, 0.0):.3f}" for name in names)]
        for stage, parts in facts.by_stage.items()
    ]
    if lines:
        lines.append(["all", *(f"{facts.hours[name]:.3f}" for name in names)])
    if total:
        lines.append(["% of all", *(f"{100 * facts.hours[name] / total:.1f}" for name in names)])
    note = (
        "From the start of each worker to its last sign of life. Compute and evaluation count where a product"
    )
    note += " holds them; other work is lost. What older records do not show is unknown."
    return Table(
        f"held-{facts.unit}", f"Held {facts.unit}", ["stage", *(f"#{name}" for name in names)], lines, note
    )


def _lost(facts: HeldFacts) -> Table:
    """Return the table of why work was lost."""
    found = sorted(facts.lost_hours.items(), key=lambda item: -item[1])
    lines = [[why, f"{amount:.3f}"] for why, amount in found]
    return Table(f"lost-{facts.unit}", f"Lost {facts.unit}", ["cause", "#amount"], lines)
