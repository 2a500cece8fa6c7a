"""A mirror: metrics and results as JSON lines. It follows the store, in a process of the launch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.tree import convert
from orchestrator.errors import counted
from orchestrator.store import layout
from orchestrator.trackers.protocol import Described, Followed, MetricPoint, MirrorProgress, Notes


class JsonlOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tracker.plugins.jsonl` of the config.

    Attributes:
        dir: folder for the files.
    """

    dir: str = "jsonl"


class JsonlMirror:
    """Writes ``DIR/SWEEP/CELL.jsonl``. A mirror that is killed may write its last lines twice.

    Args:
        options: `tracker.plugins.jsonl`.
    """

    title = "JSON lines"
    problem = ""
    _folder: Path
    _notes: Notes

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = convert(dict(options), JsonlOptions, key="tracker.plugins.jsonl")
        self._opened: set[str] = set()

    def check(self) -> None:
        """Do nothing: it needs no server."""

    def begin(self, sweep: Followed) -> None:
        """Make the folder of the sweep, and find what earlier mirrors wrote."""
        self._folder = Path(self._options.dir, sweep.name).expanduser().absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._notes = Notes(sweep.ledger.objects, layout.mirror(sweep.name, "jsonl"), "sent.json")

    def progress(self, id: str) -> MirrorProgress:
        """Return what a cell's file holds."""
        return self._notes.of(id)

    def open(self, cell: Described) -> JsonlRun:
        """Open the file of a cell."""
        self._opened.add(cell.id)
        return JsonlRun(self._folder / f"{cell.cell}.jsonl", cell.id, self._notes)

    def forget(self, id: str) -> bool:
        """Return that the notes are read again."""
        return True

    def end(self) -> None:
        """Do nothing: there is no file for the whole sweep."""

    def summary(self) -> str:
        """Return one line for the user."""
        return f"{self.title}: {counted(len(self._opened), 'file')} in {self._options.dir}"


class JsonlRun:
    """The file of one cell."""

    def __init__(self, path: Path, id: str, notes: Notes) -> None:
        self.id = id
        self.progress = notes.of(id)
        self._path = path
        self._notes = notes

    def log(self, points: Sequence[MetricPoint], sent: MirrorProgress) -> int:
        """Write some points."""
        self._write([{"stage": p.stage, "step": p.step, **p.metrics} for p in points], sent)
        return len(points)

    def results(self, stage: str, rows: Sequence[dict[str, Any]], at: float, sent: MirrorProgress) -> None:
        """Write the rows of a stage."""
        self._write([{"stage": stage, "result": row} for row in rows], sent)

    def mark(self, state: str, at: float) -> None:
        """Do nothing: the file holds no state."""

    def close(self, state: str) -> None:
        """Do nothing: no file is open."""

    def _write(self, lines: Sequence[dict[str, Any]], sent: MirrorProgress) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(line, default=str) + "\n" for line in lines))
        self.progress = sent
        self._notes.note(self.id, sent)
