"""Checkpoints of one attempt, its phases, and the signal that stops it.

A checkpoint counts once its manifest exists, which is written last. Until then, a crash leaves the former
checkpoint as the newest one. So the files may be written in a thread while the stage goes on::

    stage    step | copy state | step | step | step | step | ...
    thread                     | write files, hash, fsync | manifest |
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

import msgspec

from orchestrator.errors import StageFailure, StopRequested, is_out_of_space
from orchestrator.formats import Stored
from orchestrator.manifest import File, contain, fsync_path, fsync_tree, scan

MANIFEST = "manifest.json"
"""The file whose presence makes a checkpoint folder count; it is written last."""
HELD_FACTOR, WRITE_FACTOR = 33, 4
"""The interval is at least this many times the seconds for which a save holds the stage up, and writes.

With 33, saving states takes under 3 % of the wall time. With 4, a shared disk is busy for at most a quarter
of it.
"""

Begin = Callable[[Path], Callable[[], None]]
"""Copies a state, and returns the function that writes the copy into the given folder in a thread."""


Phase = Literal["start", "data", "compute", "evaluation", "save", "restore"]
PHASES: tuple[str, ...] = get_args(Phase)
"""What an attempt does: it starts, waits for data, computes, evaluates, saves, or restores what was saved."""


class PhaseClock:
    """The seconds that an attempt has spent in each phase.

    One thread changes the phase. Others may read at any time: the state is replaced as a whole, so they never
    find a phase that is counted twice.

    Args:
        phase: the first one.
        clock: seconds, monotonic.

    Attributes:
        saved: step of the last complete checkpoint, and the seconds of work that it holds; None without one.
    """

    def __init__(self, phase: Phase = "compute", clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self._state: tuple[dict[str, float], str, float] = ({}, phase, self._clock())
        self._step_s = self._clock()
        self.saved: tuple[int, float] | None = None

    @property
    def phase(self) -> str:
        """The present phase."""
        return self._state[1]

    def times(self) -> dict[str, float]:
        """Return the seconds of each phase so far; they add up to all seconds since the clock was made."""
        times, phase, since_s = self._state
        return {**times, phase: times.get(phase, 0.0) + self._clock() - since_s}

    def work_s(self) -> float:
        """Return the seconds of compute and evaluation so far."""
        times = self.times()
        return times.get("compute", 0.0) + times.get("evaluation", 0.0)

    def step_s(self) -> float:
        """Return the seconds since the last call, or since the start. A stage calls this once a step."""
        now_s = self._clock()
        since_s, self._step_s = now_s - self._step_s, now_s
        return since_s

    def enter(self, phase: str) -> str:
        """Change the phase, and return the one before."""
        times, before, since_s = self._state
        if phase != before:
            now_s = self._clock()
            self._state = ({**times, before: times.get(before, 0.0) + now_s - since_s}, phase, now_s)
        return before

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count the time within as a phase, then go back to the one before."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)


class SaveAbandoned(Exception):
    """Raised in the writing thread of a checkpoint that is no longer needed."""


class CheckpointManifest(Stored, frozen=True):
    """A checkpoint's `manifest.json`. It is written last, so its presence means a complete save."""

    step: int
    attempt: int
    files: tuple[File, ...]


class Checkpoint(NamedTuple):
    """A verified checkpoint: the step after which it was saved, and its folder (read only)."""

    step: int
    folder: Path


class Tracker(Protocol):
    """A destination of metrics. A tracker never raises and never blocks the stage."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step."""

    def close(self) -> None:
        """Flush what is buffered."""


class _Seconds(NamedTuple):
    """Seconds for which the last save held the stage up, and in which it was written."""

    held: float = 0.0
    written: float = 0.0


