"""A report: the cells in the order of a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write ``ranking.txt``: cells by falling position."""
    ranked = sorted(rows, key=lambda row: -row["position"])
    path = folder / "ranking.txt"
    path.write_text("".join(f"{row['position']:+d} {row['cell']}\n" for row in ranked))
    return [path]
