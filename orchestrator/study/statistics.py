"""Intervals and tests over counts and small samples, and the regression of Table 3, by scipy and statsmodels.

Random methods take a seed and sort their values first, so that the order of rows changes nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from orchestrator.study.sections import Coefficient, Regression
from orchestrator.study.tables.results import Result

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


Array = NDArray[numpy.float64]
COEFFICIENTS = (
    "intercept",
    "log10_parameters",
    "qwen",
    "math",
    "pretrained",
    "language_in_training",
    "sqrt_languages",
)
"""Names of the columns of the design matrix, in order."""

TRAIN_SHARE = 0.7
NUM_FITS = 2_000
_BATCH = 250
"""Number of resamples to solve at a time, to bound memory."""

_TOLERANCE = 1e-9
"""Threshold below which a singular value, an eigenvalue or a range counts as zero."""


def table3(read: Sequence[Result], *, seed: int) -> Regression:
    """Return the coefficients with 95 % bootstrap intervals, and R2 on rows that were held out.

    The fit is ordinary least squares by statsmodels. The coefficients are fitted to all rows, so that they
    do not depend on the seed. R2 is that of a model fitted to a random 70 % of the rows, evaluated on the
    other 30 %.

    The bootstraps resample rows, and for R2 the held-out rows, and take percentiles (Efron and Tibshirani
    1993, chapter 13). The rows of one cell are not independent, so these intervals are narrow. A regressor
    that the others explain (one model, one task) is left out and named under `dropped`.
    """
    unknown = sorted({result.model for result in read if result.num_parameters is None})
    if unknown:
        return _nothing(f"num_parameters is not known of {', '.join(unknown)}")
    if not read:
        return _nothing("there are no rows")
    design, y = _design(read), numpy.array([result.accuracy for result in read])
    kept = _independent(design)
    if len(kept) == 1:
        return _nothing("nothing that the model knows differs between the rows")
    if len(read) < 2 * (len(kept) + 1):
        return _nothing(f"{len(read)} rows are too few for {len(kept)} coefficients")
    values = OLS(y, design[:, kept]).fit().params
    chance = numpy.random.default_rng(seed)
    r2, r2_low, r2_high = _held_out_r2(design[:, kept], y, chance)
    low, high = _bootstrap(design[:, kept], y, chance)
    coefficients = dict.fromkeys(COEFFICIENTS, Coefficient())
    for place, column in enumerate(kept):
        ends = map(_finite, (values[place], low[place], high[place]))
        coefficients[COEFFICIENTS[column]] = Coefficient(*ends)
    dropped = {
        name: "the rows do not tell it from the other regressors"
        for column, name in enumerate(COEFFICIENTS)
        if column not in kept
    }
    return Regression(coefficients, r2, r2_low, r2_high, len(read), dropped, reason=None)


def _nothing(reason: str) -> Regression:
    return Regression(dict.fromkeys(COEFFICIENTS, Coefficient()), None, None, None, 0, {}, reason)


def _design(read: Sequence[Result]) -> Array:
    """Return the design matrix: a row for each result, with the columns of `COEFFICIENTS`."""
    return numpy.array(
        [
            (
                1.0,
                math.log10(result.num_parameters or 1),
                result.family.startswith("qwen"),
                result.task == "math",
                not result.languages,
                result.eval_language in result.languages,
                math.sqrt(result.num_languages / 10),
            )
            for result in read
        ],
        dtype=float,
    )


def _independent(design: Array) -> list[int]:
    """Return the columns that are not linear combinations of the kept columns before them."""
    kept: list[int] = []
    for column in range(design.shape[1]):
        # Columns of unit length make the rank independent of the units of the regressors.
        scaled = design[:, [*kept, column]] / numpy.linalg.norm(design[:, [*kept, column]], axis=0).clip(
            1e-300
        )
        if numpy.linalg.matrix_rank(scaled, tol=_TOLERANCE * math.sqrt(len(design))) == len(kept) + 1:
            kept.append(column)
    return kept


def _held_out_r2(
    design: Array, y: Array, chance: numpy.random.Generator
) -> tuple[float | None, float | None, float | None]:
    """Return R2 on the held-out rows with its interval; None if their accuracies do not vary."""
    order = chance.permutation(len(y))
    num_train = round(TRAIN_SHARE * len(y))
    train, test = order[:num_train], order[num_train:]
    with warnings.catch_warnings(action="ignore"):  # with few rows, a regressor may be constant
        predicted = OLS(y[train], design[train]).fit().predict(design[test])
    if numpy.ptp(y[test]) < _TOLERANCE:
        return None, None, None
    # A resample may consist of equal accuracies. Its R2 is not finite, and it is left out.
    again = chance.integers(len(test), size=(NUM_FITS, len(test)))
    shares = _r2(y[test][again], predicted[again])
    low, high = numpy.quantile(shares[numpy.isfinite(shares)], [ALPHA / 2, 1 - ALPHA / 2])
    return float(_r2(y[test], predicted)), float(low), float(high)


def _r2(y: Array, predicted: Array) -> Array:
    """Return the explained share of the variance of each sample along the last axis."""
    spread = ((y - y.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    residual = ((y - predicted) ** 2).sum(axis=-1)
    with numpy.errstate(invalid="ignore", divide="ignore"):
        return numpy.asarray(1 - residual / spread)


def _bootstrap(design: Array, y: Array, chance: numpy.random.Generator) -> tuple[Array, Array]:
    """Return the percentile interval of each coefficient, over resamples in which all can be estimated.

    Fitting resamples one by one would be slow, so whole batches are solved by normal equations. A resample
    is a vector of counts: how often it contains each row. Its normal equations sum the outer products of
    the rows, which are computed once, weighted by these counts. Normal equations square the condition
    number of the design. Hence they are solved in an orthonormal basis of its columns, and the solutions
    are transformed back at the end.
    """
    num_rows, num_columns = design.shape
    basis, triangle = numpy.linalg.qr(design)
    products = numpy.einsum("ni,nj->nij", basis, basis).reshape(num_rows, -1)
    found = []
    for _ in range(0, NUM_FITS, _BATCH):
        times = chance.multinomial(num_rows, numpy.full(num_rows, 1 / num_rows), size=_BATCH).astype(float)
        grams = (times @ products).reshape(-1, num_columns, num_columns)
        sides = (times * y) @ basis
        # A resample without, for example, any baseline cannot estimate every coefficient, so it is left
        # out.
        whole = numpy.linalg.eigvalsh(grams)[:, 0] > _TOLERANCE
        found.append(numpy.linalg.solve(grams[whole], sides[whole][..., None])[..., 0])
    solved = numpy.linalg.solve(triangle, numpy.concatenate(found).T)
    if not solved.size:
        return (nothing := numpy.full(num_columns, numpy.nan)), nothing
    low, high = numpy.quantile(solved, [ALPHA / 2, 1 - ALPHA / 2], axis=1)
    return low, high


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
