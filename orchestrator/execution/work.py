"""The work folder of an attempt: taking over the previous one, and putting files to keep into the product.

A script without checkpoints writes into one folder and continues with what it finds there. Each attempt has
such a folder of its own, because an earlier owner that still lives must not write into it. The next attempt
takes over the newest one: by renaming it if the earlier owner is provably gone, else by copying it.

A copy must not share blocks that either side could change, so it uses reflinks or bytes, never hard links.
The earlier owner may write during the copy, so passes are repeated until one finds nothing changed::

    pass 1: copies a, b      (the owner writes b meanwhile)
    pass 2: copies b again
    pass 3: nothing changed, the copy is complete
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.evidence import Attempt, Liveness
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import StageFailure
from orchestrator.execution.checkpoints import is_discarded, work_of
from orchestrator.manifest import TRANSIENT, copy_file, fsync_path, fsync_tree
from orchestrator.stage import Context
from orchestrator.store import layout
from orchestrator.store.evidence import inspect_owner
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import Keepalive, idle

PATIENCE_S, PAUSE_S = 120.0, 0.5
"""Seconds during which a folder that keeps changing is copied, and seconds between two passes."""

FRESH_NS = 10**9
"""Age in nanoseconds below which a file is copied twice: two writes this close may show the same time."""

COPYING = ".work"
"""Folder of an unfinished copy; it is renamed when it is complete."""


class _Entry(NamedTuple):
    """The state of a file, folder or link, to compare."""

    mode: int
    inode: int
    size: int
    written_ns: int


def take_over(
    ledger: Ledger,
    instance: StageInstance,
    attempts: Sequence[Attempt],
    folder: Path,
    *,
    keepalive: Keepalive = idle,
    taking: Callable[[int], object] = lambda number: None,
) -> int | None:
    """Bring the newest work folder of the earlier attempts into this attempt's own folder.

    Args:
        ledger: the store.
        instance: the stage instance.
        attempts: all earlier attempts.
        folder: this attempt's own payload folder.
        keepalive: called often meanwhile, since a large copy takes longer than a lease.
        taking: called with the number of the attempt before the folder is in its new place.

    Returns:
        The number of the attempt whose folder was taken over; None if there is none.

    Raises:
        OSError: the folder did not stop changing, or the file system refused.
    """
    target = folder / layout.WORK
    for attempt in reversed(attempts):
        source = work_of(ledger, instance, attempt)
        if source is None or not source.is_dir() or is_discarded(ledger, instance, attempt):
            continue
        # Renaming under a live owner would let it write on in our folder through its open files.
        is_gone = attempt.end is not None or inspect_owner(instance, attempt).liveness is Liveness.GONE
        try:
            if is_gone:
                taking(attempt.number)
                source.rename(target)
                fsync_path(source.parent)
            else:
                _copy(source, folder / COPYING, keepalive)
                fsync_tree(folder / COPYING)
                taking(attempt.number)
                (folder / COPYING).rename(target)
        except FileNotFoundError:
            continue  # another attempt took it meanwhile; an older folder may still be there
        _repoint(target, source)
        fsync_path(folder)
        return attempt.number
    return None


def _copy(source: Path, target: Path, keepalive: Keepalive) -> None:
    """Copy a folder that may still be written to, until a pass finds nothing changed since the last one."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    once: dict[str, _Entry] = {}  # everything in the copy, with the state of its source
    copied: dict[str, _Entry] = {}  # the part of it that need not be copied again
    start_s = time.monotonic()
    while True:
        seen = _entries(source)
        if seen == copied:
            return
        if time.monotonic() - start_s > PATIENCE_S:
            raise OSError(errno.EBUSY, f"an owner that should have ended still writes into {source}")
        # Remove from the copy what changed or vanished; in reverse order, so that contents go before their
        # folder.
        for name in [name for name in sorted(once, reverse=True) if seen.get(name) != once[name]]:
            if name not in seen or not (stat.S_ISDIR(seen[name].mode) and stat.S_ISDIR(once[name].mode)):
                _remove(target / name)
            del once[name]
            copied.pop(name, None)
        for name in [name for name in sorted(seen) if name not in copied]:
            try:
                _copy_entry(source / name, target / name, seen[name], keepalive)
                if time.time_ns() - seen[name].written_ns > FRESH_NS or once.get(name) == seen[name]:
                    copied[name] = seen[name]
                once[name] = seen[name]
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                _remove(target / name)  # it vanished meanwhile: the next pass sees the new state
        keepalive()
        if _entries(source) != copied:
            time.sleep(PAUSE_S)


