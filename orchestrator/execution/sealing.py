"""Checkpoints that a command saves: find those that are complete, and make them count.

A command announces a finished checkpoint by renaming its folder to the final name. A thread checks once a
second for such folders, so that even the sudden loss of all processes costs only what was renamed in the last
two seconds. A folder counts when two consecutive checks find it unchanged. One that changes or vanishes in
between is left for the next check, because commands rotate their checkpoints.

Why renaming is visible: a rename sets the change time of the folder itself, later than all writes inside. A
folder that is written in place under its final name fails this test. It is sealed only after its command has
ended by itself::

    write tmp/a, tmp/b; rename tmp -> 300    change time of 300 is later than a and b: complete
    mkdir 300; write 300/a, 300/b            change time of 300 is earlier than b: maybe incomplete
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
from orchestrator.saving import MANIFEST, CheckpointManifest
from orchestrator.stage import Context
from orchestrator.store import layout

LOOK_S = 1.0
_Stamp = tuple[tuple[str, int, int, int], ...]


class Sealer:
    """The thread that seals the checkpoints of one command.

    Args:
        context: the attempt's context. Its adopted checkpoint is sealed already.

    Attributes:
        superseded: why nothing is sealed any more; "" while this attempt counts.
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
        """Start the periodic checks."""
        self._thread.start()

    def finish(self, *, by_itself: bool) -> None:
        """Stop the periodic checks, and seal what is left when the command has ended.

        Args:
            by_itself: whether the command ended by itself, so that a folder written in place is complete too.
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
        """Seal the checkpoints that this check and the previous one found unchanged.

        Args:
            is_last: whether the command has ended, so that one check is enough.
            by_itself: whether it ended by itself, so that a folder written in place is complete too.
        """
        seen, self._seen = self._seen, {}
        self._unseal_if_changed()
        try:
            paths = [path for path in self._folder.iterdir() if not path.is_symlink() and path.is_dir()]
        except OSError:
            return
        steps = [(step, path) for path in paths if (step := step_of(path.name)) is not None]
        for step, path in sorted(steps, reverse=True):  # the newest first, because time may run out
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
        if contain(path):  # links were replaced by copies, which changed the folder
            stamp = _stamp(path)
        self._context.seal(path, step)
        self._newest = path, stamp
        self._unseal_if_changed()

    def _unseal_if_changed(self) -> None:
        """Remove the manifest from the folder sealed last, if the command writes to it after all."""
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
        """Print one line when everything that a command saved is unusable as a checkpoint."""
        with contextlib.suppress(OSError):
            own = [path for path in self._folder.iterdir() if path != self._adopted and path.name[0] != "."]
            others = [p.name for p in own if step_of(p.name) is None or p.is_symlink() or not p.is_dir()]
            if others and len(others) == len(own):
                print(
                    f"{others[0]} is no checkpoint, which is a folder renamed to the number of its step",
                    flush=True,
                )

    def _is_sealed(self, path: Path, step: int) -> bool:
        """Whether a folder has a manifest; remove one that was copied along from another checkpoint."""
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
            # Not our format: the command uses this file name itself, so the folder cannot be sealed.
            return True
        if (manifest.step, manifest.attempt) == (step, self._context.attempt):
            return True
        with contextlib.suppress(OSError):
            (path / MANIFEST).unlink()
        return False


def _stamp(folder: Path, *, without: str = "") -> _Stamp:
    """Return the state of a folder, to compare: each path with its inode, size and time of writing."""
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
    """Whether the folder got its name after everything in it was written."""
    return bool(stamp) and folder.stat().st_ctime_ns >= max(written_ns for *_, written_ns in stamp)
