"""The result rows of a sweep as one flat table: the engine's columns, then what the stages returned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.core.state import CellStatus
from orchestrator.core.sweep import Cell, Sweep
from orchestrator.store.evidence import Snapshot

Rows = list[dict[str, Any]]


def collect_rows(
    sweep: Sweep,
    revision: int,
    cells: Sequence[Cell],
    statuses: dict[str, CellStatus],
    snapshot: Snapshot,
) -> Rows:
    """Returns one row for each row of each finished stage of the cells.

    The engine's columns: cell, one per axis, the sweep's `columns` (lists joined by commas), sweep, revision,
    stage, attempts (of the cell), seconds (wall time of the stage), code (of the attempt that made the
    product). A column that the stage returns too is the stage's.
    """
    rows: Rows = []
    for cell in cells:
        for digest in cell.chain:
            done = snapshot.evidence(digest).done
            if done is None or not done.rows:
                continue
            node = sweep.nodes[digest]
            engine = {
                "cell": cell.cell,
                **cell.axes,
                **{name: _flat(value) for name, value in cell.columns.items()},
                "sweep": sweep.name,
                "revision": revision,
                "stage": node.name,
                "attempts": statuses[cell.cell].attempts,
                "seconds": done.seconds,
                "code": done.code,
            }
            rows.extend({**engine, **row} for row in done.rows)
    return rows


def _flat(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def write_table(rows: Rows, path: Path, kind: str) -> None:
    """Writes rows as Parquet or CSV; absent values are null."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pyarrow.Table.from_pylist([{key: row.get(key) for key in columns} for row in rows])
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        pyarrow.csv.write_csv(table, path)
