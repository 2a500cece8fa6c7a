"""A store in a bucket. Records are objects; payload is prepared in, and downloaded to, a node-local cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.digests import file_digest
from orchestrator.manifest import File
from orchestrator.store.cache import Cache
from orchestrator.store.client import Connection, Move
from orchestrator.store.objects import TEMPORARY, Listing, idle

LEASE_S = 120.0
"""Shortest lease in seconds. A live worker may be silent for a heartbeat interval and its time limit (20 s),
plus one record that it reads in five tries of 10 s each. A bucket shows a write at once, so no time is added
for caches.
"""

_WRITTEN_ONCE = ("payload/", "code/")


class Transfer(NamedTuple):
    """An upload in progress.

    Attributes:
        connection: Connection that performs it.
        number: Number of the call.
    """

    connection: Connection
    number: int

    def is_done(self) -> bool:
        """Return whether the upload has finished, without waiting.

        After it has returned True, it must not be called again: the reply can be taken only once.

        Raises:
            OSError: The upload failed, or the broker was lost.
        """
        answer = self.connection.taken(self.number)
        if answer is not None and answer.error:
            raise OSError(answer.errno, answer.error)
        return answer is not None


class RemoteStore:
    """A bucket, or a prefix in one, at ``s3://`` or ``gs://``.

    Args:
        url: The address, normalised.
        home: Folder of the caches; None for the one that the environment names.

    Raises:
        UserError: The cache limit in the environment is not a number.
    """

    in_place = False
    min_lease_s = LEASE_S

    def __init__(self, url: str, *, home: Path | None = None) -> None:
        self.url = url
        self.cache = Cache(url, home)
        self._connection = Connection(url)
        # Payload prefixes that this process has prepared.
        self._own: set[str] = set()

    def close(self) -> None:
        """Stop the broker; the next operation starts another."""
        self._connection.close()

    # Records

    def create(self, key: str, data: bytes) -> bool:
        """Create an object on the condition that it is absent, without a retry."""
        return bool(self._connection.call("create", key, data=data))

    def put(self, key: str, data: bytes) -> None:
        """Write an object as a whole."""
        self._connection.call("put", key, data=data)

    def get(self, key: str) -> bytes | None:
        """Read an object."""
        data: bytes | None = self._connection.call("get", key)
        return data

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Read many objects concurrently."""
        asked = list(keys)
        return dict(zip(asked, self._connection.call("get_many", *asked), strict=True)) if asked else {}

    def read_from(self, key: str, start: int, limit: int | None = None) -> bytes:
        """Read an object from a byte offset."""
        data: bytes = self._connection.call("read_from", key, start=start, limit=limit)
        return data

    def list(self, prefix: str) -> Listing:
        """List one level."""
        files, folders = self._connection.call("list", prefix)
        return Listing(_shown(files), _shown(folders))

    def list_many(self, prefixes: Iterable[str]) -> dict[str, Listing]:
        """List one level of many prefixes concurrently."""
        asked = list(prefixes)
        found = self._connection.call("list_many", *asked) if asked else []
        return {
            prefix: Listing(_shown(files), _shown(folders))
            for prefix, (files, folders) in zip(asked, found, strict=True)
        }

    def trees(self, prefixes: Iterable[str]) -> dict[str, dict[str, int]]:
        """List all objects under many prefixes; a bucket lists sizes together with names."""
        asked = list(prefixes)
        return dict(zip(asked, self._connection.call("trees", *asked), strict=True)) if asked else {}

    # Payload

    def folder(self, prefix: str) -> Path:
        """Return the place in the cache."""
        return self.cache.folder(prefix)

    def workspace(self, prefix: str) -> Path:
        """Return a folder in the cache; for payload, it is empty at first use."""
        if prefix.startswith("payload/") and prefix not in self._own:
            self.cache.clear(prefix)  # left by an earlier store at this address
            self._own.add(prefix)
        path = self.cache.hold(prefix)
        path.mkdir(parents=True, exist_ok=True)
        self.cache.shrink()
        return path

    def upload(self, prefix: str, *, pulse: Callable[[], object] = idle) -> None:
        """Upload new and changed files. Under keys that are written once, an equal size is enough."""
        root = self.folder(prefix)
        paths = [Path(place, name) for place, _, names in os.walk(root) for name in names]
        files = [p for p in paths if p.is_file() and not p.name.startswith(TEMPORARY)]
        # These files never change, so an upload that was interrupted can continue where it stopped.
        there = self.trees([prefix])[prefix] if prefix.startswith(_WRITTEN_ONCE) else {}
        moves = [self._move(prefix, path.relative_to(root).as_posix()) for path in files]
        skip = len(prefix) + 1
        moves = [move for move in moves if there.get(move.key[skip:]) != move.size]
        if moves:
            self._connection.call("upload", moves=moves, pulse=pulse)

    def begin_upload(self, prefix: str, paths: Iterable[str], *, folder: Path | None = None) -> Transfer:
        """Start an upload of some files, and return at once.

        Args:
            prefix: Destination.
            paths: Paths relative to the prefix.
            folder: Folder with the files, if it is not the prefix's place in the cache.

        Raises:
            OSError: A file is missing, or the broker cannot be reached.
        """
        moves = [self._move(prefix, path, folder) for path in paths]
        return Transfer(self._connection, self._connection.begin("upload", moves=moves))

    def discard(self, prefix: str) -> None:
        """Delete objects, but keep the local files, which belong to their writer."""
        self._connection.call("delete", prefix)

    def _move(self, prefix: str, path: str, folder: Path | None = None) -> Move:
        local = (folder or self.folder(prefix)) / path
        return Move(f"{prefix}/{path}", str(local), local.stat().st_size)

    def fetch(
        self,
        prefix: str,
        files: Sequence[File],
        *,
        content: bool = True,
        pulse: Callable[[], object] = idle,
    ) -> Path:
        """Download files that the cache does not hold as recorded."""
        folder = self.cache.hold(prefix)
        # The common case needs no lock.
        if all(_is_there(folder, file) for file in files) and not content:
            return folder
        with self.cache.filling(prefix, pulse):
            missing = []
            for file in files:
                pulse()
                if not (_is_there(folder, file) and (not content or _is_right(folder, file))):
                    missing.append(
                        Move(f"{prefix}/{file.path}", str(folder / file.path), file.size, file.sha256)
                    )
            if missing:
                for move in missing:
                    # The download skips absent objects, whose stale copies must not stay. Hard links
                    # elsewhere do.
                    Path(move.path).unlink(missing_ok=True)
                self.cache.shrink()
                self._connection.call("download", moves=missing, pulse=pulse)
        return folder

    def release(self, prefix: str) -> None:
        """Allow the cache to evict the folder."""
        self.cache.release(prefix)

    def delete(self, prefix: str) -> None:
        """Delete all objects under a prefix, and their local copies."""
        self._connection.call("delete", prefix)
        self.cache.clear(prefix)


def _shown(names: Sequence[str]) -> tuple[str, ...]:
    # Hidden names are skipped as in a folder store.
    return tuple(name for name in names if not name.startswith("."))


def _is_there(folder: Path, file: File) -> bool:
    try:
        return (folder / file.path).stat().st_size == file.size
    except OSError:
        return False


def _is_right(folder: Path, file: File) -> bool:
    try:
        return file_digest(folder / file.path) == file.sha256
    except OSError:
        return False
