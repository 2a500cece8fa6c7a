"""Intervals and tests over counts and small samples, by scipy and statsmodels.

It knows no models, languages or figures. What is random is seeded, and takes the values sorted, so that the
order of rows changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

NUM_RESAMPLES = 9_999
ALPHA = 0.05


class Count(NamedTuple):
    """Right answers among items: a sample of zeros and ones that is never written out."""

    num_correct: int
    num_items: int

    @property
    def share(self) -> float:
        """The accuracy, which is the sample's mean."""
        return self.num_correct / self.num_items

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the share."""
        return wilson(self.num_correct, self.num_items)

    @property
    def deviation(self) -> float:
        """The sample's standard deviation, with one degree of freedom given up; 0 of a single item."""
        wrong = self.num_items - self.num_correct
        return math.sqrt(self.num_correct * wrong / (self.num_items * max(1, self.num_items - 1)))


def pool(counts: Iterable[tuple[int, int]]) -> Count:
    """Adds counts up."""
    listed = list(counts)
    return Count(sum(right for right, _ in listed), sum(num for _, num in listed))


def wilson(num_correct: float, num_items: float) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a share; (0, 1) when nothing was tried.

    Brown, Cai and DasGupta (2001), "Interval estimation for a binomial proportion"; statsmodels'
    `proportion_confint`, with z = 1.96.
    """
    if num_items == 0:
        return 0.0, 1.0
    low, high = proportion_confint(num_correct, num_items, alpha=ALPHA, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def median_interval(values: Iterable[float], *, seed: int) -> tuple[float, float] | None:
    """Returns the 95 % percentile bootstrap interval of a median; None of fewer than two values.

    Efron and Tibshirani (1993), chapter 13; scipy's `stats.bootstrap`.
    """
    sample = sorted(values)
    if len(sample) < 2:
        return None
    found = stats.bootstrap(
        (sample,),
        numpy.median,
        confidence_level=1 - ALPHA,
        n_resamples=NUM_RESAMPLES,
        method="percentile",
        rng=numpy.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def t_test(first: Count, second: Count) -> float:
    """Returns the p-value of Student's two-sided t-test (pooled variance) of two samples of zeros and ones.

    In closed form from the counts, by scipy's `stats.ttest_ind_from_stats`. Where neither sample varies, t is
    0/0 or infinite: then 1 for equal means and 0 for others; two single items tell nothing, 1.
    """
    if first.deviation == second.deviation == 0:
        lonely = first.num_items == second.num_items == 1
        return 1.0 if lonely or first.share == second.share else 0.0
    result = stats.ttest_ind_from_stats(
        first.share,
        first.deviation,
        first.num_items,
        second.share,
        second.deviation,
        second.num_items,
        equal_var=True,
    )
    return float(result.pvalue)
