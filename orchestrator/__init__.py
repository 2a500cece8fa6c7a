"""Polysweep: compose a sweep once, run it anywhere, and collect its results from one store.

::

    from orchestrator import Store, Sweep

    sweep = Sweep.compose("smoke", "model=tiny-qwen3", store="runs")
    sweep.launch(workers=2).wait()
    sweep.rows().to_pandas()
"""

from __future__ import annotations

import importlib
from typing import Any, Final

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "Config",
    "Context",
    "InfrastructureError",
    "StageFailure",
    "StageSpec",
    "State",
    "Store",
    "Sweep",
    "SweepError",
    "UserError",
    "log",
]

_HOME: Final = {
    **dict.fromkeys(("Store", "Sweep"), "api.sweep"),
    "State": "core.state",
    **dict.fromkeys(("Config", "StageSpec"), "spec"),
    **dict.fromkeys(("Checkpoint", "Context"), "stage"),
    "log": "saving",
    **dict.fromkeys(("InfrastructureError", "StageFailure", "SweepError", "UserError"), "errors"),
}
"""Public name to its module, which is imported at the first use: workers import this package too."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
