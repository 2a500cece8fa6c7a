"""Earlier versions of a stage, whose products can be converted instead of being made again.

Raising a stage's version changes its digest, so all of its products would be made again. A stage of this
package may be able to use the product of an earlier version. For example, `evaluate` scores predictions again
that were generated before.
"""

from __future__ import annotations

from orchestrator.core.cell import former_node
from orchestrator.core.sweep import StageInstance
from orchestrator.registry import FORMER, STAGES, load
from orchestrator.stage import StageSpec


def formers(spec: StageSpec, node: StageInstance) -> list[StageInstance]:
    """Return the stage instance under its earlier versions, the latest first.

    A stage whose version the sweep file sets has none: its user wants every product to be made again.
    """
    if spec.name is None or spec.name not in FORMER or spec.version != load(STAGES[spec.name]).version:
        return []
    # The earlier digest follows from the earlier spec and today's inputs, so nothing needs to be searched.
    found = (former_node(former, node) for former in load(FORMER[spec.name][0]))
    return [former for former in found if former is not None]


def use_of(spec: StageSpec) -> str:
    """Return, for people, how a stage that has `formers` uses an earlier product."""
    return FORMER[spec.name or ""][1]
