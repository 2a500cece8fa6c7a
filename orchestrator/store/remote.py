"""A store in a bucket: records are objects, payload is prepared and fetched through a node-local cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.manifest import File, file_digest
from orchestrator.store.cache import Cache
from orchestrator.store.client import Connection, Move
from orchestrator.store.objects import TEMPORARY, Listing, idle

LEASE_S = 120.0
"""At least: a live worker may be silent for one heartbeat's interval and limit, and a record that it reads in
five tries of 10 s each; a bucket shows each write at once, so nothing is added for caches of others."""

_WRITTEN_ONCE = ("payload/", "code/")


class Transfer(NamedTuple):
    """An upload on its way."""

    connection: Connection
    number: int

    def is_done(self) -> bool:
        """Tells whether it is over; asks nobody and waits for nothing.

        Raises:
            OSError: it failed, or the broker was lost.
        """
        answer = self.connection.taken(self.number)
        if answer is not None and answer.error:
            raise OSError(answer.errno, answer.error)
        return answer is not None


class RemoteStore:
    """A bucket, or a prefix in one, at ``s3://`` or ``gs://``.

    Args:
        url: the address, normalised.
        home: of the caches; by default as the environment says.

    Raises:
        UserError: the environment's limit of the cache is no number.
    """

    in_place = False
    min_lease_s = LEASE_S

    def __init__(self, url: str, *, home: Path | None = None) -> None:
        self.url = url
        self.cache = Cache(url, home)
        self._connection = Connection(url)
        self._own: set[str] = set()

    def close(self) -> None:
        """Ends the broker; the next operation starts another."""
        self._connection.close()

    # Records

    def create(self, key: str, data: bytes) -> bool:
        """Puts under the condition that there is no such key; never tried twice."""
        return bool(self._connection.call("create", key, data=data))

    def put(self, key: str, data: bytes) -> None:
        """Puts; an object is replaced as a whole."""
        self._connection.call("put", key, data=data)

    def get(self, key: str) -> bytes | None:
        """Reads an object."""
        data: bytes | None = self._connection.call("get", key)
        return data

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Reads many objects at a time."""
        asked = list(keys)
        return dict(zip(asked, self._connection.call("get_many", *asked), strict=True)) if asked else {}

    def read_from(self, key: str, start: int, limit: int | None = None) -> bytes:
        """Reads the rest of an object, or the next bytes of it."""
        data: bytes = self._connection.call("read_from", key, start=start, limit=limit)
        return data

    def list(self, prefix: str) -> Listing:
        """Lists one level."""
        files, folders = self._connection.call("list", prefix)
        return Listing(_shown(files), _shown(folders))

    def list_many(self, prefixes: Iterable[str]) -> dict[str, Listing]:
        """Lists one level of many prefixes at a time."""
        asked = list(prefixes)
        found = self._connection.call("list_many", *asked) if asked else []
        return {
            prefix: Listing(_shown(files), _shown(folders))
            for prefix, (files, folders) in zip(asked, found, strict=True)
        }

    def trees(self, prefixes: Iterable[str]) -> dict[str, dict[str, int]]:
        """Lists all under many prefixes at a time; a bucket says the sizes with the names."""
        asked = list(prefixes)
        return dict(zip(asked, self._connection.call("trees", *asked), strict=True)) if asked else {}

    # Payload

    def folder(self, prefix: str) -> Path:
        """Where it is, or would be, in the cache."""
        return self.cache.folder(prefix)

    def workspace(self, prefix: str) -> Path:
        """A folder in the cache; of a payload it is empty at first, since nobody else has prepared it."""
        if prefix.startswith("payload/") and prefix not in self._own:
            self.cache.clear(prefix)  # of a store that was at this address before
            self._own.add(prefix)
        path = self.cache.hold(prefix)
        path.mkdir(parents=True, exist_ok=True)
        self.cache.shrink()
        return path

    def upload(self, prefix: str, *, pulse: Callable[[], object] = idle) -> None:
        """Uploads what is not there yet; what is written once is there when its size is right."""
        root = self.folder(prefix)
        paths = [Path(place, name) for place, _, names in os.walk(root) for name in names]
        files = [p for p in paths if p.is_file() and not p.name.startswith(TEMPORARY)]
        there = self.trees([prefix])[prefix] if prefix.startswith(_WRITTEN_ONCE) else {}
        moves = [self._move(prefix, path.relative_to(root).as_posix()) for path in files]
        skip = len(prefix) + 1
        moves = [move for move in moves if there.get(move.key[skip:]) != move.size]
        if moves:
            self._connection.call("upload", moves=moves, pulse=pulse)

    def begin_upload(self, prefix: str, paths: Iterable[str], *, folder: Path | None = None) -> Transfer:
        """Begins to upload some files, and returns at once.

        Args:
            prefix: where to.
            paths: relative to the prefix.
            folder: where they are instead of in the cache's own place.

        Raises:
            OSError: a file is gone, or the broker cannot be reached.
        """
        moves = [self._move(prefix, path, folder) for path in paths]
        return Transfer(self._connection, self._connection.begin("upload", moves=moves))

    def discard(self, prefix: str) -> None:
        """Deletes objects, and leaves what lies here to who wrote it."""
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
        """Downloads what is not in the cache as recorded; the content of what is there is compared first."""
        folder = self.cache.hold(prefix)
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
                    Path(move.path).unlink(missing_ok=True)  # a copy, whose links elsewhere stay
                self.cache.shrink()
                self._connection.call("download", moves=missing, pulse=pulse)
        return folder

    def release(self, prefix: str) -> None:
        """The cache may remove it from now on."""
        self.cache.release(prefix)

    def delete(self, prefix: str) -> None:
        """Deletes all objects under a prefix, and their copies here."""
        self._connection.call("delete", prefix)
        self.cache.clear(prefix)


def _shown(names: Sequence[str]) -> tuple[str, ...]:
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
