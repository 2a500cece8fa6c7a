"""All numbers of the report, computed from result rows.

Accuracies and the effects of training come from counts. The seeds of a mixture are pooled, except in the
comparisons of Table 2 and Figure 3.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from fractions import Fraction
from statistics import median
from typing import NamedTuple, TypeVar

from orchestrator.study import paper
from orchestrator.study.comparison import verdicts
from orchestrator.study.coverage import missing
from orchestrator.study.sections import (
    BaselineAccuracy,
    ExpectedCell,
    LanguageAccuracy,
    MedianGain,
    NumbersSection,
    SizeAccuracy,
    TrainingGain,
    TransferPoint,
    WinRate,
)
from orchestrator.study.statistics import ALPHA, Count, median_interval, pool, t_test, table3, wilson
from orchestrator.study.tables.results import Result, Row, results


def report(
    rows: Sequence[Row],
    *,
    seed: int = 0,
    expected: Iterable[ExpectedCell] | None = None,
    where: str = "the table",
) -> NumbersSection:
    """Return every number of the study's tables and figures.

    A number that cannot be computed is None or absent.

    Args:
        rows: the rows of `collect`, or rows from elsewhere with the columns up to `accuracy`.
        seed: the seed of the bootstraps and of the split of Table 3.
        expected: the cells that there should be. By default they are derived from the rows.
        where: the name of the rows in error messages.

    Raises:
        UserError: the rows are not such a table.
    """
    read = results(rows, where=where)
    found = comparisons(read)
    tasks = sorted({result.task for result in read})
    wins, fit, gains = table2(found), table3(read, seed=seed), fig3(found, tasks, seed=seed)
    return NumbersSection(
        num_rows=len(read),
        num_cells=len({(r.model, r.task, r.languages, r.seed) for r in read}),
        missing=missing(read, expected),
        table2=wins,
        table3=fit,
        fig2=fig2(read),
        fig3=gains,
        fig4=fig4(read),
        fig7=fig7(read),
        fig8=fig8(read),
        baselines=baselines(read),
        verdicts=verdicts(wins, gains, fit, read),
    )


Key = TypeVar("Key", bound=Hashable)


def pooled(read: Iterable[Result], key: Callable[[Result], Key]) -> dict[Key, Count]:
    """Return the summed counts of the results by key, in order of first appearance."""
    groups: dict[Key, list[tuple[int, int]]] = {}
    for result in read:
        groups.setdefault(key(result), []).append(result.count)
    return {name: pool(counts) for name, counts in groups.items()}


def fig2(read: Sequence[Result]) -> list[SizeAccuracy]:
    """Return accuracy by model, task, resource group and number of languages, with 95 % Wilson intervals.

    Only trained cells count.
    """
    shown = [result for result in read if result.languages and result.eval_language in paper.RESOURCE]
    groups = pooled(shown, lambda r: (r.model, r.task, paper.RESOURCE[r.eval_language], r.num_languages))
    return [
        SizeAccuracy(model, task, group, size, *interval(groups[key]))
        for key in sorted(groups)
        for model, task, group, size in [key]
    ]


def baselines(read: Sequence[Result]) -> list[BaselineAccuracy]:
    """Return each pretrained model's accuracy by task and evaluation language, with Wilson intervals."""
    groups = pooled((r for r in read if not r.languages), lambda r: (r.model, r.task, r.eval_language))
    return [
        BaselineAccuracy(model, task, language, *interval(count))
        for (model, task, language), count in groups.items()
    ]


def fig7(read: Sequence[Result]) -> list[TrainingGain]:
    """Return the change in points from the pretrained model to training on en and on en+x."""
    before = pooled((r for r in read if not r.languages), lambda r: (r.model, r.task, r.eval_language))
    # The paper's figure has rows for English alone and for the mixtures of two.
    bilingual = [r for r in read if r.languages == ("en",) or paper.partner(r.languages)]
    after = pooled(bilingual, lambda r: (r.model, r.task, r.languages, r.eval_language))
    return [
        TrainingGain(
            model=model,
            task=task,
            mixture="+".join(languages),
            eval_language=language,
            delta_points=100 * (count.share - before[model, task, language].share),
        )
        for (model, task, languages, language), count in after.items()
        if language in paper.EVAL_LANGUAGES and (model, task, language) in before
    ]


def fig8(read: Sequence[Result]) -> list[LanguageAccuracy]:
    """Return the mean over the mixtures of each size, and each mixture's accuracy, for trained cells."""
    mixtures = pooled(
        (r for r in read if r.languages),
        lambda r: (r.model, r.task, r.eval_language, r.num_languages, r.languages),
    )
    values: dict[tuple[str, str, str, int], list[float]] = {}
    for (model, task, language, size, _), count in sorted(mixtures.items()):
        values.setdefault((model, task, language, size), []).append(count.share)
    return [
        LanguageAccuracy(model, task, language, size, mean=sum(shares) / len(shares), values=shares)
        for (model, task, language, size), shares in values.items()
    ]


