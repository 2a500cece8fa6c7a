"""Figures 2, 7 and 8, and the baselines: accuracies and what training changed, by counts.

Several seeds of a mixture are pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from orchestrator.study import facts
from orchestrator.study.statistics import Count, pool
from orchestrator.study.table import Result

Key = TypeVar("Key", bound=Hashable)
Entry = dict[str, Any]


def pooled(read: Iterable[Result], key: Callable[[Result], Key]) -> dict[Key, Count]:
    """Adds up the counts of the results with the same key, in order of first appearance."""
    groups: dict[Key, list[tuple[int, int]]] = {}
    for result in read:
        groups.setdefault(key(result), []).append(result.count)
    return {name: pool(counts) for name, counts in groups.items()}


def fig2(read: Sequence[Result]) -> list[Entry]:
    """Returns accuracy by model, task, resource group and number of languages; trained cells, 95 % Wilson."""
    shown = [result for result in read if result.languages and result.eval_language in facts.RESOURCE]
    groups = pooled(shown, lambda r: (r.model, r.task, facts.RESOURCE[r.eval_language], r.num_languages))
    return [
        {"model": model, "task": task, "group": group, "num_languages": size, **interval(groups[key])}
        for key in sorted(groups)
        for model, task, group, size in [key]
    ]


def baselines(read: Sequence[Result]) -> list[Entry]:
    """Returns the accuracy of each pretrained model by task and evaluation language, 95 % Wilson."""
    groups = pooled((r for r in read if not r.languages), lambda r: (r.model, r.task, r.eval_language))
    return [
        {"model": model, "task": task, "eval_language": language, **interval(count)}
        for (model, task, language), count in groups.items()
    ]


def fig7(read: Sequence[Result]) -> list[Entry]:
    """Returns what training on en and on en+x added to the pretrained model, in points."""
    before = pooled((r for r in read if not r.languages), lambda r: (r.model, r.task, r.eval_language))
    bilingual = [r for r in read if r.languages == ("en",) or facts.partner(r.languages)]
    after = pooled(bilingual, lambda r: (r.model, r.task, r.languages, r.eval_language))
    return [
        {
            "model": model,
            "task": task,
            "mixture": "+".join(languages),
            "eval_language": language,
            "delta_points": 100 * (count.share - before[model, task, language].share),
        }
        for (model, task, languages, language), count in after.items()
        if language in facts.EVAL_LANGUAGES and (model, task, language) in before
    ]


def fig8(read: Sequence[Result]) -> list[Entry]:
    """Returns the mean over the mixtures of each size, and each mixture's accuracy; trained cells."""
    mixtures = pooled(
        (r for r in read if r.languages),
        lambda r: (r.model, r.task, r.eval_language, r.num_languages, r.languages),
    )
    values: dict[tuple[str, str, str, int], list[float]] = {}
    for (model, task, language, size, _), count in sorted(mixtures.items()):
        values.setdefault((model, task, language, size), []).append(count.share)
    return [
        {
            "model": model,
            "task": task,
            "eval_language": language,
            "num_languages": size,
            "mean": sum(shares) / len(shares),
            "values": shares,
        }
        for (model, task, language, size), shares in values.items()
    ]


def interval(count: Count) -> Mapping[str, Any]:
    """Returns a count as the columns of a table, with its interval."""
    low, high = count.interval
    return {**count._asdict(), "accuracy": count.share, "low": low, "high": high}
