"""Engines that generate answers, by their names in `orchestrator.registry.GENERATORS`.

Importing this package imports no torch, so a plan can list what a cell needs.
"""

from __future__ import annotations

import importlib.util

from orchestrator.costs import Need
from orchestrator.stage import Config

INSTALL_VLLM = "make vllm in the checkout, or pip install -e 'CHECKOUT[vllm]'"


def has_vllm() -> bool:
    """Return whether vLLM is installed, without importing it."""
    return importlib.util.find_spec("vllm") is not None


def packages(config: Config) -> list[Need]:
    """Return the package that the cell's engine needs in addition to a standard installation."""
    # The other engine uses transformers, which every installation has.
    if config.evaluation.engine != "vllm":
        return []
    problem = "" if has_vllm() else "not installed"
    return [Need(what="package vllm", problem=problem, advice=INSTALL_VLLM)]
