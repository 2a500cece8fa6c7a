"""What each cell of the study is worth to its report: the comparisons and rows that need it.

A planner that has to drop cells drops those first that cost the most for the least of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.study import paper

ACCURACY_FORMULAS = {
    "accuracy.md": (
        "100 * mean over cells of (sum of num_correct / sum of num_items) over their test rows;"
        " intervals: Wilson, 95 %; ±: standard deviation over seeds",
        "predictions",
    ),
}
"""File of the `accuracy` report to how its numbers are computed, and from what."""

FORMULAS = {
    "figure2.md": (
        "sum of num_correct, sum of num_items and their quotient over test rows by model, task, resources and"
        " number of languages; intervals: Wilson, 95 %",
        "predictions",
    ),
    "table2.md": (
        "pairs with accuracy(en+x) > accuracy(en), and their share; intervals: Wilson, 95 %",
        "predictions",
    ),
    "figure3.md": (
        "median of 100 * (accuracy(en+x) - accuracy(en)); intervals: percentile bootstrap, seed 0",
        "predictions",
    ),
    "Figures 4 and 9 in numbers: zero-shot against direct exposure": (
        "outcomes of a t-test on the items of the two cells, alpha 0.05",
        "predictions",
    ),
    "table3.md": (
        "ordinary least squares on the accuracies of test rows; intervals: bootstrap, seed 0",
        "predictions",
    ),
    "baselines.md": ("100 * num_correct / num_items of the rows of untrained models", "predictions"),
    "verdicts.md": ("the published number, and ours of the table that it names", "predictions"),
    "hours.md": ("sum of train_seconds * num_processes / 3600 over cells", "rows"),
    "What was run": ("number of labels of the axis", "records"),
}
"""File or heading of a table of the `study` report to how its numbers are computed, and from what."""


def weights(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, int] | None:
    """Return the number of rows and comparisons of the report that would be lost without each cell.

    Counted are one row for each evaluation language (figures 2 and 8, table 3); en+x against en (table 2,
    figure 3); each of these against the untrained model (figure 7); and zero-shot against direct exposure
    (figures 4 and 9). So an untrained model and ``en`` alone are worth the most, and mixtures of five and ten
    languages, which no comparison needs, the least.

    Args:
        configs: id of a cell to its config.

    Returns:
        Id of a cell to that number; None for a sweep that is not the study's.
    """
    named = {cell: _named(config) for cell, config in configs.items()}
    if not all(model and task for model, task, _, _ in named.values()):
        return None
    groups: dict[tuple[str, str, Any], dict[str, tuple[str, ...]]] = {}
    for cell, (model, task, languages, seed) in named.items():
        groups.setdefault((model, task, seed), {})[cell] = languages
    found: dict[str, int] = {}
    for members in groups.values():
        for cell in members:
            num_rows = len(_eval_languages(configs[cell]))
            found[cell] = num_rows * (1 + _num_compared(cell, members)) + _num_zero_shot(cell, members)
    return {cell: found[cell] for cell in configs}


def _named(config: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...], Any]:
    """Return model, task, mixture and seed of a cell; "" for what it does not have."""

    def name(key: str) -> str:
        section = config.get(key)
        return str((section.get("name") if isinstance(section, Mapping) else section) or "")

    return name("model"), name("task"), tuple(config.get("languages") or ()), config.get("seed")


def _eval_languages(config: Mapping[str, Any]) -> tuple[str, ...]:
    section = config.get("evaluation")
    named = section.get("languages") if isinstance(section, Mapping) else None
    return tuple(named or paper.EVAL_LANGUAGES)


def _is_small(languages: tuple[str, ...]) -> bool:
    """Return whether a mixture is ``en`` alone, or en+x."""
    return languages == ("en",) or paper.partner(languages) is not None


def _num_compared(cell: str, members: Mapping[str, tuple[str, ...]]) -> int:
    """Return with how many other cells the report compares a cell in each evaluation language."""
    languages = members[cell]
    small = [other for other, mixture in members.items() if _is_small(mixture) and other != cell]
    if not languages:  # the untrained model
        return len(small)
    if not _is_small(languages):
        return 0
    untrained = sum(1 for mixture in members.values() if not mixture)
    pairs = [other for other in small if (members[other] == ("en",)) != (languages == ("en",))]
    return len(pairs) + untrained


def _num_zero_shot(cell: str, members: Mapping[str, tuple[str, ...]]) -> int:
    """Return in how many comparisons of zero-shot with direct exposure a cell takes part."""
    languages = members[cell]
    missing = paper.left_out(languages)
    partners = [paper.partner(mixture) for mixture in members.values()]
    if missing is not None:
        return int(missing in partners or (missing == "en" and any(partners)))
    if (mine := paper.partner(languages)) is None:
        return 0
    # Direct exposure to English is the mean of all en+x.
    return sum(paper.left_out(mixture) in (mine, "en") for mixture in members.values())
