"""From a view of the store to the curves of the metrics that its stages logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.commands.view import View
from orchestrator.reporting import Curve
from orchestrator.results import evenly
from orchestrator.trackers.store import history

MAX_POINTS = 200
"""Points of one curve; more cannot be seen in a figure as wide as a page."""

_NO_METRIC = frozenset({"step", "time_s"})


def curves(view: View) -> tuple[Curve, ...]:
    """Read what every stage instance of the view logged, a shared one once."""
    sharing: dict[str, list[str]] = {}
    for cell in view.sweep.cells:
        for digest in cell.chain:
            sharing.setdefault(digest, []).append(cell.cell)
    found = []
    for digest, cells in sharing.items():
        done = view.snapshot.evidence(digest).done
        number = done.attempt if done is not None else view.stages[digest].attempts
        if not number:
            continue
        node = view.sweep.nodes[digest]
        points = _points(history(view.ledger, node, number))
        if points:
            found.append(Curve(stage=node.name, cells=tuple(cells), points=points))
    return tuple(found)


def _points(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[tuple[int, float], ...]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(lines, start=1):
        step = line.get("step", number)  # a command may log no step
        for name, value in line.items():
            if name not in _NO_METRIC and isinstance(value, bool | int | float) and math.isfinite(value):
                found.setdefault(name, []).append((step, float(value)))
    return {name: tuple(evenly(sorted(points), MAX_POINTS)) for name, points in found.items()}
