"""From a sweep file, config folders and overrides to a sealed `Sweep`: the one door to Hydra.

Everything that Hydra and OmegaConf do ends here; what comes out is plain and typed.
"""

from orchestrator.compose.engine import engine_settings, engine_with
from orchestrator.compose.files import SweepEntry, find_sweeps, shipped
from orchestrator.compose.main import Composition, compose

__all__ = [
    "Composition",
    "SweepEntry",
    "compose",
    "engine_settings",
    "engine_with",
    "find_sweeps",
    "shipped",
]
