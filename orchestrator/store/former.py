"""What a stage was under earlier versions of itself, from whose products it can be made.

Raising a stage's version changes its digest, and so makes all of it again. A shipped stage may be able to
make its product from the one of an earlier version, as `evaluate` scores again what was generated before.
"""

from __future__ import annotations

from orchestrator.core.cell import former_node
from orchestrator.core.sweep import StageInstance
from orchestrator.registry import FORMER, STAGES, load
from orchestrator.stage import StageSpec


def formers(spec: StageSpec, node: StageInstance) -> list[StageInstance]:
    """Return what a stage instance was under earlier versions, the latest first.

    A spec that a sweep gave another version has none: its user wants all of it made again.
    """
    if spec.name is None or spec.name not in FORMER or spec.version != load(STAGES[spec.name]).version:
        return []
    found = (former_node(former, node) for former in load(FORMER[spec.name][0]))
    return [former for former in found if former is not None]


def use_of(spec: StageSpec) -> str:
    """Return what a stage that has `formers` does with the product of one, for people."""
    return FORMER[spec.name or ""][1]
