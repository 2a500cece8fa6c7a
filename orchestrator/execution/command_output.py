"""What a command reveals by its files and its prints: checkpoint files, metrics, and results in its log."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import shutil
import stat
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import SEQUENCE, StageFailure
from orchestrator.manifest import copy_file
from orchestrator.stage import Context, Row, StageSpec
from orchestrator.store import layout

KEPT = 2
"""Number of an attempt's copies of checkpoint files that stay, and of files that are held between looks."""
HALF_A_LOOK_S = 0.5
"""So long a file must have stayed unchanged when its command is ended from outside."""

_UNFINISHED = re.compile(
    r"^\.|^tmp([._-]|$|[a-z0-9_]{8}(\.|$))|~$"
    r"|\.(tmp|temp|part|partial|incomplete|swp|lock|md5|sha\d+|bak|old|corrupt)$",
    re.IGNORECASE,
)
"""Names of files that are being written, or stand beside a checkpoint, whatever pattern they match."""
_DIGITS = re.compile(r"[0-9]+")
_NAMED_STEP = re.compile(r"step[=_-]?([0-9]+)", re.I)
_NUMBER = r"([+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf))(?![\w.])"
_STEP = re.compile(r"(?<![\w.-])(?:global_?)?step[ \t]*[=:][ \t]*(\d{1,15})(?:/(\d{1,15}))?(?![\w.])", re.I)
_PAIR = re.compile(r"(?<![\w.])([A-Za-z_][\w./-]{0,60}?)[ \t]*[=:][ \t]*" + _NUMBER)


class _File(NamedTuple):
    """A file that may be a checkpoint, as it was at one look. A new link to the file changes none of it."""

    path: Path
    inode: int
    size: int
    written_ns: int


class _Sight(NamedTuple):
    """When a file was first seen in its state.

    Attributes:
        order: the later one of two files has the higher one.
        at_s: by the monotonic clock.
        link: a link that holds the file, if the command deletes or replaces it; None without one.
    """

    order: tuple[int, int]
    at_s: float
    link: Path | None = None


