"""Checkpoints that a command saves: finding those that are whole, and making them count.

A command gives a finished folder its final name by renaming it, while it runs or when it is asked to stop. A
thread looks once a second, so that the loss of all processes at once costs what was renamed in the last two
seconds. A folder counts when two looks have found it the same. What changes or vanishes meanwhile is left for
the next look: commands rotate theirs.

A rename sets the change time of the folder itself, after all that it holds was written. A folder that is
written in place under its final name fails this test, and is sealed only when its command has ended by
itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import msgspec

from orchestrator import formats
from orchestrator.errors import StageFailure, StopRequested
from orchestrator.manifest import contain, step_of
from orchestrator.stage import MANIFEST, CheckpointManifest, Context
from orchestrator.store import layout

LOOK_S = 1.0
_Stamp = tuple[tuple[str, int, int, int], ...]


class Sealer:
    """Seals the checkpoints of one command.

    Args:
        context: of the attempt; what it adopted is sealed already.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._folder = context.folder / layout.CHECKPOINTS
        self._seen: dict[Path, _Stamp] = {}
        self._newest: tuple[Path, _Stamp] | None = None
        self._reported: set[Path] = set()
        self._adopted = context.resume.folder if context.resume else None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sealer", daemon=True)
        self.superseded = ""
        """Why nothing is sealed any more; "" while this attempt counts."""

    def start(self) -> None:
        """Starts looking."""
        self._thread.start()

    def finish(self, *, by_itself: bool) -> None:
        """Seals what is left when the command has ended; waits for it.

        Args:
            by_itself: the command ended by itself, so that a folder that it wrote in place is whole too.
        """
        self._end.set()
        self._thread.join()
        if not self.superseded:
            self.look(is_last=True, by_itself=by_itself)
            self._name_others()

    def _run(self) -> None:
        while not self._end.wait(LOOK_S) and not self.superseded:
            self.look()

    def look(self, *, is_last: bool = False, by_itself: bool = False) -> None:
        """Seals what this look and the one before have found the same.

        Args:
            is_last: the command has ended, so that one look is enough.
            by_itself: it ended by itself, so that a folder that it wrote in place is whole too.
        """
        seen, self._seen = self._seen, {}
        self._unseal_if_changed()
        try:
            paths = [path for path in self._folder.iterdir() if not path.is_symlink() and path.is_dir()]
        except OSError:
            return
        steps = [(step, path) for path in paths if (step := step_of(path.name)) is not None]
        for step, path in sorted(steps, reverse=True):  # the newest first: time may run out
            if self._is_sealed(path, step):
                continue
            try:
                stamp = _stamp(path)
                self._seen[path] = stamp
                is_same = is_last or seen.get(path) == stamp
                if is_same and (by_itself or _was_renamed(path, stamp)):
                    self._seal(path, step, stamp)
            except StopRequested as stopped:
                self.superseded = stopped.why
                return
            except (OSError, StageFailure, ValueError) as error:
                if is_last and path.exists():
                    print(f"checkpoint {path.name} is not sealed: {error}", flush=True)

    def _seal(self, path: Path, step: int, stamp: _Stamp) -> None:
        if contain(path):  # links became copies
            stamp = _stamp(path)
        self._context.seal(path, step)
        self._newest = path, stamp
        self._unseal_if_changed()

    def _unseal_if_changed(self) -> None:
        """Takes the manifest back from the folder that was sealed last, if it is written to after all."""
        if self._newest is None:
            return
        path, stamp = self._newest
        try:
            if _stamp(path, without=MANIFEST) == stamp:
                return
        except OSError:
            pass  # the command is deleting it
        self._newest = None
        with contextlib.suppress(OSError):
            (path / MANIFEST).unlink()

    def _name_others(self) -> None:
        """Says once what a command saved that counts for nothing, where nothing that it saved counts."""
        with contextlib.suppress(OSError):
            own = [path for path in self._folder.iterdir() if path != self._adopted and path.name[0] != "."]
            others = [p.name for p in own if step_of(p.name) is None or p.is_symlink() or not p.is_dir()]
            if others and len(others) == len(own):
                print(
                    f"{others[0]} is no checkpoint, which is a folder renamed to the number of its step",
                    flush=True,
                )

    def _is_sealed(self, path: Path, step: int) -> bool:
        """Whether a folder has its manifest; removes one that was copied along from another checkpoint."""
        try:
            data = (path / MANIFEST).read_bytes()
        except OSError:
            return False
        if path == self._adopted:
            return True
        try:
            manifest = formats.decode(data, CheckpointManifest)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if path not in self._reported:
                self._reported.add(path)
                print(f"checkpoint {path.name} does not count: it holds a {MANIFEST} of its own", flush=True)
            return True
        if (manifest.step, manifest.attempt) == (step, self._context.attempt):
            return True
        with contextlib.suppress(OSError):
            (path / MANIFEST).unlink()
        return False


def _stamp(folder: Path, *, without: str = "") -> _Stamp:
    """Returns what tells two states of a folder apart: each path with its inode, size and time of writing."""
    found = []
    for root, folders, names in os.walk(folder, onerror=_raise):
        for name in [*folders, *names]:
            if root == str(folder) and name == without:
                continue
            path = os.path.join(root, name)  # noqa: PTH118 - of each file at each look
            stat = os.lstat(path)
            found.append((path, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found))


def _raise(error: OSError) -> None:
    raise error


def _was_renamed(folder: Path, stamp: _Stamp) -> bool:
    """Whether the folder got its name after all that it holds was written."""
    return bool(stamp) and folder.stat().st_ctime_ns >= max(written_ns for *_, written_ns in stamp)
