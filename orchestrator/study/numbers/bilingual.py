"""Table 2 and Figure 3: what one language beside English changes, over paired cells.

A comparison is of en+x with en: the same model, task, seed and evaluation language. Its setting is `en`
(tested in English), `direct` (tested in x) or `transfer` (tested in another language that is not English).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from statistics import median
from typing import Any, NamedTuple

from orchestrator.study import facts
from orchestrator.study.statistics import median_interval, wilson
from orchestrator.study.table import Result

SETTINGS = ("en", "direct", "transfer")


class Comparison(NamedTuple):
    """How much better en+x is than en, exactly."""

    task: str
    setting: str
    gain: Fraction


def comparisons(read: Iterable[Result]) -> list[Comparison]:
    """Returns the comparisons of which both cells are there."""
    alone: dict[tuple[str, ...], Result] = {}
    pairs: list[tuple[str, Result]] = []
    for result in read:
        if result.eval_language not in facts.EVAL_LANGUAGES:
            continue
        if result.languages == ("en",):
            alone[_key(result)] = result
        elif (x := facts.partner(result.languages)) is not None:
            pairs.append((x, result))
    return [
        Comparison(
            result.task, _setting(x, result.eval_language), _share(result) - _share(alone[_key(result)])
        )
        for x, result in pairs
        if _key(result) in alone
    ]


def table2(found: Sequence[Comparison]) -> dict[str, dict[str, Any]]:
    """Returns the share of wins for each setting: strictly better, by exact counts; 95 % Wilson."""
    table = {}
    for setting in SETTINGS:
        gains = [comparison.gain for comparison in found if comparison.setting == setting]
        wins, total = sum(gain > 0 for gain in gains), len(gains)
        low, high = wilson(wins, total) if total else (None, None)
        rate = wins / total if total else None
        table[setting] = {"wins": wins, "total": total, "rate": rate, "low": low, "high": high}
    return table


def fig3(
    found: Sequence[Comparison], tasks: Iterable[str], *, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns for each task and setting the median gain in points, with its percentile bootstrap interval."""
    return {task: {setting: _median(found, task, setting, seed) for setting in SETTINGS} for task in tasks}


def _median(found: Sequence[Comparison], task: str, setting: str, seed: int) -> dict[str, Any]:
    points = [float(100 * gain) for name, where, gain in found if (name, where) == (task, setting)]
    low, high = median_interval(points, seed=seed) or (None, None)
    return {
        "median_points": median(points) if points else None,
        "low": low,
        "high": high,
        "num_cells": len(points),
    }


def _setting(x: str, eval_language: str) -> str:
    return "en" if eval_language == "en" else "direct" if eval_language == x else "transfer"


def _key(result: Result) -> tuple[str, ...]:
    return result.model, result.task, result.seed, result.eval_language


def _share(result: Result) -> Fraction:
    return Fraction(result.num_correct, result.num_items)
