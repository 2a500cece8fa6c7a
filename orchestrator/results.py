"""Result rows, combined to one line per cell, and to mean and spread over repeated cells. Pure.

`sweep best` and the general report both use it, so that they always agree. It depends neither on the store
nor on the meaning of a metric.
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
"""The columns of `collect` that are not results."""

NOTES = "notes"
"""A text column with notes for the reader. It does not distinguish rows from each other."""

MAX_VARIANTS = 8
"""Up to this many rows of a cell, each becomes a column of its own; of more, only the mean is shown."""

_LOWER = frozenset(
    """loss error err perplexity ppl nll bpb bpc mse mae rmse wer cer fid seconds s ms time latency memory
    distance regret divergence kl""".split()
)
"""Words of metrics of which a lower value is better."""
_HIGHER = frozenset(
    """accuracy acc f1 score reward return auc auroc bleu rouge chrf precision recall em exact map r2 share
    pass correct throughput similarity dice iou win wins""".split()
)
"""Words of metrics of which a higher value is better."""

_NEITHER = frozenset(
    """std stderr stdev sd sem se var variance ci low high lower upper drop gap diff delta false scale
    target threshold""".split()
)
"""Words of metrics that describe another metric: its spread, its bounds or its parts."""


class CellResult(NamedTuple):
    """The results of one cell.

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
        sd: sample standard deviation (n - 1); None for a single cell.
        low: smallest value.
        high: largest value.
    """

    n: int
    mean: float
    sd: float | None
    low: float
    high: float


class RepeatGroup(NamedTuple):
    """Cells that agree in all axes, except in those over which the spread is taken.

    Attributes:
        axes: the common axes and values.
        cells: ids of the cells.
        metrics: column to its spread.
    """

    axes: Mapping[str, Any]
    cells: tuple[str, ...]
    metrics: Mapping[str, Spread]


def is_seed(axis: str) -> bool:
    """Return whether an axis repeats cells with other random numbers, such as ``seed`` or ``data.seed``."""
    return re.split(r"[._]", axis.lower())[-1] == "seed"


def direction(metric: str) -> Direction | None:
    """Return whether lower or higher values of a metric are better, judged by its name; None if unclear."""
    name = re.sub(r"\[.*\]$", "", metric.removesuffix(" (mean)")).lower()
    # A rate, such as tokens_per_s. This comes first, because the word "s" alone means a duration.
    if re.search(r"(_per_|/)(s|sec|second|minute|hour)$", name):
        return "max"
    words = re.split(r"[^a-z0-9]+", name)
    # Before the others: accuracy_std contains "accuracy", but more of it is not better.
    if _NEITHER & set(words):
        return None
    if _LOWER & set(words):
        return "min"
    return "max" if _HIGHER & set(words) else None


def axes_of(rows: Sequence[Row], known: Iterable[str]) -> list[str]:
    """Return the axes of which the rows hold more than one value."""
    return [axis for axis in known if len({str(row.get(axis)) for row in rows}) > 1]


def axes_of_table(rows: Sequence[Row]) -> list[str]:
    """Return the columns between ``cell`` and ``sweep``, where `collect` writes the axes, if any.

    A table of several sweeps or revisions may hold cells of the same labels that differ in what no label
    shows. Then ``sweep`` and ``revision`` are axes too, so that such cells are not taken for repetitions.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if "cell" not in names or "sweep" not in names:
        return []
    axes = names[names.index("cell") + 1 : names.index("sweep")]
    for name in ("sweep", "revision"):
        cells: dict[tuple[str, ...], set[str]] = {}
        for row in rows:
            cells.setdefault(tuple(str(row.get(axis)) for axis in axes), set()).add(str(row.get("cell")))
        if any(len(alike) > 1 for alike in cells.values()) and axes_of(rows, [name]):
            axes.append(name)
    return axes


def labelled(rows: Sequence[Row], labels: Mapping[str, Mapping[str, str]]) -> Sequence[Row]:
    """Return rows with the cells' own labels in the axis columns.

    A stage may return a column with the name of an axis, whose value would otherwise replace the label.

    Args:
        rows: rows of `collect`.
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
    """Whether a value is the one that a label shows, so that it can keep its type."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(label) == value
    return str(value).lower() == label.lower() or (value is None and label == "null")