class Checkpoints:
    """The checkpoints that one attempt saves.

    One for which the disk has no space is skipped, and the stage goes on: the next one may find some. After
    that the attempt makes room itself: it deletes all but its newest checkpoint before each save.

    Args:
        folder: where they lie, one folder per step.
        attempt: its number.
        interval_s: least seconds between two checkpoints; 0 for after each step, whatever that costs.
        keep: number of checkpoints to keep.
        fence: raises `StopRequested` when another attempt took over.
        clock: measures the phases of the attempt.

    Attributes:
        clock: measures the phases of the attempt.
        expected_s: seconds that a checkpoint takes, as the stage expects; 0 if it does not.
        num_skipped: checkpoints that were not saved for want of space.
    """

    def __init__(
        self,
        folder: Path,
        *,
        attempt: int,
        interval_s: float,
        keep: int,
        fence: Callable[[], None],
        clock: PhaseClock,
    ) -> None:
        self.clock = clock
        self._folder = folder
        self._attempt = attempt
        self._least_s = interval_s
        self._keep = keep
        self._fence = fence
        self._last_s = time.monotonic()
        self.expected_s = 0.0
        self.num_skipped = 0
        self._took = _Seconds()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def interval_s(self) -> float:
        """Seconds from the last checkpoint to the next one.

        With a least interval of 60 s, a save that holds the stage up for 10 s gives 330 s. A save that holds
        it up for 1 s, and then writes for 100 s in a thread, gives 400 s.
        """
        if self._least_s == 0:
            return 0.0
        return max(self._least_s, HELD_FACTOR * self._took.held, WRITE_FACTOR * self._took.written)

    @property
    def save_s(self) -> float:
        """Seconds that the last checkpoint took until it was complete; before the first, those expected."""
        return max(self._took) or self.expected_s

    @property
    def is_saving(self) -> bool:
        """Whether a thread writes a checkpoint."""
        return self._thread is not None and self._thread.is_alive()

    def is_due(self, left_s: float = math.inf) -> bool:
        """Return whether the interval is over. While a checkpoint is being written, no other is due.

        Args:
            left_s: seconds that the stage has left. None is due that would not be complete by then, or would
                hold the stage up for more than it may.
        """
        if self._least_s == 0:
            return True
        if self.is_saving or time.monotonic() - self._last_s < self.interval_s:
            return False
        return left_s >= max(self.save_s, HELD_FACTOR * self._took.held)

    @contextmanager
    def saved(self, step: int) -> Iterator[Path]:
        """Yield an empty folder to save into, and make it count afterwards. See `Context.checkpoint`."""
        started_s, work_s = time.monotonic(), self.clock.work_s()
        with self.clock.during("save"):
            self.wait()
            folder = self._open(step)
            try:
                yield folder
                self._seal(folder, step)
            except BaseException as error:
                if not self._skips(folder, error):
                    raise
            else:
                self._rotate(self._keep)
                self.clock.saved = step, work_s
        self._last_s = time.monotonic()
        self._took = _Seconds(self._last_s - started_s, self._last_s - started_s)

    def later(self, step: int, begin: Begin) -> None:
        """Copy the state now, and write it in a thread. See `Context.checkpoint_later`."""
        started_s, work_s = time.monotonic(), self.clock.work_s()
        write: Callable[[], None] | None = None
        with self.clock.during("save"):
            self.wait()
            folder = self._open(step)
            try:
                write = begin(folder)
            except BaseException as error:
                if not self._skips(folder, error):
                    raise
        # Python waits for a thread that is no daemon: a stage that fails would not end while it writes.
        if write is not None:
            self._thread = threading.Thread(
                target=self._write, args=(folder, step, write, work_s), name="checkpoint", daemon=True
            )
            self._thread.start()
        self._last_s = time.monotonic()
        self._took = self._took._replace(held=self._last_s - started_s)

    def make_room(self) -> None:
        """Delete all checkpoints of this attempt but the newest, and remember that space is short."""
        self.num_skipped = max(1, self.num_skipped)
        self._rotate(1)

    def wait(self) -> None:
        """Wait until no thread writes any more.

        Raises:
            BaseException: what stopped the last write. The unfinished folder never counts.
        """
        if self._thread is not None:
            with self.clock.during("save"):
                self._thread.join()
            self._thread = None
        self.raise_error()

    def raise_error(self) -> None:
        """Raise what stopped a write in the thread, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def seal(self, folder: Path, step: int) -> None:
        """Make a folder count that another program saved. See `Context.seal`."""
        self._fence()
        write_checkpoint_manifest(folder, step=step, attempt=self._attempt)
        fsync_path(folder.parent)
        self.clock.saved = step, self.clock.work_s()

    def _open(self, step: int) -> Path:
        """Return an empty folder for a step."""
        self._fence()
        if self.num_skipped:
            self._rotate(1)
        final = self._folder / f"{step:08d}"
        # Adopted, or saved just before: the same step holds the same state, so this save is not needed.
        if (final / MANIFEST).exists():
            final = self._folder.with_name("scratch") / f"discarded-{step:08d}"
        shutil.rmtree(final, ignore_errors=True)  # an incomplete save of this attempt
        final.mkdir(parents=True)
        return final

    def _write(self, folder: Path, step: int, write: Callable[[], None], work_s: float) -> None:
        """Write and seal a copied state, which holds so much work; an error is kept for `raise_error`."""
        started_s = time.monotonic()
        try:
            write()
            self._seal(folder, step)
            self.clock.saved = step, work_s
            self._rotate(self._keep)
        except BaseException as error:  # noqa: BLE001 - raised in the stage's own thread
            is_complete = self.clock.saved == (step, work_s)  # then another attempt took over
            if is_complete or not self._skips(folder, error):
                self._error = None if isinstance(error, SaveAbandoned) else error
        self._took = self._took._replace(written=time.monotonic() - started_s)

    def _skips(self, folder: Path, error: BaseException) -> bool:
        """Remove an unfinished checkpoint. Return whether the stage goes on without it, for want of space."""
        shutil.rmtree(folder, ignore_errors=True)  # useless, and takes space on a full disk
        if not is_out_of_space(error):
            return False
        self.num_skipped += 1
        with contextlib.suppress(StopRequested):  # fenced: the next save finds that out
            self._rotate(1)
        with contextlib.suppress(OSError):  # the log may lie on the same disk
            print(f"checkpoint {folder.name} is skipped ({self.num_skipped} so far): {error}", flush=True)
        return True

    def _seal(self, folder: Path, step: int) -> None:
        """Make a folder count, or remove it if it is not needed."""
        if folder.parent != self._folder:
            shutil.rmtree(folder, ignore_errors=True)
            return
        write_checkpoint_manifest(folder, step=step, attempt=self._attempt)
        fsync_path(self._folder)

    def _rotate(self, keep: int) -> None:
        """Remove the oldest checkpoints of this attempt, so that some are kept."""
        folders = (path.parent for path in self._folder.glob(f"[0-9]*/{MANIFEST}"))
        whole = sorted(folders, key=lambda folder: int(folder.name))
        # A successor may be reading these files, so they are deleted only while this attempt is the newest.
        if len(whole) > keep:
            self._fence()
        for old in whole[:-keep]:
            (old / MANIFEST).unlink()  # first, so that a partly deleted folder never counts
            shutil.rmtree(old, ignore_errors=True)


def write_checkpoint_manifest(folder: Path, *, step: int, attempt: int) -> None:
    """Make a checkpoint folder durable, then write its manifest atomically, which makes it count.

    Raises:
        StageFailure: the stage saved a file under the manifest's own name.
    """
    if (folder / MANIFEST).exists():
        raise StageFailure("code", f"a checkpoint may not hold a file {MANIFEST} of the stage's own")
    contain(folder)
    fsync_tree(folder)
    manifest = CheckpointManifest(step=step, attempt=attempt, files=scan(folder))
    # Written outside and renamed into place: a reader finds a complete manifest or none.
    temporary = folder.parent / f".{folder.name}.{MANIFEST}"
    with temporary.open("wb") as stream:
        stream.write(msgspec.json.encode(manifest))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / MANIFEST)
    fsync_path(folder)


_STEP_WORD = r"(?:checkpoint|ckpt|global_step|step|iteration|iter|epoch)[-_=]?"


_STEP_NAME = re.compile(rf"(?:(?:{_STEP_WORD}[0-9]{{1,18}}[-_])*{_STEP_WORD})?([0-9]{{1,18}})")


def log(step: int, **metrics: float) -> None:
    """Record metrics of a step, from any program that a sweep runs; without a sweep, do nothing.

    Args:
        step: counted from 1.
        metrics: name to value; ``num_steps`` is the number of all steps.
    """
    path = os.environ.get("SWEEP_METRICS")
    if path:
        row = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": int(step), **finite}) + "\n")


def step_of(name: str) -> int | None:
    """Return the step in a checkpoint folder's name; None if the name has none.

    The name is a number alone (``00000120``), or a word and a number, as in ``checkpoint-120``, ``ckpt_120``,
    ``step=120``, ``global_step120`` and ``iter-120``. With several pairs, as in ``epoch=3-step=120``, the
    last number is the step.
    """
    match = _STEP_NAME.fullmatch(name)
    return int(match.group(1)) if match else None
