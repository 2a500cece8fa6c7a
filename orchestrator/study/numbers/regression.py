"""Table 3: a linear model of accuracy over all rows, including the baselines."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy
from numpy.typing import NDArray
from statsmodels.regression.linear_model import OLS

from orchestrator.study.statistics import ALPHA
from orchestrator.study.tables.results import Result

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
NUM_RESAMPLES = 2_000
_BATCH = 250
"""Number of resamples to solve at a time, to bound memory."""

_TOLERANCE = 1e-9
"""Threshold below which a singular value, an eigenvalue or a range counts as zero."""


def table3(read: Sequence[Result], *, seed: int) -> dict[str, Any]:
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
    coefficients = {name: dict.fromkeys(("value", "low", "high")) for name in COEFFICIENTS}
    for place, column in enumerate(kept):
        ends = (values[place], low[place], high[place])
        coefficients[COEFFICIENTS[column]] = dict(
            zip(("value", "low", "high"), map(_finite, ends), strict=True)
        )
    dropped = {
        name: "the rows do not tell it from the other regressors"
        for column, name in enumerate(COEFFICIENTS)
        if column not in kept
    }
    fit = {"r2": r2, "r2_low": r2_low, "r2_high": r2_high, "num_rows": len(read)}
    return {"coefficients": coefficients, **fit, "dropped": dropped, "reason": None}


def _nothing(reason: str) -> dict[str, Any]:
    empty = {name: dict.fromkeys(("value", "low", "high")) for name in COEFFICIENTS}
    fit = {"r2": None, "r2_low": None, "r2_high": None, "num_rows": 0}
    return {"coefficients": empty, **fit, "dropped": {}, "reason": reason}


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
    again = chance.integers(len(test), size=(NUM_RESAMPLES, len(test)))
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
    for _ in range(0, NUM_RESAMPLES, _BATCH):
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