class CheckpointFiles:
    """Copies the files that a command saves as checkpoints to where checkpoints count.

    A file is taken when two looks find it unchanged, so that none is taken that is still being written. The
    copy is a folder named by its step, which `orchestrator.execution.checkpoints.Sealer` then seals::

        output/ckpt-120.pt, the same at two looks  ->  checkpoints/120/ckpt-120.pt

    A program may save more often than it is looked at, and replace or delete each file for the next one. So
    the newest files are held by links until the next look.

    The step is the number after ``step`` in the name, else the last one, if it is larger than the step
    before, else the next number. So ``last.pt``, written again and again, gives 1, 2, 3. Copies are made by
    reflinks where there are any.

    Args:
        spec: the stage, with the pattern of its checkpoint files, relative to the output or work folder.
        context: of the attempt.
    """

    def __init__(self, spec: StageSpec, context: Context) -> None:
        self._pattern, self._folder = spec.checkpoints, context.folder
        self._held = context.scratch / ".held"
        self._step = context.resume.step if context.resume else 0
        self._mine: list[Path] = []
        self._taken: tuple[int, int] | None = None
        self._seen: dict[_File, _Sight] = {}
        self._num_looks = 0

    def look(self, *, is_last: bool = False, by_itself: bool = False) -> None:
        """Take the newest file that is complete.

        Args:
            is_last: whether the command has ended. Files that it was still writing change no more then, so
                the look before must not have been just now.
            by_itself: whether it has ended by itself, so that one look is enough.

        Raises:
            OSError: the file vanished, or the disk is full.
        """
        if self._pattern is None:
            return
        self._num_looks += 1
        seen, self._seen = self._seen, {}
        for file, changed_ns in self._files(self._pattern):
            # A time of writing may lie in the future, or be the same for all. That of the last change is
            # no better alone: a copy that keeps the time of writing is no newer than its original.
            order = min(file.written_ns, changed_ns), self._num_looks
            self._seen[file] = seen.get(file, _Sight(order, time.monotonic()))
        self._take(seen, is_last=is_last, by_itself=by_itself)
        self._hold(seen, is_last=is_last)
        if is_last and self._taken is None:
            self._name_folders(self._pattern)

    def _take(self, seen: dict[_File, _Sight], *, is_last: bool, by_itself: bool) -> None:
        least_s = HALF_A_LOOK_S if is_last else 0.0
        whole: dict[_File, _Sight] = {}
        for file, sight in (seen | self._seen).items():
            is_known = file in seen and time.monotonic() - sight.at_s >= least_s
            if (is_last and by_itself and file in self._seen) or (is_known and _source(file, sight)):
                whole[file] = sight
        newest = max(whole, key=lambda file: whole[file].order, default=None)
        if newest is None or (self._taken is not None and whole[newest].order <= self._taken):
            return
        step = max(self._step + 1, _step_in(newest.path.stem))
        checkpoints = self._folder / layout.CHECKPOINTS
        unfinished = checkpoints / f".copy-{step}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        source = _source(newest, whole[newest])
        if source is not None:
            copy_file(source, unfinished / newest.path.name)
        if source is None or not _is(source, newest):  # it was written again meanwhile
            shutil.rmtree(unfinished, ignore_errors=True)
            return
        unfinished.rename(checkpoints / str(step))
        self._step, self._taken = step, whole[newest].order
        self._mine.append(checkpoints / str(step))
        for old in self._mine[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        del self._mine[:-KEPT]

    def _hold(self, seen: Mapping[_File, _Sight], *, is_last: bool) -> None:
        """Link the newest files of this look, and drop the links of the one before."""
        shutil.rmtree(self._held, ignore_errors=True)
        new = sorted(self._seen.keys() - seen.keys(), key=lambda file: self._seen[file].order)
        if is_last or not new:
            return
        with contextlib.suppress(OSError):  # a file system without links: two looks must find the file
            self._held.mkdir(parents=True)
            for file in new[-KEPT:]:
                link = self._held / str(file.inode)
                link.hardlink_to(file.path)
                self._seen[file] = self._seen[file]._replace(link=link)

    def _name_folders(self, pattern: str) -> None:
        """Print one line when what the command saved as checkpoints are folders."""
        folder = next((path for path in self._paths(pattern) if path.is_dir()), None)
        if folder is not None:
            what = f"{folder.name} is a folder, but the pattern {pattern!r} of checkpoints is of files"
            print(f"{what}: have it saved in {{checkpoints}} or {{work}}", flush=True)

    def _files(self, pattern: str) -> Iterator[tuple[_File, int]]:
        for path in self._paths(pattern):
            if _UNFINISHED.search(path.name) and not _UNFINISHED.search(pattern):
                continue
            with contextlib.suppress(OSError):  # it vanished just now
                now = path.stat()
                if stat.S_ISREG(now.st_mode):
                    file = _File(path, now.st_ino, now.st_size, now.st_mtime_ns)
                    yield file, now.st_ctime_ns

    def _paths(self, pattern: str) -> Iterator[Path]:
        for name in (layout.OUTPUT, layout.WORK):
            yield from (self._folder / name).glob(pattern)


def _is(path: Path, file: _File) -> bool:
    try:
        now = path.stat()
    except OSError:
        return False
    return (now.st_ino, now.st_size, now.st_mtime_ns) == file[1:]


def _source(file: _File, sight: _Sight) -> Path | None:
    """Return where the content of a file is; None if it was changed or is gone."""
    paths = [file.path, sight.link]
    return next((path for path in paths if path is not None and _is(path, file)), None)


def _step_in(stem: str) -> int:
    """Return the step that the name of a file holds; 0 for a name without a number."""
    named = _NAMED_STEP.search(stem)
    numbers = _DIGITS.findall(stem)
    return int((named[1] if named else numbers[-1])[:15]) if numbers else 0


def checkpoint_file(context: Context) -> str:
    """Return the checkpoint that an attempt goes on from: its file if it is a single one, "" without any."""
    if context.resume is None:
        return ""
    files = [path for path in context.resume.folder.iterdir() if path.name != "manifest.json"]
    return str(files[0] if len(files) == 1 else context.resume.folder)


_CREATE, _MOVED_TO = 0x100, 0x80
"""Events of inotify(7): an entry was made under its name, or got the name by renaming."""
_EVENT = struct.Struct("iIII")


class Arrivals:
    """How the entries of a folder got their names, as the kernel reports it.

    It reports what this machine does, so on a network file system not what others do. The watch is on the
    folder itself, not on its name. When the folder is removed and made again, the next call watches the new
    one; how the entries there got their names is unknown, so they count as made in place.

    Args:
        folder: a folder; while there is none, nothing is reported.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handle = self._watch = -1
        self._in_place: set[str] = set()
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None)
            # Negative if too many are open.
            self._handle = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            self._arm()

    def in_place(self) -> set[str]:
        """Return the names that were not given by renaming, as far as was reported."""
        self._arm()
        with contextlib.suppress(BlockingIOError):
            while self._handle >= 0:
                data = os.read(self._handle, 2**16)
                while data:
                    watch, mask, _, length = _EVENT.unpack_from(data)
                    name = os.fsdecode(data[_EVENT.size : _EVENT.size + length].rstrip(b"\0"))
                    if watch == self._watch:  # not of a folder that was here before
                        (self._in_place.add if mask & _CREATE else self._in_place.discard)(name)
                    data = data[_EVENT.size + length :]
        return self._in_place

    def _arm(self) -> None:
        """Watch the folder that is there now; the kernel returns the same number if it is watched already."""
        if self._handle < 0:
            return
        events = _CREATE | _MOVED_TO
        watch = self._libc.inotify_add_watch(self._handle, os.fsencode(self._folder), events)
        if watch < 0 or watch == self._watch:
            return
        # What is renamed from now on is reported, and read after this.
        if self._watch >= 0:
            self._libc.inotify_rm_watch(self._handle, self._watch)
            with contextlib.suppress(OSError):
                self._in_place = {path.name for path in self._folder.iterdir()}
        self._watch = watch

    def close(self) -> None:
        """Stop the reports."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class PrintedMetrics:
    """Records the metrics that a command prints as ``step=12 loss=0.7``, unless it writes them itself.

    Args:
        context: of the attempt.
    """

    def __init__(self, context: Context) -> None:
        self._log, self._metrics = context.folder / layout.LOG, context.folder / layout.METRICS
        self._offset = 0
        self._own = _size(self._metrics)

    def look(self) -> None:
        """Append the metrics of the lines that were printed since the last look."""
        with contextlib.suppress(OSError):
            # Another size: the command, or `orchestrator.log` in it, writes the file itself.
            if _size(self._metrics) != self._own:
                return
            with self._log.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read(2**22)
            whole = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
            self._offset += len(whole) or (len(data) if len(data) == 2**22 else 0)
            found = map(metrics_in, re.split(r"[\r\n]", whole.decode(errors="replace")))
            text = "".join(json.dumps(row) + "\n" for row in found if row)
            if text:
                with self._metrics.open("a", encoding="utf-8") as stream:
                    stream.write(text)
                self._own = _size(self._metrics)


def metrics_in(line: str) -> dict[str, Any] | None:
    """Return the step and the metrics of a printed line, None for a line without both.

    A line counts that names its step and at least one other number: ``step=12 loss=0.7`` or
    ``step: 12/100, loss: 0.7``.
    """
    line = SEQUENCE.sub("", line[:4000])  # a terminal would colour what they enclose
    step = _STEP.search(line[:2000])
    if step is None:
        return None
    rest = line[: step.start()] + " " + line[step.end() : 2000]
    values = {name: float(text) for name, text in _PAIR.findall(rest)}
    if not values:
        return None
    total = {"num_steps": int(step[2])} if step[2] else {}
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return {"step": int(step[1]), **total, **finite}


def printed_row(patterns: Mapping[str, str], text: str) -> Row:
    """Return the row of the last matches of some patterns in a log.

    Args:
        patterns: column to a regular expression with one group.
        text: what the command printed.

    Raises:
        StageFailure: a pattern matches nothing (cause ``data``), or a number is not finite (cause ``nan``).
    """
    row: dict[str, Any] = {}
    plain = SEQUENCE.sub("", text)
    for name, pattern in patterns.items():
        found = _last_match(pattern, plain)
        if found is None:  # the pattern may describe the sequences themselves
            found = _last_match(pattern, text)
        if found is None:
            raise StageFailure(
                "data", f"nothing that the command printed matches the metric {name}: {pattern!r}"
            )
        try:
            value: Any = int(found) if re.fullmatch(r"[+-]?\d{1,18}", found) else float(found)
        except ValueError:
            value = found
        if isinstance(value, float) and not math.isfinite(value):
            raise StageFailure("nan", f"the metric {name} is {found}")
        row[name] = value
    return row


def _last_match(pattern: str, text: str) -> str | None:
    found = None
    for match in re.finditer(pattern, text, re.MULTILINE):
        found = found if match[1] is None else match[1]  # None: an alternative without the group
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
