"""Cells as event files of TensorBoard: one folder and one file a cell.

Beside the file lies a note of how much of the cell it holds, with the file's size at that moment. What is
longer was written after the note, by a mirror that was killed: it is cut off and written again, so nothing is
there twice. The records are those of TFRecord files, as TensorBoard reads them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.secrets import masked
from orchestrator.core.tree import convert
from orchestrator.errors import counted, home_expanded
from orchestrator.store import layout
from orchestrator.trackers.protocol import (
    Described,
    Followed,
    MetricPoint,
    MirrorProgress,
    as_text,
    flat,
    is_number,
    summary_of,
)

EVENTS, NOTE = "events.out.tfevents.0.polysweep", "polysweep.json"
"""Names of a cell's two files. TensorBoard reads every file with ``tfevents`` in its name."""


class TensorboardOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`tracker.tensorboard` of `conf/tracker/tensorboard.yaml`.

    Attributes:
        dir: folder for the cells' folders; None for ``sweeps/<sweep>/tensorboard`` in the store, and for
            ``tensorboard/<sweep>`` in the working folder if the store is a bucket.
    """

    dir: str | None = None


class EventNote(msgspec.Struct, kw_only=True):
    """What an event file holds, and its size in bytes."""

    size: int = 0
    progress: MirrorProgress = msgspec.field(default_factory=MirrorProgress)


class TensorboardMirror:
    """The mirror that writes event files.

    Args:
        options: `tracker.tensorboard`.

    Raises:
        UserError: an option is unknown or has a wrong type.
    """

    title = "TensorBoard"
    problem = ""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = convert(dict(options), TensorboardOptions, key="tracker.tensorboard")
        self._folder = Path()
        self._opened: set[str] = set()

    def check(self) -> None:
        """Do nothing: it needs no account and no server."""

    def begin(self, sweep: Followed) -> None:
        """Take the folder of the sweep."""
        shared = sweep.ledger.objects.shared_folder(layout.mirror(sweep.name, "tensorboard"))
        if self.options.dir is not None:
            shared = home_expanded(self.options.dir)
        self._folder = (shared or Path("tensorboard", sweep.name)).absolute()

    def progress(self, id: str) -> MirrorProgress:
        """Return what a cell's file holds."""
        return noted(self._folder / id).progress

    def open(self, cell: Described) -> TensorboardRun:
        """Open the file of a cell."""
        self._opened.add(cell.id)
        return TensorboardRun(self._folder / cell.id, cell)

    def forget(self, id: str) -> bool:
        """Do nothing: the note beside the file is what counts."""
        return True

    def end(self) -> None:
        """Do nothing: TensorBoard has nothing for a sweep but its folder."""

    def summary(self) -> str:
        """Return one line about what was done, and how to look at it."""
        if not self._opened:
            return f"{self.title}: nothing new"
        return f"{self.title}: {counted(len(self._opened), 'run')}; tensorboard --logdir {self._folder}"


class TensorboardRun:
    """One cell's event file.

    Args:
        folder: the cell's folder.
        cell: the cell.
    """

    def __init__(self, folder: Path, cell: Described) -> None:
        self._folder = folder
        self._cell = cell
        self.id = cell.id
        note = noted(folder)
        self.progress = note.progress
        self._size = note.size
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / EVENTS
        path.touch()
        os.truncate(path, note.size)
        self._records: list[bytes] = []

    def log(self, points: Sequence[MetricPoint], sent: MirrorProgress) -> int:
        """Write ``train/loss`` at its step and time; what is no number is left out."""
        for point in points:
            values = {f"{point.stage}/{name}": value for name, value in point.metrics.items()}
            values.pop(f"{point.stage}/time_s", None)
            self._add(values, point.step, point.at)
        self.progress = sent
        self._write()
        return len(points)

    def results(self, stage: str, rows: Sequence[dict[str, Any]], at: float, sent: MirrorProgress) -> None:
        """Write every number of the rows at step 0."""
        self._add(summary_of(stage, rows), 0, at)
        self.progress = sent
        self._write()

    def mark(self, state: str, at: float) -> None:
        """Do nothing: each batch was noted when it was written."""

    def close(self, state: str) -> None:
        """Do nothing: no file is open."""

    def _add(self, values: Mapping[str, Any], step: int, at: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if not self._size and not self._records:
            version = Event(wall_time=at, file_version="brain.Event:2")
            config = Event(wall_time=at, summary=self._hparams())
            self._records += [version.SerializeToString(), config.SerializeToString()]
        found = [Summary.Value(tag=k, simple_value=float(v)) for k, v in values.items() if is_number(v)]
        if found:
            event = Event(wall_time=at, step=step, summary=Summary(value=found))
            self._records.append(event.SerializeToString())

    def _hparams(self) -> Any:
        """Return the config as the hyperparameters of a session, for TensorBoard's table of runs."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        values = {
            key: value if isinstance(value, str | bool) or is_number(value) else as_text(value)
            for key, value in flat(masked(self._cell.config))
        }
        return hparams_pb(values, trial_id=self.id, start_time_secs=self._cell.began)

    def _write(self) -> None:
        """Append the new records, then replace the note."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        with (self._folder / EVENTS).open("ab") as stream:
            writer = RecordWriter(stream)
            for record in self._records:
                writer.write(record)
            stream.flush()
            self._size = stream.tell()
        self._records = []
        temporary = self._folder / f"{NOTE}.tmp"
        temporary.write_bytes(msgspec.json.encode(EventNote(size=self._size, progress=self.progress)))
        temporary.replace(self._folder / NOTE)


def noted(folder: Path) -> EventNote:
    """Return the note of a cell's file; an empty one if it is damaged, or if the file is shorter than noted.

    Raises:
        OSError: one of the two cannot be read now. The file must not be cut off then.
    """
    try:
        note = msgspec.json.decode((folder / NOTE).read_bytes(), type=EventNote)
        if (folder / EVENTS).stat().st_size >= note.size:
            return note
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        pass
    return EventNote()
