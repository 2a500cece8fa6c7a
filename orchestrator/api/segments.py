"""Rows that never change, kept on this machine as Parquet files, so that a query need not read them again.

Rows belong to a key, such as a product or an attempt that has ended. A segment is a file with the rows of
some keys; it is written once. A later look writes one more segment, with the keys that are new. Many small
segments are merged. A segment that is damaged or missing costs time: its keys are read from the store again.
"""

from __future__ import annotations

import contextlib
import json
import uuid
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from orchestrator.store.table import Rows, arrow_table

KEY = "__key"
"""Column that holds the key of a row."""

MAX_SEGMENTS = 8


class Segment(NamedTuple):
    """A file of rows, and which of its keys count.

    Attributes:
        path: of the file.
        keys: those whose rows count; other rows in it belong to other segments, or to nothing any more.
        is_whole: whether all of its keys count.
    """

    path: Path
    keys: frozenset[str]
    is_whole: bool


class RowSegments:
    """The segments of one table.

    Args:
        folder: of this user, on a local disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def update(self, wanted: Mapping[str, Callable[[], Rows]]) -> list[Segment]:
        """Return segments that together hold the rows of all wanted keys, each once.

        Args:
            wanted: key to a function that returns its rows; called for keys that no segment holds.

        Raises:
            OSError: the folder cannot be written.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found, left = [], set(wanted)
        for path in sorted(self._folder.glob("*.parquet"), key=lambda path: (-_size(path), path.name)):
            keys = _keys(path)
            used = left & keys
            if not used:  # damaged, superseded, or of products that count no more
                _remove(path)
                continue
            left -= used
            found.append(Segment(path, frozenset(used), used == keys))
        if len(found) >= MAX_SEGMENTS:
            # The largest stays as it is. The keys of the others are written anew, as one segment.
            for segment in found[1:]:
                _remove(segment.path)
                left |= segment.keys
            found = found[:1]
        if left:
            rows = [{**row, KEY: key} for key in wanted if key in left for row in wanted[key]()]
            found.append(Segment(self._write(rows, left), frozenset(left), True))
        return found

    def _write(self, rows: Rows, keys: Collection[str]) -> Path:
        import pyarrow.parquet

        table = arrow_table(rows or [{KEY: None}])
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        path = self._folder / f"{uuid.uuid4().hex}.parquet"
        # First the keys: a segment without them does not count.
        about = {"crc": zlib.crc32(data), "keys": sorted(keys)}
        path.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
        temporary = path.with_suffix(".part")
        temporary.write_bytes(data)
        temporary.replace(path)
        return path


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)


def _keys(path: Path) -> set[str]:
    """Return the keys of a segment; none if the file is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if zlib.crc32(path.read_bytes()) == about["crc"]:
            return set(about["keys"])
    return set()


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