def by_cell(rows: Sequence[Row], *, axes: Sequence[str], columns: Iterable[str] = ()) -> list[CellResult]:
    """Return one result per cell, in the order of the rows.

    Rows of one stage and cell may differ in a text column, such as a split or a language. Each then gives a
    column of its own, named ``accuracy[split=test]``. Of rows that differ in no text column, such as one per
    epoch, the last one counts. A metric that several stages return gets the stage's name: ``fit.loss``.
    Numbers in a nested result become columns too: ``eval.acc``.

    Args:
        rows: rows of `collect`.
        axes: names of the sweep's axes.
        columns: names of the sweep's other columns, which are not results.
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
    """Return the numbers of a row by column; those in a mapping have dotted names, such as ``eval.acc``."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if name in skipped:
            continue
        if isinstance(value, Mapping):
            found |= _numbers({f"{name}.{inner}": item for inner, item in value.items()}, skipped)
        elif isinstance(value, bool | int | float):
            with contextlib.suppress(OverflowError):  # an integer too large for a float
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
    # The label of a row is built from the columns that are text in all rows and differ between them.
    many = len(set(labels)) > MAX_VARIANTS
    lists: dict[str, list[float]] = {}
    found: dict[str, float] = {}
    for row, label in zip(rows, labels, strict=True):
        for name, value in _numbers(row, skipped).items():
            lists.setdefault(name, []).append(value)
            found[f"{name}[{label}]" if label else name] = value
    return {f"{name} (mean)": _mean(values) for name, values in lists.items()} if many else found


def notes_of(rows: Sequence[Row], metrics: Iterable[str] = ()) -> list[str]:
    """Return the notes of the rows, each with the number of its cells, and the metrics that are texts."""
    cells: dict[str, set[str]] = {}
    for row in rows:
        if isinstance(note := row.get(NOTES), str) and note:
            cells.setdefault(note, set()).add(str(row.get("cell")))
    notes = [f"{len(names)} cell{'' if len(names) == 1 else 's'}: {note}" for note, names in cells.items()]
    return [*notes, *texts_among_numbers(rows, metrics)]


def texts_among_numbers(rows: Iterable[Row], metrics: Iterable[str]) -> list[str]:
    """Return a line for each metric that is a text in some rows, such as ``93.5%``: those count nowhere.

    Args:
        rows: rows of `collect`.
        metrics: names from `metrics_of`.
    """
    names = {name.partition("[")[0] for name in metrics}
    names |= {name.partition(".")[2] for name in names}  # fit.loss, where several stages return a loss
    texts: dict[str, dict[str, str]] = {}
    for row in rows:
        for name in names & row.keys():
            if isinstance(row[name], str) and row[name]:
                texts.setdefault(name, {})[str(row.get("cell"))] = row[name]
    return [
        f"{name} is a text, which counts in no number, in {len(cells)} cell{'' if len(cells) == 1 else 's'}: "
        + ", ".join(f"{cell} ({text[:20]!r})" for cell, text in list(cells.items())[:3])
        + (f" and {len(cells) - 3} more" if len(cells) > 3 else "")
        for name, cells in sorted(texts.items())
    ]


def metrics_of(results: Iterable[CellResult]) -> list[str]:
    """Return the names of all metrics, in the order of their first appearance."""
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def spread_over(results: Sequence[CellResult], over: Sequence[str]) -> list[RepeatGroup]:
    """Return mean and spread of each metric over the cells that agree in all other axes.

    Args:
        results: the results of cells.
        over: the axes over which the spread is taken.
    """
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
    with contextlib.suppress(OverflowError):  # a spread too large for a float
        sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(len(values), _mean(values), sd, min(values), max(values))


def _mean(values: Sequence[float]) -> float:
    try:
        return statistics.fmean(values)
    except OverflowError:  # only the sum is too large for a float; the slower exact mean is not
        return statistics.mean(values)


def evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """Return at most `most` items: the first, the last, and others at even distances between them."""
    if len(items) <= most:
        return items
    last = len(items) - 1
    return [items[round(k * last / (most - 1))] for k in range(most)]


def number_text(value: float) -> str:
    """Return a number with four significant digits; whole numbers below a million are written in full."""
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def spread_text(found: Spread) -> str:
    """Return ``0.421 ± 0.012 (n=3)``; for a single cell its value alone."""
    if found.sd is None:
        return number_text(found.mean)
    return f"{number_text(found.mean)} ± {found.sd:.2g} (n={found.n})"
