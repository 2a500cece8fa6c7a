"""From result rows to one line a cell, and to mean and spread over cells that repeat each other. Pure.

Both `sweep best` and the general report stand on it, so that they never disagree. It knows neither the store
nor what a metric means.
"""

from __future__ import annotations

import contextlib
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")
Row = Mapping[str, Any]
Direction = Literal["min", "max"]

ENGINE_COLUMNS = frozenset({"cell", "sweep", "revision", "stage", "attempts", "seconds", "code"})
"""The columns of `collect` that are no result."""

NOTES = "notes"
"""A text column of what the reader should know of a row; it tells no rows apart."""

MAX_VARIANTS = 8
"""Of how many rows of a cell, told apart by their text, a metric becomes a column each; of more the mean."""

_LOWER = frozenset(
    [
        "loss",
        "error",
        "err",
        "perplexity",
        "ppl",
        "nll",
        "bpb",
        "bpc",
        "mse",
        "mae",
        "rmse",
        "wer",
        "cer",
        "fid",
        "seconds",
        "s",
        "ms",
        "time",
        "latency",
        "memory",
        "distance",
        "regret",
        "divergence",
        "kl",
    ]
)
_HIGHER = frozenset(
    [
        "accuracy",
        "acc",
        "f1",
        "score",
        "reward",
        "return",
        "auc",
        "auroc",
        "bleu",
        "rouge",
        "chrf",
        "precision",
        "recall",
        "em",
        "exact",
        "map",
        "r2",
        "share",
        "pass",
        "correct",
        "throughput",
        "similarity",
        "dice",
        "iou",
        "win",
        "wins",
    ]
)

_NEITHER = frozenset(
    [
        "std",
        "stderr",
        "stdev",
        "sd",
        "sem",
        "se",
        "var",
        "variance",
        "ci",
        "low",
        "high",
        "lower",
        "upper",
        "drop",
        "gap",
        "diff",
        "delta",
        "false",
        "scale",
        "target",
        "threshold",
    ]
)
"""Words of metrics that are about another one: its spread, its bounds, its parts."""


class CellResult(NamedTuple):
    """What one cell returned.

    Attributes:
        cell: its id.
        axes: axis to the value that ran.
        metrics: column to number; truth values count as 0 and 1.
    """

    cell: str
    axes: Mapping[str, Any]
    metrics: Mapping[str, float]


class Spread(NamedTuple):
    """One metric over the cells of a group.

    Attributes:
        n: number of cells.
        mean: arithmetic mean.
        sd: sample standard deviation (n - 1), None of a single cell.
        low: smallest value.
        high: largest value.
    """

    n: int
    mean: float
    sd: float | None
    low: float
    high: float


class RepeatGroup(NamedTuple):
    """Cells that agree in all axes but those that the spread is taken over."""

    axes: Mapping[str, Any]
    cells: tuple[str, ...]
    metrics: Mapping[str, Spread]


def is_seed(axis: str) -> bool:
    """Return whether an axis repeats cells with other random numbers, such as ``seed`` or ``data.seed``."""
    return re.split(r"[._]", axis.lower())[-1] == "seed"


def direction(metric: str) -> Direction | None:
    """Return whether a lower or a higher value is better, by its name; None when that shows neither."""
    name = re.sub(r"\[.*\]$", "", metric.removesuffix(" (mean)")).lower()
    if re.search(r"(_per_|/)(s|sec|second|minute|hour)$", name):
        return "max"
    words = re.split(r"[^a-z0-9]+", name)
    if _NEITHER & set(words):
        return None
    if _LOWER & set(words):
        return "min"
    return "max" if _HIGHER & set(words) else None


def axes_of(rows: Sequence[Row], known: Iterable[str]) -> list[str]:
    """Return the axes of which the rows hold more than one value."""
    return [axis for axis in known if len({str(row.get(axis)) for row in rows}) > 1]


