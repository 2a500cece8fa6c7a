"""The published numbers (arXiv 2604.13286), and their comparison with ours. It computes no statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.study import paper
from orchestrator.study.tables.results import Result

MATCH, NOISE, DEVIATES, NOT_COMPARABLE = "match", "within noise", "deviates", "not comparable"
"""The verdicts; see `verdicts`."""


class Published(NamedTuple):
    """A published number.

    Attributes:
        name: its name in the report.
        unit: `rate` (a share), `points` (percentage points), `coefficient` or `r2`.
        value: the value as printed.
        decimals: the number of printed decimals.
        path: the keys under which the report has our number, with its interval and size.
        low: lower end of the published 95 % interval, if there is one.
        high: upper end of the published 95 % interval, if there is one.
    """

    name: str
    unit: str
    value: float
    decimals: int
    path: tuple[str, ...]
    low: float | None = None
    high: float | None = None


_SETTINGS = {"en": "English", "direct": "the added language", "transfer": "other languages"}
_RATES = {"en": (0.750, 0.598, 0.858), "direct": (0.875, 0.739, 0.945), "transfer": (0.744, 0.671, 0.805)}
_MEDIANS = {
    "api_calling": ("API calling", 2, {"en": 0.88, "direct": 9.27, "transfer": 3.38}),
    "math": ("math", 1, {"en": 3.4, "direct": 8.4, "transfer": 1.6}),
}
_COEFFICIENTS = {
    "log10_parameters": ("log10 of the parameters", 0.302),
    "qwen": ("Qwen", 0.265),
    "math": ("math", -0.207),
    "pretrained": ("pretrained only", -0.110),
    "language_in_training": ("evaluation language in training", 0.089),
    "sqrt_languages": ("square root of languages / 10", 0.053),
}
PUBLISHED: tuple[Published, ...] = (
    *(
        Published(f"Table 2: win rate in {_SETTINGS[name]}", "rate", value, 3, ("table2", name), low, high)
        for name, (value, low, high) in _RATES.items()
    ),
    *(
        Published(
            f"Fig. 3: {text}, median gain in {_SETTINGS[name]}", "points", value, num, ("fig3", task, name)
        )
        for task, (text, num, medians) in _MEDIANS.items()
        for name, value in medians.items()
    ),
    *(
        Published(f"Table 3: {text}", "coefficient", value, 3, ("table3", "coefficients", name))
        for name, (text, value) in _COEFFICIENTS.items()
    ),
    Published("Table 3: R2 on held-out rows", "r2", 0.805, 3, ("table3",)),
)
"""All numbers in the text of the study's section 4. Table 3's intercept is not among them."""

_KEYS = {
    "rate": ("rate", "low", "high"),
    "points": ("median_points", "low", "high"),
    "coefficient": ("value", "low", "high"),
    "r2": ("r2", "r2_low", "r2_high"),
}
"""Map from unit to the keys of our value and of the ends of its interval."""


def verdicts(numbers: Mapping[str, Any], read: Sequence[Result]) -> list[dict[str, Any]]:
    """Return each published number with ours and a verdict.

    - *not comparable*: the rows have other models or test sets than the study, or only a part of the grid
      behind this number. The reason is given.
    - *match*: our number, rounded to the decimals of the paper, is the published one.
    - *within noise*: the published number lies in our 95 % interval, or ours in the published one.
      Overlapping intervals would be too weak a criterion: those of two win rates of 40 pairs overlap up to
      28 points apart.
    - *deviates*: none of these.

    Args:
        numbers: the report so far.
        read: the results that it was computed from.
    """
    foreign = _foreign(read)
    # With several seeds the grid is as many times larger. The baselines are not trained and have one seed.
    num_seeds = max(1, len({result.seed for result in read if result.languages}))
    return [_verdict(published, numbers, foreign, num_seeds) for published in PUBLISHED]


def _verdict(
    published: Published, numbers: Mapping[str, Any], foreign: str | None, num_seeds: int
) -> dict[str, Any]:
    """Return one published number with ours, a verdict, and a reason if they are not comparable."""
    found: Any = numbers
    for key in published.path:
        found = found.get(key, {})
    ours, low, high = (found.get(key) for key in _KEYS[published.unit])
    reason = foreign or _incomplete(published, numbers, num_seeds)
    if reason is None and ours is None:
        reason = "it could not be computed"
    return {
        "name": published.name,
        "unit": published.unit,
        "published": published.value,
        "published_low": published.low,
        "published_high": published.high,
        "decimals": published.decimals,
        "ours": ours,
        "ours_low": low,
        "ours_high": high,
        "verdict": NOT_COMPARABLE if reason else _compare(published, ours, low, high),
        "reason": reason,
    }


def _compare(published: Published, ours: float, low: float | None, high: float | None) -> str:
    if round(ours, published.decimals) == published.value:
        return MATCH
    near = _inside(published.value, low, high) or _inside(ours, published.low, published.high)
    return NOISE if near else DEVIATES


def _inside(value: float, low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low <= value <= high


def _foreign(read: Sequence[Result]) -> str | None:
    """Return in what the rows differ from the study, or None if they do not."""
    models = sorted({r.model for r in read if paper.canonical_model(r.model) not in paper.PARAMETERS})
    tasks = sorted({r.task for r in read} - set(paper.TASKS))
    sizes = sorted({(r.task, r.num_items) for r in read if r.num_items != paper.TASKS.get(r.task)})
    if models:
        return f"other models: {', '.join(models)}"
    if tasks:
        return f"other tasks: {', '.join(tasks)}"
    if sizes:
        return "other test sets: " + ", ".join(f"{num} items of {task}" for task, num in sizes)
    return None


def _incomplete(published: Published, numbers: Mapping[str, Any], num_seeds: int) -> str | None:
    """Return how much of the grid behind a number has results, or None if all of it has."""
    kind, *rest = published.path
    if kind == "table3":
        size, whole, what = numbers[kind]["num_rows"], paper.NUM_TRAINED_ROWS * num_seeds, "rows"
        # Baselines do not depend on the seed, so they are not multiplied.
        whole += paper.NUM_BASELINE_ROWS
    else:
        found: Any = numbers[kind]
        for key in rest:
            found = found.get(key, {})
        size, what = found.get("total", found.get("num_cells", 0)), "comparisons"
        num_tasks = len(paper.TASKS) if kind == "table2" else 1
        whole = paper.NUM_COMPARISONS[rest[-1]] * num_tasks * num_seeds
    return f"{size} of {whole} {what}" if size < whole else None
