"""Speed and memory of cells that have run. In estimates they take the place of guesses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from orchestrator.costs import Finished, Measured
from orchestrator.sft.workload import CostsConfig, Tree, answers, training


class Speed(NamedTuple):
    """Measurements of the cells of one model and task; None where there are none.

    Attributes:
        num_cells: number of trained cells that were measured.
        mixtures: languages to the number of tokens that training on them had.
        token_factor: measured tokens divided by those computed from facts.
        seconds_per_token: of one device, by the number of devices of the cells.
        peak_memory_gib: of one device, the largest.
        num_evaluations: number of cells whose evaluation was measured.
        seconds_per_answer: wall time of `evaluate` divided by its answers, loading and scoring included.
        is_rehearsed: whether the speed is that of a rehearsal, because no cell has ended yet.
        save_s: seconds that a checkpoint took in the rehearsal; None if that is not known.
    """

    num_cells: int = 0
    mixtures: Mapping[tuple[str, ...], int] = {}
    token_factor: float = 1.0
    seconds_per_token: Mapping[int, float] = {}
    peak_memory_gib: float | None = None
    num_evaluations: int = 0
    seconds_per_answer: float | None = None
    is_rehearsed: bool = False
    save_s: float | None = None

    @property
    def source(self) -> str:
        """What was measured, for people."""
        if self.is_rehearsed:
            return "a rehearsal of the same model and task"
        return f"{self.num_cells} {'cell' if self.num_cells == 1 else 'cells'} of the same model and task"

    def tokens(self, cell: Tree, computed: int) -> int:
        """Return the tokens of a cell: those measured for its mixture, or the computed ones, corrected."""
        return self.mixtures.get(tuple(cell["languages"])) or round(self.token_factor * computed)

    @property
    def efficiency(self) -> float:
        """Share of the speed that is kept for each doubling of the devices; 0 unless two sizes were measured.

        It is the slope of the line through the measured sizes, in logarithms, by least squares. Below a half,
        more devices would take longer.
        """
        if len(self.seconds_per_token) < 2:
            return 0.0
        slope, _ = statistics.linear_regression(
            [math.log2(number) for number in self.seconds_per_token],
            [math.log2(seconds) for seconds in self.seconds_per_token.values()],
        )
        return float(min(1.0, max(0.5, 2.0**-slope)))

    def seconds_at(self, num_gpus: int) -> float | None:
        """Return the time of one device for a token, scaled from the nearest measured number of devices."""
        if not self.seconds_per_token:
            return None
        nearest = min(self.seconds_per_token, key=lambda number: abs(math.log2(number / num_gpus)))
        lost = (self.efficiency or 1.0) ** math.log2(num_gpus / nearest)
        return float(self.seconds_per_token[nearest] / lost)


_NOTHING = Speed()


def speed_of(cell: Tree, measured: Measured, costs: CostsConfig) -> Speed:
    """Return the measurements of cells with this cell's model, task and items."""
    return measured.once(_Speeds).of(cell, costs) if measured else _NOTHING


class _Speeds:
    """All measurements of a plan, by everything that tokens and speed depend on."""

    def __init__(self, measured: Measured) -> None:
        self._finished: dict[Hashable, list[Finished]] = {}
        self._speeds: dict[Hashable, Speed] = {}
        self._rehearsed: dict[Hashable, list[Mapping[str, Any]]] = {}
        for finished in measured.get("rehearse", ()):
            # That of cells without a training measured none.
            rows = [row for row in finished.rows if row.get("save_seconds") is not None]
            self._rehearsed.setdefault(_key(finished.config), []).extend(rows)
        for finished in measured.get("evaluate", ()):
            if finished.rows:
                self._finished.setdefault(_key(finished.config), []).append(finished)

    def of(self, cell: Tree, costs: CostsConfig) -> Speed:
        """Return the measurements that apply to a cell."""
        key = _key(cell)
        if key not in self._finished and not self._rehearsed.get(key):
            return _NOTHING
        # Computed once per key: a plan of thousands of cells has few of them.
        if key not in self._speeds:
            # A whole cell outranks a rehearsal, whose rows are longer than others.
            finished = self._finished.get(key)
            self._speeds[key] = (
                _summary(finished, costs) if finished else _of_rehearsals(self._rehearsed[key])
            )
        return self._speeds[key]


def _of_rehearsals(rows: list[Mapping[str, Any]]) -> Speed:
    """Return the measurements of rehearsals."""
    seconds: dict[int, list[float]] = {}
    for row in rows:
        if row.get("tokens_per_second"):
            seconds.setdefault(row["num_processes"], []).append(
                row["num_processes"] / row["tokens_per_second"]
            )
    return Speed(
        seconds_per_token={number: statistics.median(found) for number, found in sorted(seconds.items())},
        peak_memory_gib=max((row["peak_memory_gib"] for row in rows), default=None),
        is_rehearsed=True,
        save_s=statistics.median(row["save_seconds"] for row in rows) if rows else None,
    )


def _key(cell: Tree) -> Hashable:
    """Return what tokens and speed depend on. Cells with equal keys share their measurements."""
    items, trainer = cell["items"], cell["trainer"]
    names = (cell["model"]["name"], cell["task"]["name"], items["source"])
    return (*names, items["num_train"], trainer["num_epochs"], trainer["max_length_tokens"])


def _summary(finished: list[Finished], costs: CostsConfig) -> Speed:
    """Return the measurements of finished cells as one `Speed`. Medians ignore single slow machines."""
    rows: list[tuple[Tree, Mapping[str, Any]]] = [
        (one.config, one.rows[0]) for one in finished if one.rows[0].get("train_tokens")
    ]
    seconds: dict[int, list[float]] = {}
    for _, row in rows:
        if row.get("tokens_per_second"):
            number = row.get("num_gpus") or row.get("num_processes") or 1
            seconds.setdefault(number, []).append(number / row["tokens_per_second"])
    # Corrects the computed tokens of mixtures that no cell has measured.
    factors = [row["train_tokens"] / max(1, training(cell, costs).num_tokens) for cell, row in rows]
    return Speed(
        num_cells=len(rows),
        mixtures={tuple(cell["languages"]): int(row["train_tokens"]) for cell, row in rows},
        token_factor=statistics.median(factors) if factors else 1.0,
        seconds_per_token={number: statistics.median(found) for number, found in sorted(seconds.items())},
        peak_memory_gib=max(
            (row["peak_memory_gib"] for _, row in rows if row.get("peak_memory_gib")), default=None
        ),
        num_evaluations=len(finished),
        seconds_per_answer=statistics.median(
            one.seconds / answers(one.config, costs).number for one in finished
        ),
    )