def axes_of_table(rows: Sequence[Row]) -> list[str]:
    """Return the columns between ``cell`` and ``sweep``, where `collect` writes the axes, if any."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if "cell" not in names or "sweep" not in names:
        return []
    return names[names.index("cell") + 1 : names.index("sweep")]


def labelled(rows: Sequence[Row], labels: Mapping[str, Mapping[str, str]]) -> Sequence[Row]:
    """Return rows whose axes are the cells' own: a stage may return a column with the name of an axis.

    Args:
        rows: as `collect` gives them.
        labels: cell to axis to label, as text.
    """
    return [
        {
            **row,
            **{
                axis: label
                for axis, label in labels.get(str(row.get("cell")), {}).items()
                if axis in row and not _is_labelled(row[axis], label)
            },
        }
        for row in rows
    ]


def _is_labelled(value: Any, label: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(label) == value
    return str(value).lower() == label.lower() or (value is None and label == "null")


def by_cell(rows: Sequence[Row], *, axes: Sequence[str], columns: Iterable[str] = ()) -> list[CellResult]:
    """Return one result a cell, in the order of the rows.

    Rows of one stage and cell that differ in a text column (a split, a language) give a column each, named
    ``accuracy[split=test]``; rows that nothing tells apart, such as one an epoch, count by their last. A
    metric that several stages return is named after each: ``fit.loss``. Numbers in a nested result are
    columns too: ``eval.acc``.

    Args:
        rows: as `collect` gives them.
        axes: names of the sweep's axes.
        columns: names of the sweep's other columns, which are no results.
    """
    skipped = ENGINE_COLUMNS | {NOTES} | set(axes) | set(columns)
    owners: dict[str, set[str]] = {}
    for row in rows:
        for name in _numbers(row, skipped):
            owners.setdefault(name, set()).add(_stage(row)[0])
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((str(row.get("cell")), _stage(row)[0]), []).append(row)
    found: dict[str, CellResult] = {}
    for (cell, stage), group in grouped.items():
        result = found.setdefault(
            cell, CellResult(cell, {axis: group[0][axis] for axis in axes if axis in group[0]}, {})
        )
        for name, value in _pivoted(group, skipped).items():
            base = name.partition("[")[0]
            several = len(owners.get(base.removesuffix(" (mean)"), ())) > 1
            result.metrics[f"{stage}.{name}" if several else name] = value  # type: ignore[index]
    return list(found.values())


def _stage(row: Row) -> tuple[str, str]:
    """Split ``prepare[en]`` into the stage and the label of its instance."""
    stage, _, label = str(row.get("stage", "")).partition("[")
    return stage, label.rstrip("]")


def _numbers(row: Row, skipped: frozenset[str] | set[str]) -> dict[str, float]:
    """Return the numbers of a row by column; those in a mapping are ``eval.acc``."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if name in skipped:
            continue
        if isinstance(value, Mapping):
            found |= _numbers({f"{name}.{inner}": item for inner, item in value.items()}, skipped)
        elif isinstance(value, bool | int | float):
            with contextlib.suppress(OverflowError):  # an integer that no float can hold
                if math.isfinite(value):
                    found[name] = float(value)
    return found


def _pivoted(rows: Sequence[Row], skipped: frozenset[str] | set[str]) -> dict[str, float]:
    """Return the metrics of one cell's rows of one stage, by column."""
    keys = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if name not in skipped
        and all(isinstance(row.get(name), str | None) for row in rows)
        and len({row.get(name) for row in rows}) > 1
    ]
    labels = [
        ",".join(filter(None, [_stage(row)[1], *(f"{key}={row.get(key)}" for key in keys)])) for row in rows
    ]
    many = len(set(labels)) > MAX_VARIANTS
    lists: dict[str, list[float]] = {}
    found: dict[str, float] = {}
    for row, label in zip(rows, labels, strict=True):
        for name, value in _numbers(row, skipped).items():
            lists.setdefault(name, []).append(value)
            found[f"{name}[{label}]" if label else name] = value
    return {f"{name} (mean)": _mean(values) for name, values in lists.items()} if many else found


def notes_of(rows: Iterable[Row]) -> list[str]:
    """Return the notes of the rows, each with the number of its cells."""
    cells: dict[str, set[str]] = {}
    for row in rows:
        if isinstance(note := row.get(NOTES), str) and note:
            cells.setdefault(note, set()).add(str(row.get("cell")))
    return [f"{len(names)} cell{'' if len(names) == 1 else 's'}: {note}" for note, names in cells.items()]


def metrics_of(results: Iterable[CellResult]) -> list[str]:
    """Return the names of all metrics, in the order of their first appearance."""
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def spread_over(results: Sequence[CellResult], over: Sequence[str]) -> list[RepeatGroup]:
    """Return mean and spread of each metric over the cells that agree in all other axes."""
    groups: dict[tuple[tuple[str, Any], ...], list[CellResult]] = {}
    for result in results:
        rest = tuple((axis, value) for axis, value in result.axes.items() if axis not in over)
        groups.setdefault(rest, []).append(result)
    return [
        RepeatGroup(dict(rest), tuple(each.cell for each in group), _spreads(group))
        for rest, group in groups.items()
    ]


def _spreads(group: Sequence[CellResult]) -> dict[str, Spread]:
    return {
        name: spread([each.metrics[name] for each in group if name in each.metrics])
        for name in metrics_of(group)
    }


def spread(values: Sequence[float]) -> Spread:
    """Return mean and spread of at least one value."""
    sd = None
    with contextlib.suppress(OverflowError):  # a spread that no float can hold
        sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(len(values), _mean(values), sd, min(values), max(values))


def _mean(values: Sequence[float]) -> float:
    try:
        return statistics.fmean(values)
    except OverflowError:  # of the sum alone
        return statistics.mean(values)


def evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """Return at most so many items: the first, the last, and evenly many between."""
    if len(items) <= most:
        return items
    last = len(items) - 1
    return [items[round(k * last / (most - 1))] for k in range(most)]


def number_text(value: float) -> str:
    """Return a number with four significant digits; whole numbers up to a million as they are."""
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def spread_text(found: Spread) -> str:
    """Return ``0.421 ± 0.012 (n=3)``; without a spread of a single cell."""
    if found.sd is None:
        return number_text(found.mean)
    return f"{number_text(found.mean)} ± {found.sd:.2g} (n={found.n})"
