"""Digests of files: computed in threads, and remembered for files that this process has hashed.

This module handles files of a local file system only; it uses no store and no stage.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

MAX_HASH_THREADS = 8
"""Most files that are hashed at a time. Eight threads hash about 10 GB/s, more than most disks write."""
SETTLED_S = 0.1
"""Age in seconds that a file must have for its digest to be remembered.

File systems record times in ticks of some milliseconds. A file that is changed twice in one tick, without
another size, would look unchanged.
"""

FileKey = tuple[int, int, int, int]
"""Device, inode, size in bytes and modification time in ns: what stays when a file is hard-linked."""


def file_digest(path: Path) -> str:
    """Return the sha-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def num_hash_threads() -> int:
    """Return how many files to hash at a time. `hashlib` releases Python's lock, so threads suffice."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_HASH_THREADS, usable)


def key_of(path: Path) -> FileKey:
    """Return what identifies the content of a file without reading it."""
    now = path.stat()
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


class Digests:
    """Digests of files that this process has hashed, so that a hard-linked file is not hashed again.

    A training links the weights of all earlier epochs into each of its checkpoints. The time of the last
    change of the inode (``ctime``) is no part of the key, because a new link sets it.
    """

    def __init__(self) -> None:
        self._known: dict[FileKey, str] = {}

    def digest(self, path: Path) -> str:
        """Return the sha-256 of a file's content, computed unless it is remembered."""
        key = key_of(path)
        if key not in self._known:
            digest = file_digest(path)
            is_settled = time.time_ns() - key[3] > SETTLED_S * 1e9
            if is_settled:
                self.remember(path, key, digest)
            return digest
        return self._known[key]

    def remember(self, path: Path, key: FileKey, digest: str) -> None:
        """Remember the digest of a file that nothing writes any more, if the file still has the key."""
        with contextlib.suppress(FileNotFoundError):
            if key_of(path) == key:
                self._known[key] = digest

    def of(self, paths: Iterable[Path]) -> dict[str, tuple[FileKey, str]]:
        """Return what is remembered of files, by path, for `accept` in another process."""
        keys = {str(path): key_of(path) for path in paths}
        return {path: (key, self._known[key]) for path, key in keys.items() if key in self._known}

    def accept(self, found: Mapping[str, tuple[FileKey, str]]) -> None:
        """Remember what another process computed. A file that looks different from here is left out."""
        for path, (key, digest) in found.items():
            self.remember(Path(path), key, digest)


REMEMBERED = Digests()
"""The digests that this process has computed or received."""