def _entries(folder: Path) -> dict[str, _Entry]:
    """Return the files, folders and links under a folder, by relative path. Other kinds are left out."""
    entries = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            if TRANSIENT.fullmatch(name):
                continue  # a network file system's name for a file that is deleted, but still open
            is_file, is_link = stat.S_ISREG(found.st_mode), stat.S_ISLNK(found.st_mode)
            if is_file or is_link or stat.S_ISDIR(found.st_mode):
                # A folder's own size and time change with its contents, which are compared one by one.
                size, written_ns = (found.st_size, found.st_mtime_ns) if is_file or is_link else (0, 0)
                key = path.relative_to(folder).as_posix()
                entries[key] = _Entry(found.st_mode, found.st_ino, size, written_ns)
    return entries


def _copy_entry(source: Path, target: Path, entry: _Entry, keepalive: Keepalive) -> None:
    if stat.S_ISDIR(entry.mode):
        target.mkdir(exist_ok=True)
    elif stat.S_ISLNK(entry.mode):
        target.unlink(missing_ok=True)
        target.symlink_to(source.readlink())
    else:
        target.unlink(missing_ok=True)
        copy_file(source, target, keepalive)
        shutil.copystat(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _repoint(folder: Path, old: Path) -> None:
    """Make absolute links into the previous place, such as ``last.ckpt``, point into this one."""
    for name, entry in _entries(folder).items():
        if stat.S_ISLNK(entry.mode):
            link = folder / name
            aim = link.readlink()
            if aim.is_absolute() and aim.is_relative_to(old):
                link.unlink()
                link.symlink_to(folder / aim.relative_to(old))


def keep(context: Context, patterns: Sequence[str]) -> list[Path]:
    """Put the files of the work folder that match the patterns into the output, under the same paths.

    Links are followed: the file that a link names takes its place. A folder that matches is put with its
    contents.

    Args:
        context: the attempt's context.
        patterns: glob patterns, relative to the work folder.

    Returns:
        The paths that were made.

    Raises:
        StageFailure: a pattern matches no file, or the output already has such a file (cause ``data``). The
            output is then unchanged.
    """
    made: list[Path] = []
    try:
        for pattern in patterns:
            matches = [path for path in sorted(context.work.glob(pattern)) if path.exists()]
            files = [file for path in matches for file in _files(path)]
            if not files:
                there = ", ".join(sorted(path.name for path in context.work.iterdir())[:8]) or "nothing"
                raise StageFailure("data", f"`keep` names {pattern!r}, but in the work folder is {there}")
            for file in files:
                target = context.output / file.relative_to(context.work)
                if target not in made:
                    _put(file, target)
                    made.append(target)
    except BaseException:
        undo(made)
        raise
    return made


def undo(made: Sequence[Path]) -> None:
    """Remove what `keep` made."""
    for path in made:
        path.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    """Return the files of a path: the file itself, or all files of a folder."""
    if not path.is_dir():
        return [] if TRANSIENT.fullmatch(path.name) else [path]
    return [file for child in sorted(path.iterdir()) if child.exists() for file in _files(child)]


def _put(file: Path, target: Path) -> None:
    """Place a file into the output, as a hard link if possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = file.resolve()
    try:
        os.link(source, target)
    except FileExistsError:
        raise StageFailure(
            "data", f"`keep` names {target.name!r}, which the stage wrote into its output too"
        ) from None
    except OSError:  # another file system, or one without links
        copy_file(source, target)
