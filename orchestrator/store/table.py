"""The result rows of a sweep as one flat table: the engine's columns, then what the stages returned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.core.records import Start
from orchestrator.core.state import CellStatus
from orchestrator.core.sweep import Cell, Sweep
from orchestrator.store import layout
from orchestrator.store.evidence import Snapshot
from orchestrator.store.ledger import Ledger

Rows = list[dict[str, Any]]


def collect_rows(
    ledger: Ledger,
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
    codes: dict[str, str] = {}
    for cell in cells:
        for digest in cell.chain:
            done = snapshot.evidence(digest).done
            if done is None or not done.rows:
                continue
            node = sweep.nodes[digest]
            if digest not in codes:
                key = layout.attempt(node.stage, digest, done.attempt, layout.START)
                start = ledger.read(key, Start)[0]
                codes[digest] = _code_version(start)
            engine = {
                "cell": cell.cell,
                **cell.axes,
                **{name: _flat(value) for name, value in cell.columns.items()},
                "sweep": sweep.name,
                "revision": revision,
                "stage": node.name,
                "attempts": statuses[cell.cell].attempts,
                "seconds": done.seconds,
                "code": codes[digest],
            }
            rows.extend({**engine, **row} for row in done.rows)
    return rows


def _code_version(start: Start | None) -> str:
    """The git commit (with + when uncommitted changes were there), else the code's own digest."""
    if start is None:
        return ""
    git = start.provenance.get("git") or {}
    if git.get("commit"):
        return str(git["commit"])[:12] + ("+" if git.get("dirty") else "")
    return str(start.provenance.get("code", ""))[:12]


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
