"""Engines that generate answers, by their names in `orchestrator.registry.ENGINES`.

Importing this imports no torch, so that a plan can ask what a cell needs.
"""

from __future__ import annotations

import importlib.util

from orchestrator.costs import Need
from orchestrator.stage import Config

INSTALL_VLLM = "pip install 'polysweep[vllm]'"


def has_vllm() -> bool:
    """Tells whether vLLM is installed, without importing it."""
    return importlib.util.find_spec("vllm") is not None


def packages(config: Config) -> list[Need]:
    """Return the package that the cell's engine needs beyond those of every installation."""
    if config.evaluation.engine != "vllm":
        return []
    problem = "" if has_vllm() else "not installed"
    return [Need(what="package vllm", problem=problem, advice=INSTALL_VLLM)]
