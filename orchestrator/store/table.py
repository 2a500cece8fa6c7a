"""The result rows of a sweep as one flat table: the engine's columns, then the stages' values."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from orchestrator.core.state import CellStatus
from orchestrator.core.sweep import Cell, ComposedSweep
from orchestrator.core.tree import pick, scalar_text
from orchestrator.store.evidence import EvidenceReader

if TYPE_CHECKING:
    import pyarrow

Rows = list[dict[str, Any]]


def collect_rows(
    sweep: ComposedSweep,
    revision: int,
    cells: Sequence[Cell],
    statuses: dict[str, CellStatus],
    reader: EvidenceReader,
) -> Rows:
    """Return one row for each result row of each finished stage of the cells.

    The columns are: cell, one per axis, the sweep's `columns` (lists joined by commas), sweep, revision,
    stage, attempts (of the cell), seconds (wall time of the stage), code (version that made the product), and
    then the values that the stage returned.

    A stage may return a value under a name that is already taken. For one of the sweep's `columns`, the
    returned value replaces the configured one. Under the name of an axis, or of a column of the engine, it is
    kept as ``row_<name>``, because a label describes what ran. It is dropped when it equals the label of the
    axis.

    Args:
        sweep: The sweep.
        revision: Number of its revision.
        cells: Cells whose rows are wanted.
        statuses: Cell id to status.
        reader: Evidence of the sweep's stages.
    """
    rows: Rows = []
    for cell in cells:
        axes = {axis: typed(cell, axis, label) for axis, label in cell.axes.items()}
        labels = axes | {name: flat(value) for name, value in cell.columns.items()}
        for digest in cell.stage_digests:
            done = reader.evidence(digest).done
            if done is None or not done.rows:
                continue
            engine = {
                "cell": cell.id,
                "sweep": sweep.name,
                "revision": revision,
                "stage": sweep.stages[digest].name,
                "attempts": statuses[cell.id].attempts,
                "seconds": done.seconds,
                "code": done.code,
            }
            rows.extend(_row(engine, axes, labels, row) for row in done.rows)
    return rows


def _row(
    engine: Mapping[str, Any], axes: Mapping[str, Any], labels: Mapping[str, Any], returned: Mapping[str, Any]
) -> dict[str, Any]:
    # Names that a stage cannot overwrite. A returned value that only repeats its axis is no conflict.
    own = {*engine, *(axis for axis in axes if axis in returned and not _same(returned[axis], axes[axis]))}
    named = {**labels, **returned}
    first = {name: labels[name] if name in own else named[name] for name in labels if name not in engine}
    row = {"cell": engine["cell"], **first, **engine}
    row.update((name, value) for name, value in returned.items() if name not in own)
    for name in [*engine, *(axis for axis in axes if axis in own and axis not in engine)]:
        if name in named:
            other = f"row_{name}"
            # A stage may itself return a value named row_<name>.
            while other in row:
                other = f"row_{other}"
            row[other] = named[name]
    return row


def _same(value: Any, label: Any) -> bool:
    """Return whether a returned value means the same as the label of an axis."""
    # In Python, True equals 1; as values of an axis they differ.
    return (value == label and isinstance(value, bool) == isinstance(label, bool)) or _text(value) == _text(
        label
    )


def typed(cell: Cell, axis: str, label: str) -> Any:
    """Return a label as the number, boolean or null that it was made from, else as text.

    A missing label, of an axis that does not count in the cell, is None.
    """
    value = pick(cell.config, axis)
    if not label and value != "":
        return None
    is_scalar = value is None or isinstance(value, bool | int | float)
    return value if is_scalar and scalar_text(value) == label else label


def flat(value: Any) -> Any:
    """Return a value of a column: a list as text, joined by commas; others unchanged."""
    return _text(value) if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    """Return a value as a CSV field: lists joined by commas, nested values as JSON, null as empty."""
    match value:
        case None:
            return ""
        case list() | tuple() if not any(isinstance(item, list | tuple | Mapping) for item in value):
            return ",".join(map(scalar_text, value))
        case _:
            return scalar_text(value)


def write_table(rows: Rows, path: Path, kind: str) -> None:
    """Write rows as Parquet or CSV; absent values are null."""
    if kind == "parquet":
        _write_parquet(rows, path)
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            write_csv(rows, stream)


def write_csv(rows: Rows, stream: TextIO) -> None:
    """Write rows as CSV with a header; write nothing when there are no rows."""
    columns = _columns(rows)
    if columns:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_text(row.get(name)) for name in columns] for row in rows)


def arrow_table(rows: Rows) -> pyarrow.Table:
    """Return rows as an Arrow table. Columns of mixed types become text; absent values are null."""
    import pyarrow

    arrays = {}
    for name in _columns(rows):
        values = [_unnested(row.get(name)) for row in rows]
        try:
            arrays[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError):  # mixed types, or an integer beyond 64 bits
            arrays[name] = pyarrow.array([None if value is None else _text(value) for value in values])
    return pyarrow.table(arrays)


def _write_parquet(rows: Rows, path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow_table(rows), path)


def _unnested(value: Any) -> Any:
    """Return a nested value as JSON, because each row may have other keys; others unchanged."""
    nested = isinstance(value, list | tuple) and any(isinstance(v, list | tuple | Mapping) for v in value)
    return json.dumps(value, ensure_ascii=False) if nested or isinstance(value, Mapping) else value


def _columns(rows: Rows) -> list[str]:
    """Return the columns of all rows: first all labels, which rows have before ``sweep``.

    Rows of several sweeps, or phases, differ in their axes. Readers find the axes by this place.
    """
    labels = (takewhile(lambda name: name != "sweep", row) for row in rows if "sweep" in row)
    names = (name for row in rows for name in row)
    return list(dict.fromkeys(chain(chain.from_iterable(labels), names)))


Row = dict[str, Any]


PER_STAGE: Final = ("stage", "seconds", "code")
"""Columns of the engine that differ between stages. A joined row combines the values of its stages."""


def widened(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return rows in which the rows of a cell's stages are joined, in the order of the first stage.

    The keys of the join are the columns that all rows of both stages have and that contain no fractions. Rows
    join if their keys are equal, one to one or one to many. For example, the single row of a training joins
    each row of its evaluation:

        train      loss=1.25                  ->   loss=1.25  language=en  score=0.5
        evaluate   language=en  score=0.5          loss=1.25  language=sw  score=0.25
        evaluate   language=sw  score=0.25

    Fractions are results, not keys: two stages that both return ``loss`` would hardly ever match. The first
    stage keeps such a name; the value of the other stage becomes ``<stage>.<name>``. A row without a match
    stays a row of its own. So do all rows of two stages that could only join many to many.

    Args:
        rows: as returned by `orchestrator.store.table.collect_rows`.
    """
    cells: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        stages = cells.setdefault((row["sweep"], row["revision"], row["cell"]), {})
        # The instances of a stage, such as prepare[en] and prepare[sw], form one table.
        stages.setdefault(str(row["stage"]).partition("[")[0], []).append(dict(row))
    wide: list[Row] = []
    for stages in cells.values():
        (_, joined), *others = stages.items()
        apart: list[Row] = []
        for stage, more in others:
            both = _joined(joined, more, stage)
            if both is None:
                apart += more
            else:
                joined = both
        wide += [*joined, *apart]
    return wide


