"""What finished cells say of speed, tokens and memory, so that a plan need not guess."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from orchestrator.costs import Finished, Measured
from orchestrator.stage import Config

Key = tuple[Any, Any]


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

    def tokens(self, config: Config, computed: int) -> int:
        """Returns the tokens of a cell: its mixture's own, or else the computed ones, corrected."""
        return self.mixtures.get(tuple(config.languages)) or round(self.token_factor * computed)


class _Cell(NamedTuple):
    """One finished evaluation, with the training that its rows tell of."""

    config: Config
    row: Mapping[str, Any]
    seconds_per_answer: float


_NOTHING = Speed()


def speed_of(config: Config, measured: Measured, computed_tokens: Callable[[Config], int]) -> Speed:
    """Returns the measurements of the cell's model and task, made once a plan."""
    if not measured:
        return _NOTHING
    speeds = measured.once(_Speeds)
    return speeds.of(config, computed_tokens)


class _Speeds:
    """All measurements, by model, task and what else changes tokens or speed."""

    def __init__(self, measured: Measured) -> None:
        self._cells: dict[Any, list[_Cell]] = {}
        self._speeds: dict[Any, Speed] = {}
        for finished in measured.get("evaluate", ()):
            cell = _cell(finished)
            if cell is not None:
                self._cells.setdefault(_key(cell.config), []).append(cell)

    def of(self, config: Config, computed_tokens: Callable[[Config], int]) -> Speed:
        key = _key(config)
        if key not in self._cells:
            return _NOTHING
        if key not in self._speeds:
            self._speeds[key] = _summary(self._cells[key], computed_tokens)
        return self._speeds[key]


def _key(config: Config) -> Key:
    """Model and task; and epochs and items, which the tokens of a mixture depend on."""
    items = config["items"]
    return (
        (config.model.name, config.task.name),
        (config.trainer.num_epochs, items.source, items.num_train, config.trainer.max_length_tokens),
    )


def _cell(finished: Finished) -> _Cell | None:
    config = Config(finished.config)
    items = config["items"]
    num_validation = config.trainer.num_epochs * (items.num_validation or 0) * len(config.languages)
    rows = finished.rows
    num_test = sum(row["num_items"] for row in rows if row.get("split") == "test" and row.get("num_items"))
    number = num_validation + num_test
    return _Cell(config, rows[0], finished.seconds / number) if rows and number else None


def _summary(cells: list[_Cell], computed_tokens: Callable[[Config], int]) -> Speed:
    trained = [cell for cell in cells if cell.row.get("train_tokens")]
    seconds = [
        cell.row.get("num_gpus", 1) / cell.row["tokens_per_second"]
        for cell in trained
        if cell.row.get("tokens_per_second")
    ]
    memory = [cell.row["peak_memory_gib"] for cell in trained if cell.row.get("peak_memory_gib")]
    factors = [cell.row["train_tokens"] / max(1, computed_tokens(cell.config)) for cell in trained]
    return Speed(
        num_cells=len(trained),
        mixtures={tuple(cell.config.languages): int(cell.row["train_tokens"]) for cell in trained},
        token_factor=statistics.median(factors) if factors else 1.0,
        seconds_per_token=statistics.median(seconds) if seconds else None,
        peak_memory_gib=max(memory, default=None),
        num_evaluations=len(cells),
        seconds_per_answer=statistics.median(cell.seconds_per_answer for cell in cells),
    )
