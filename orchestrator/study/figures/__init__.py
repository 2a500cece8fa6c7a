"""The paper's figures. Each is drawn only from its own part of the report's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.reports.style import Drawing, styled
from orchestrator.study.figures import accuracy, deltas, heatmap, languages, scatter

_DRAWERS = (
    accuracy.draw,
    deltas.draw,
    scatter.draw_by_size,
    heatmap.draw,
    languages.draw,
    scatter.draw_by_model,
)


def draw(numbers: Mapping[str, Any]) -> Iterator[Drawing]:
    """Yield the figures for which there are numbers, in the paper's order."""
    with styled():
        for drawer in _DRAWERS:
            drawing = drawer(numbers)
            if drawing is not None:
                yield drawing
