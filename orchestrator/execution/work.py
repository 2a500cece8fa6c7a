"""The work folder of an attempt: taking over the former attempt's, and what of it becomes product.

A script that knows nothing of checkpoints writes into one folder and goes on with what it finds there. Each
attempt has such a folder of its own, so that a former owner that is still alive cannot write into it. The
next attempt takes the newest one over: by renaming it where the former owner is provably gone, else by
copying it. A copy shares no blocks that either side could change: it is made by reflinks or bytes, never by
hard links. A former owner may still write while its folder is copied, so a pass over it is repeated until it
finds nothing changed.
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

from orchestrator.core.state import Attempt, Liveness
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import StageFailure
from orchestrator.execution.resume import is_discarded
from orchestrator.manifest import TRANSIENT, copy_file, fsync_path, fsync_tree
from orchestrator.stage import Context
from orchestrator.store import layout
from orchestrator.store.evidence import inspect_owner
from orchestrator.store.ledger import Ledger

PATIENCE_S, PAUSE_S = 120.0, 0.5
"""How long a folder that changes all the time is copied again and again, and the pause between two passes."""

FRESH_NS = 10**9
"""A file that was written less than this ago is copied twice: a write right after may show the same time."""

COPYING = ".work"


class _Entry(NamedTuple):
    """What tells two states of a file, folder or link apart."""

    mode: int
    inode: int
    size: int
    written_ns: int


def take_over(
    ledger: Ledger,
    node: StageInstance,
    attempts: Sequence[Attempt],
    folder: Path,
    *,
    pulse: Callable[[], object] = lambda: None,
    taking: Callable[[int], object] = lambda number: None,
) -> int | None:
    """Brings the newest work folder of the earlier attempts into this attempt's own folder.

    Args:
        ledger: the store.
        node: the stage.
        attempts: all earlier attempts.
        folder: this attempt's own payload folder.
        pulse: called often meanwhile: a large copy takes longer than a lease.
        taking: called with the number of the attempt before the folder is in its new place.

    Returns:
        The number of the attempt whose folder it was, None when there is none.

    Raises:
        OSError: the folder did not stop to change, or the file system refused.
    """
    if not ledger.objects.in_place:
        return None
    target = folder / layout.WORK
    for attempt in reversed(attempts):
        source = work_of(ledger, node, attempt)
        if not source.is_dir() or is_discarded(ledger, node, attempt):
            continue
        is_gone = attempt.end is not None or inspect_owner(node, attempt).liveness is Liveness.GONE
        try:
            if is_gone:
                taking(attempt.number)
                source.rename(target)
                fsync_path(source.parent)
            else:
                _copy(source, folder / COPYING, pulse)
                fsync_tree(folder / COPYING)
                taking(attempt.number)
                (folder / COPYING).rename(target)
        except FileNotFoundError:
            continue  # another attempt took it meanwhile, and died of it or holds it
        _repoint(target, source)
        fsync_path(folder)
        return attempt.number
    return None


def work_of(ledger: Ledger, node: StageInstance, attempt: Attempt) -> Path:
    """Returns where an attempt's work folder is, or would be."""
    key = layout.payload(node.stage, node.digest, attempt.number)
    return ledger.objects.folder(key) / layout.WORK


def _copy(source: Path, target: Path, pulse: Callable[[], object]) -> None:
    """Copies a folder that may still be written to, until a pass finds it as the pass before left it."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    once: dict[str, _Entry] = {}  # all that lies in the copy
    copied: dict[str, _Entry] = {}  # of these, what need not be copied again
    start_s = time.monotonic()
    while True:
        seen = _entries(source)
        if seen == copied:
            return
        if time.monotonic() - start_s > PATIENCE_S:
            raise OSError(errno.EBUSY, f"an owner that should have ended still writes into {source}")
        for name in [name for name in sorted(once, reverse=True) if seen.get(name) != once[name]]:
            if name not in seen or not (stat.S_ISDIR(seen[name].mode) and stat.S_ISDIR(once[name].mode)):
                _remove(target / name)
            del once[name]
            copied.pop(name, None)
        for name in [name for name in sorted(seen) if name not in copied]:
            try:
                _copy_entry(source / name, target / name, seen[name], pulse)
                if time.time_ns() - seen[name].written_ns > FRESH_NS or once.get(name) == seen[name]:
                    copied[name] = seen[name]
                once[name] = seen[name]
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                _remove(target / name)  # it went away meanwhile: the next pass sees what there is
        pulse()
        if _entries(source) != copied:
            time.sleep(PAUSE_S)


def _entries(folder: Path) -> dict[str, _Entry]:
    """Returns what lies under a folder, by path; what is no file, folder or link is left out."""
    entries = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            if TRANSIENT.fullmatch(name):
                continue  # deleted, but open elsewhere
            is_file, is_link = stat.S_ISREG(found.st_mode), stat.S_ISLNK(found.st_mode)
            if is_file or is_link or stat.S_ISDIR(found.st_mode):
                size, written_ns = (found.st_size, found.st_mtime_ns) if is_file or is_link else (0, 0)
                key = path.relative_to(folder).as_posix()
                entries[key] = _Entry(found.st_mode, found.st_ino, size, written_ns)
    return entries


def _copy_entry(source: Path, target: Path, entry: _Entry, pulse: Callable[[], object]) -> None:
    if stat.S_ISDIR(entry.mode):
        target.mkdir(exist_ok=True)
    elif stat.S_ISLNK(entry.mode):
        target.unlink(missing_ok=True)
        target.symlink_to(source.readlink())
    else:
        target.unlink(missing_ok=True)
        copy_file(source, target, pulse)
        shutil.copystat(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _repoint(folder: Path, old: Path) -> None:
    """Lets absolute links into the former place, such as ``last.ckpt``, point into this one."""
    for name, entry in _entries(folder).items():
        if stat.S_ISLNK(entry.mode):
            link = folder / name
            aim = link.readlink()
            if aim.is_absolute() and aim.is_relative_to(old):
                link.unlink()
                link.symlink_to(folder / aim.relative_to(old))


def keep(context: Context, patterns: Sequence[str]) -> list[Path]:
    """Puts the files of the work folder that patterns name into the output folder, under the same paths.

    Links are followed: what they name is put in their place. A folder that matches is put with all it holds.

    Returns:
        The paths that it made.

    Raises:
        StageFailure: a pattern matches no file, or the output has such a file already (cause ``data``); then
            the output is as it was.
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
    """Removes what `keep` made."""
    for path in made:
        path.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [] if path.name.startswith(".nfs") else [path]
    return [file for child in sorted(path.iterdir()) if child.exists() for file in _files(child)]


def _put(file: Path, target: Path) -> None:
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
