"""Compose a sealed `Sweep` from a sweep file, config folders and overrides. Only this package uses Hydra.

No type of Hydra or OmegaConf leaves it: the results are plain and typed.
"""

from orchestrator.compose.files import SweepEntry, find_sweeps, shipped
from orchestrator.compose.main import Composition, compose
from orchestrator.compose.overrides import engine_settings, engine_with

__all__ = [
    "Composition",
    "SweepEntry",
    "compose",
    "engine_settings",
    "engine_with",
    "find_sweeps",
    "shipped",
]
