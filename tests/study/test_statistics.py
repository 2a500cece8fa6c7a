"""Intervals and tests from counts, against the published values and against the items written out."""

from __future__ import annotations

import math
import warnings

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats

from orchestrator.study.statistics import Count, median_interval, t_test, wilson


@pytest.mark.parametrize(
    ("num_correct", "num_items", "low", "high"),
    [
        (30, 40, 59.8, 85.8),
        (35, 40, 73.9, 94.5),
        (119, 160, 67.1, 80.5),
        (0, 10, 0.0, 27.8),
        (10, 10, 72.2, 100.0),
    ],
)
def test_wilson_gives_the_published_intervals(
    num_correct: int, num_items: int, low: float, high: float
) -> None:
    assert [round(100 * share, 1) for share in wilson(num_correct, num_items)] == [low, high]


def test_of_nothing_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert median_interval([], seed=0) is None
    assert median_interval([3.0], seed=0) is None


def counts() -> some.SearchStrategy[Count]:
    return some.integers(2, 60).flatmap(lambda num: some.builds(Count, some.integers(0, num), some.just(num)))


@given(counts(), counts())
def test_the_t_test_from_counts_is_scipys_on_the_items_written_out(first: Count, second: Count) -> None:
    items = [
        [1] * count.num_correct + [0] * (count.num_items - count.num_correct) for count in (first, second)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, on samples that do not vary
        written_out = float(stats.ttest_ind(*items).pvalue)
    if math.isnan(written_out):  # neither sample varies
        assert first.share == second.share and t_test(first, second) == 1.0
    else:
        assert t_test(first, second) == pytest.approx(written_out, abs=1e-9)
    assert t_test(first, second) == pytest.approx(t_test(second, first))


def test_the_t_test_decides_where_nothing_varies() -> None:
    assert t_test(Count(250, 250), Count(250, 250)) == 1.0
    assert t_test(Count(0, 250), Count(250, 250)) == 0.0
    assert t_test(Count(0, 1), Count(1, 1)) == 1.0


def test_the_deviation_of_a_single_item_is_no_division_by_zero() -> None:
    assert Count(1, 1).deviation == 0.0
    assert Count(3, 4).deviation == pytest.approx(numpy.std([1, 1, 1, 0], ddof=1))


def test_the_interval_of_a_median_is_seeded_and_knows_no_order() -> None:
    values = [float(value) for value in numpy.random.default_rng(1).normal(3, 2, size=300)]
    low, high = median_interval(values, seed=7) or (math.nan, math.nan)
    assert low < float(numpy.median(values)) < high < low + 2
    assert median_interval(reversed(values), seed=7) == (low, high)
    assert median_interval(values, seed=8) != (low, high)


def test_equal_values_have_a_median_without_width() -> None:
    assert median_interval([0.4] * 20, seed=0) == (0.4, 0.4)


def test_the_bootstrap_covers_the_median_about_as_often_as_it_says() -> None:
    chance = numpy.random.default_rng(0)
    intervals = [median_interval(chance.normal(size=40), seed=seed) for seed in range(60)]
    assert sum(low <= 0 <= high for low, high in filter(None, intervals)) >= 52
