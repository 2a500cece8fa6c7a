"""A tracker: metrics as CSV beside the attempt. It runs in the process of the stage."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping

from orchestrator.trackers.base import Tracked


class CsvTracker:
    """Appends a line ``step, name, value`` for each metric.

    Args:
        tracked: the attempt.
    """

    def __init__(self, tracked: Tracked) -> None:
        self._file = (tracked.folder / "metrics.csv").open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step. A full disk must not end the stage."""
        with contextlib.suppress(OSError):
            if not self._file.closed:
                self._writer.writerows((step, name, value) for name, value in metrics.items())

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()