def _joined(rows: Sequence[Row], others: Sequence[Row], stage: str) -> list[Row] | None:
    """Return the joined rows of two tables, then the rows without a match; None if no join is possible."""
    keys = _keys(rows, others)
    left, right = _by_key(rows, keys), _by_key(others, keys)
    shared = left.keys() & right.keys()
    if not shared or any(len(left[key]) > 1 < len(right[key]) for key in shared):
        return None
    joined = [
        merged
        for key, mine in left.items()
        for row in mine
        for merged in ([_merged(row, other, stage) for other in right[key]] if key in right else [row])
    ]
    return joined + [row for key, theirs in right.items() if key not in left for row in theirs]


def _keys(rows: Sequence[Row], others: Sequence[Row]) -> list[str]:
    every = [*rows, *others]
    common = [name for name in rows[0] if name not in PER_STAGE and all(name in row for row in every)]
    return [name for name in common if not any(isinstance(row[name], float) for row in every)]


def _by_key(rows: Iterable[Row], keys: Sequence[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(json.dumps([row[name] for name in keys], sort_keys=True), []).append(row)
    return found


def _merged(row: Row, other: Row, stage: str) -> Row:
    merged = dict(row)
    for name, value in other.items():
        if name == "seconds":
            merged[name] = (row[name] or 0.0) + (value or 0.0)
        elif name in PER_STAGE:
            words = f"{row[name]}+{value}" if value and row[name] else row[name] or value
            merged[name] = row[name] if value == row[name] else words
        elif merged.get(name) is None:
            merged[name] = value
        elif merged[name] != value:
            merged[f"{stage}.{name}"] = value
    return merged
