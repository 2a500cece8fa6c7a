"""Who may read and write a store that is a folder: its root's mode says it, and no process's own umask.

A store that this package makes is its maker's alone (0700), or by ``store.shared=true`` its group's (2770:
what is made in it gets its group). A folder that was there keeps the mode that it has.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import SweepError, UserError

PRIVATE, SHARED = 0o700, 0o2770
FIX = "whoever owns it: chmod -R g+rwX {0}; find {0} -type d -exec chmod g+s {{}} +  (and a umask of 002)"
_SAMPLED = 200


def make_root(root: Path, *, shared: bool) -> None:
    """Make a store's folder with the mode that its files follow; one that is there is left as it is.

    Raises:
        OSError: it cannot be made.
    """
    if root.is_dir():
        return
    root.mkdir(parents=True)
    root.chmod(SHARED if shared else PRIVATE)


def follow_root(root: Path) -> None:
    """Let all that this process and its children make take group and other bits from the store's root.

    The umask of a colleague would else lock the others out, or let everybody in.
    """
    try:
        mode = root.stat().st_mode
    except OSError:
        return  # not made yet
    before = os.umask(~mode & 0o077)
    _usual.append(before)


_usual: list[int] = []


@contextlib.contextmanager
def as_usual() -> Iterator[None]:
    """Let what is made meanwhile have the modes that the user's umask says: files outside the store."""
    followed = os.umask(_usual[0]) if _usual else None
    try:
        yield
    finally:
        if followed is not None:
            os.umask(followed)


def refused(root: Path, error: OSError) -> SweepError | None:
    """Return what to tell a user whom a folder does not let in, None for any other error."""
    if error.errno not in (errno.EACCES, errno.EPERM):
        return None
    return UserError(
        f"the store {root} does not let us in: {error.strerror}",
        where=f"{error.filename or root}; {_who(root)}",
        allowed="a store for colleagues is made with store.shared=true, in a folder of their common group",
        fix=FIX.format(root),
    )


def problems(root: Path) -> Iterator[str]:
    """Name what locks this user out, or would lock out colleagues of a store that its group may write."""
    mode = root.stat().st_mode
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        yield f"{root} does not let us in: {_who(root)}; {FIX.format(root)}"
        return
    if not mode & stat.S_IWGRP:
        return
    if not mode & stat.S_ISGID:
        yield f"its group may write, but files in it get their writer's own group: chmod g+s {root}"
    closed, seen = 0, 0
    for place, folders, _ in os.walk(root):
        for path in (Path(place, name) for name in folders):
            seen += 1
            closed += path.lstat().st_mode & 0o070 != 0o070
        if seen >= _SAMPLED:
            break
    if closed:
        yield f"{closed} of {seen} folders are closed to its group, as by a umask of 022: {FIX.format(root)}"


def _who(root: Path) -> str:
    try:
        found = root.stat()
    except OSError:
        return "its owner is not known"
    return f"it is user {found.st_uid}'s and group {found.st_gid}'s, mode {stat.S_IMODE(found.st_mode):o}"
