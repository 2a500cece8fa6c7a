"""What finished cells say of speed, tokens and memory, so that a plan need not guess.

The rows of `evaluate` carry what training took; the wall time of `evaluate` is its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from orchestrator.costs import Finished, Measured
from orchestrator.sft.facts import CostsConfig
from orchestrator.sft.work import Tree, answers, training


class Speed(NamedTuple):
    """Measurements of the cells of one model and task; None where there are none.

    Attributes:
        num_cells: trained cells that were measured.
        mixtures: languages to the tokens that training on them took.
        token_factor: measured tokens over those from facts.
        seconds_per_token: of one device.
        peak_memory_gib: of one device, the largest.
        num_evaluations: cells whose evaluation was measured.
        seconds_per_answer: wall time of `evaluate` over its answers, loading and scoring included.
    """

    num_cells: int = 0
    mixtures: Mapping[tuple[str, ...], int] = {}
    token_factor: float = 1.0
    seconds_per_token: float | None = None
    peak_memory_gib: float | None = None
    num_evaluations: int = 0
    seconds_per_answer: float | None = None

    def tokens(self, cell: Tree, computed: int) -> int:
        """Returns the tokens of a cell: its mixture's own, or else the computed ones, corrected."""
        return self.mixtures.get(tuple(cell["languages"])) or round(self.token_factor * computed)


_NOTHING = Speed()


def speed_of(cell: Tree, measured: Measured, costs: CostsConfig) -> Speed:
    """Returns the measurements of the cells with this one's model, task and items."""
    return measured.once(_Speeds).of(cell, costs) if measured else _NOTHING


class _Speeds:
    """All measurements of a plan, by what tokens and speed depend on."""

    def __init__(self, measured: Measured) -> None:
        self._finished: dict[Hashable, list[Finished]] = {}
        self._speeds: dict[Hashable, Speed] = {}
        for finished in measured.get("evaluate", ()):
            if finished.rows:
                self._finished.setdefault(_key(finished.config), []).append(finished)

    def of(self, cell: Tree, costs: CostsConfig) -> Speed:
        """Returns the measurements that hold for a cell."""
        key = _key(cell)
        if key not in self._finished:
            return _NOTHING
        if key not in self._speeds:
            self._speeds[key] = _summary(self._finished[key], costs)
        return self._speeds[key]


def _key(cell: Tree) -> Hashable:
    items, trainer = cell["items"], cell["trainer"]
    names = (cell["model"]["name"], cell["task"]["name"], items["source"])
    return (*names, items["num_train"], trainer["num_epochs"], trainer["max_length_tokens"])


def _summary(finished: list[Finished], costs: CostsConfig) -> Speed:
    rows: list[tuple[Tree, Mapping[str, Any]]] = [
        (one.config, one.rows[0]) for one in finished if one.rows[0].get("train_tokens")
    ]
    seconds = [
        (row.get("num_gpus") or row.get("num_processes") or 1) / row["tokens_per_second"]
        for _, row in rows
        if row.get("tokens_per_second")
    ]
    factors = [row["train_tokens"] / max(1, training(cell, costs).num_tokens) for cell, row in rows]
    return Speed(
        num_cells=len(rows),
        mixtures={tuple(cell["languages"]): int(row["train_tokens"]) for cell, row in rows},
        token_factor=statistics.median(factors) if factors else 1.0,
        seconds_per_token=statistics.median(seconds) if seconds else None,
        peak_memory_gib=max(
            (row["peak_memory_gib"] for _, row in rows if row.get("peak_memory_gib")), default=None
        ),
        num_evaluations=len(finished),
        seconds_per_answer=statistics.median(
            one.seconds / answers(one.config, costs).number for one in finished
        ),
    )
