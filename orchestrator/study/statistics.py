"""Intervals and tests over counts and small samples, by scipy and statsmodels.

This module depends on no models, languages or figures. Random methods take a seed and sort their values
first, so that the order of rows changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

NUM_RESAMPLES = 9_999
"""Number of bootstrap resamples of a median."""

ALPHA = 0.05
"""Level of significance of all tests; 1 minus it is the level of all intervals."""


class Count(NamedTuple):
    """The number of right answers among items.

    It stands for a sample of zeros and ones that is never written out.
    """

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
        """The sample standard deviation with n - 1 degrees of freedom; 0 for a single item."""
        wrong = self.num_items - self.num_correct
        return math.sqrt(self.num_correct * wrong / (self.num_items * max(1, self.num_items - 1)))


def pool(counts: Iterable[tuple[int, int]]) -> Count:
    """Return the sum of the counts."""
    listed = list(counts)
    return Count(sum(right for right, _ in listed), sum(num for _, num in listed))


def wilson(num_correct: float, num_items: float) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share; (0, 1) without items.

    Brown, Cai and DasGupta (2001), "Interval estimation for a binomial proportion"; statsmodels'
    `proportion_confint`, with z = 1.96.
    """
    if num_items == 0:
        return 0.0, 1.0
    low, high = proportion_confint(num_correct, num_items, alpha=ALPHA, method="wilson")
    # Rounding can put an end slightly outside of [0, 1].
    return max(0.0, float(low)), min(1.0, float(high))


def median_interval(values: Iterable[float], *, seed: int) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of a median; None for fewer than two values.

    Efron and Tibshirani (1993), chapter 13; scipy's `stats.bootstrap`.
    """
    # The resamples pick by position, so the order of the values must not depend on that of the rows.
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
    """Return the p-value of Student's two-sided t-test of two samples of zeros and ones.

    The test pools the variances. It is computed in closed form from the counts, by scipy's
    `stats.ttest_ind_from_stats`. If neither sample varies, t is 0/0 or infinite. Then the p-value is 1 for
    equal means and 0 for different ones. Two single items are no evidence, so their p-value is 1.
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