def interval(count: Count) -> tuple[int, int, float, float, float]:
    """Return right answers, items, accuracy, and the ends of its 95 % Wilson interval."""
    return *count, count.share, *count.interval


SETTINGS = ("en", "direct", "transfer")


class Comparison(NamedTuple):
    """The gain from en to en+x in one evaluation language.

    Attributes:
        task: the task.
        setting: the relation of the evaluation language to en+x; see `paper.SETTINGS`.
        gain: the difference of the accuracies. It is exact, so that a tie is never counted as a win.
    """

    task: str
    setting: str
    gain: Fraction


def comparisons(read: Iterable[Result]) -> list[Comparison]:
    """Return the comparisons whose two cells both have results."""
    alone: dict[tuple[str, ...], Result] = {}
    pairs: list[tuple[str, Result]] = []
    for result in read:
        if result.eval_language not in paper.EVAL_LANGUAGES:
            continue
        if result.languages == ("en",):
            alone[_key(result)] = result
        elif (x := paper.partner(result.languages)) is not None:
            pairs.append((x, result))
    return [
        Comparison(
            result.task, _setting(x, result.eval_language), _share(result) - _share(alone[_key(result)])
        )
        for x, result in pairs
        if _key(result) in alone
    ]


def table2(found: Sequence[Comparison]) -> dict[str, WinRate]:
    """Return the share of wins in each setting, with 95 % Wilson intervals.

    A win is a strictly higher accuracy, by exact counts.
    """
    table = {}
    for setting in SETTINGS:
        gains = [comparison.gain for comparison in found if comparison.setting == setting]
        wins, total = sum(gain > 0 for gain in gains), len(gains)
        low, high = wilson(wins, total) if total else (None, None)
        rate = wins / total if total else None
        table[setting] = WinRate(wins, total, rate, low, high)
    return table


def fig3(found: Sequence[Comparison], tasks: Iterable[str], *, seed: int) -> dict[str, dict[str, MedianGain]]:
    """Return the median gain in points by task and setting, with percentile bootstrap intervals."""
    return {task: {setting: _median(found, task, setting, seed) for setting in SETTINGS} for task in tasks}


def _median(found: Sequence[Comparison], task: str, setting: str, seed: int) -> MedianGain:
    points = [float(100 * gain) for name, where, gain in found if (name, where) == (task, setting)]
    low, high = median_interval(points, seed=seed) or (None, None)
    return MedianGain(median(points) if points else None, low, high, len(points))


def _setting(x: str, eval_language: str) -> str:
    """Return how the evaluation language relates to en+x."""
    return "en" if eval_language == "en" else "direct" if eval_language == x else "transfer"


def _key(result: Result) -> tuple[str, ...]:
    # Cells are compared within one seed, so that only the mixture differs.
    return result.model, result.task, result.seed, result.eval_language


def _share(result: Result) -> Fraction:
    return Fraction(result.num_correct, result.num_items)


def fig4(read: Sequence[Result]) -> list[TransferPoint]:
    """Return direct and zero-shot accuracies, and whether zero-shot is better, the same or worse.

    The verdict is that of Student's two-sided t-test (pooled variance) on the zeros and ones of the items,
    with alpha = 0.05. It is not corrected for the number of tests. For English, the items of the four
    mixtures en+x form one sample. While a sweep is unfinished, these are the mixtures with results.
    """
    direct = pooled(
        (r for r in read if (x := paper.partner(r.languages)) and r.eval_language in ("en", x)),
        lambda r: (r.model, r.task, r.eval_language),
    )
    # The mixture without x is evaluated in x itself, which it reaches only by transfer.
    zero_shot = pooled(
        (r for r in read if paper.left_out(r.languages) == r.eval_language),
        lambda r: (r.model, r.task, r.eval_language, r.num_languages),
    )
    return [
        TransferPoint(model, task, language, size, *_compare(direct[model, task, language], count))
        for (model, task, language, size), count in sorted(zero_shot.items())
        if (model, task, language) in direct
    ]


def _compare(direct: Count, zero_shot: Count) -> tuple[float, float, float, str]:
    p_value = t_test(zero_shot, direct)
    better = zero_shot.share > direct.share
    outcome = "same" if p_value >= ALPHA else "better" if better else "worse"
    return direct.share, zero_shot.share, p_value, outcome
