"""A store in a bucket. Records are objects; payload is prepared in, and downloaded to, a node-local cache.

A code snapshot is one tar archive. Equal files give equal bytes on every machine.
"""

from __future__ import annotations

import io
import os
import tarfile
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from orchestrator.core.records import CodeFile
from orchestrator.manifest import File, damage
from orchestrator.store import layout
from orchestrator.store.cache import Cache
from orchestrator.store.client import Connection, Move, Transfer
from orchestrator.store.code import PlannedFile
from orchestrator.store.objects import TEMPORARY, Keepalive, Listing, T, idle
from orchestrator.store.publishing import BucketPublisher

ARCHIVE = "files.tar"
"""Name of the archive of a code snapshot, in its folder."""

LEASE_S = 120.0
"""Shortest lease in seconds. A live worker may be silent for a heartbeat interval and its time limit (20 s),
plus one record that it reads in five tries of 10 s each. A bucket shows a write at once, so no time is added
for caches.
"""

_WRITTEN_ONCE = ("payload/", "code/")


class RemoteStore:
    """A bucket, or a prefix in one, at ``s3://`` or ``gs://``.

    Args:
        url: The address, normalised.
        home: Folder of the caches; None for the one that the environment names.
        connection: To share with another one of this address; None for one of its own.

    Raises:
        UserError: The cache limit in the environment is not a number.
    """

    waits_out, poll_s, unseen_s = False, 5.0, 0.0
    min_lease_s, max_looks = LEASE_S, 200.0

    def __init__(self, url: str, *, home: Path | None = None, connection: Connection | None = None) -> None:
        self.url = url
        self.cache = Cache(url, home)
        self.home = self.cache.home
        self.connection = connection or Connection(url)
        # Payload prefixes that this process has prepared.
        self._own: set[str] = set()

    def close(self) -> None:
        """Stop the broker; the next operation starts another."""
        self.connection.close()

    def create(self, key: str, data: bytes) -> bool:
        """Create an object on the condition that it is absent, without a retry."""
        return bool(self.connection.call("create", key, data=data))

    def put(self, key: str, data: bytes) -> None:
        """Write an object as a whole."""
        self.connection.call("put", key, data=data)

    def get(self, key: str) -> bytes | None:
        """Read an object."""
        data: bytes | None = self.connection.call("get", key)
        return data

    def in_bulk(self, read: Callable[[], T]) -> T:
        """Read."""
        return read()

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Read many objects concurrently."""
        asked = list(keys)
        return dict(zip(asked, self.connection.call("get_many", *asked), strict=True)) if asked else {}

    def read_from(self, key: str, start: int, limit: int | None = None) -> bytes:
        """Read an object from a byte offset."""
        data: bytes = self.connection.call("read_from", key, start=start, limit=limit)
        return data

    def age_s(self, key: str) -> float:
        """Compare the times of two objects, one of which is new."""
        return float(self.connection.call("age", key))

    def list(self, prefix: str) -> Listing:
        """List one level."""
        return _listing(self.connection.call("list", prefix))

    def list_many(self, prefixes: Iterable[str]) -> dict[str, Listing]:
        """List one level of many prefixes concurrently."""
        asked = list(prefixes)
        found = self.connection.call("list_many", *asked) if asked else []
        return {prefix: _listing(each) for prefix, each in zip(asked, found, strict=True)}

    def trees(self, prefixes: Iterable[str]) -> dict[str, dict[str, int]]:
        """List all objects under many prefixes; a bucket lists sizes together with names."""
        asked = list(prefixes)
        return dict(zip(asked, self.connection.call("trees", *asked), strict=True)) if asked else {}

    # Payload

    def sizes(self, prefix: str, files: Sequence[File]) -> dict[str, int]:
        """List the folder, without a download."""
        return self.trees([prefix])[prefix]

    def size(self, key: str) -> int:
        """List the folder of the file."""
        folder, _, name = key.rpartition("/")
        return self.trees([folder])[folder].get(name, 0)

    def folder(self, prefix: str) -> Path:
        """Return the place in the cache."""
        return self.cache.folder(prefix)

    def shared_folder(self, prefix: str) -> None:
        """Return None: the cache is this node's alone."""

    def workspace(self, prefix: str) -> Path:
        """Return a folder in the cache; for payload, it is empty at first use."""
        if prefix.startswith("payload/") and prefix not in self._own:
            self.cache.clear(prefix)  # left by an earlier store at this address
            self._own.add(prefix)
        path = self.cache.hold(prefix)
        path.mkdir(parents=True, exist_ok=True)
        self.cache.shrink()
        return path

    def upload(self, prefix: str, *, keepalive: Keepalive = idle) -> None:
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
            self.connection.call("upload", moves=moves, keepalive=keepalive)

    def share(self, prefix: str) -> None:
        """Upload the files."""
        self.upload(prefix)

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
        return Transfer(self.connection, self.connection.begin("upload", moves=moves))

    def publisher(self, key: str, *, adopted: int | None, warn: Callable[[str], None]) -> BucketPublisher:
        """Return the uploads of an attempt; see `BucketPublisher`."""
        return BucketPublisher(self, key, adopted=adopted, warn=warn)

    def archives(self) -> BucketArchives:
        """Return the archives of the code snapshots in the bucket."""
        return BucketArchives(self)

    def discard(self, prefix: str) -> None:
        """Delete objects, but keep the local files, which belong to their writer."""
        self.connection.call("delete", prefix)

    def _move(self, prefix: str, path: str, folder: Path | None = None) -> Move:
        local = (folder or self.folder(prefix)) / path
        return Move(f"{prefix}/{path}", str(local), local.stat().st_size)

    def fetch(
        self, prefix: str, files: Sequence[File], *, content: bool = True, keepalive: Keepalive = idle
    ) -> Path:
        """Download files that the cache does not hold as recorded."""
        folder = self.cache.hold(prefix)
        # The common case needs no lock.
        if not content and all(_is_held(folder, file, content=False) for file in files):
            return folder
        with self.cache.filling(prefix, keepalive):
            missing = []
            for file in files:
                keepalive()
                if not _is_held(folder, file, content=content):
                    missing.append(
                        Move(f"{prefix}/{file.path}", str(folder / file.path), file.size, file.sha256)
                    )
            if missing:
                for move in missing:
                    # The download skips absent objects, whose stale copies must not stay. Hard links
                    # elsewhere do.
                    Path(move.path).unlink(missing_ok=True)
                self.cache.shrink()
                self.connection.call("download", moves=missing, keepalive=keepalive)
        return folder

    def release(self, prefix: str) -> None:
        """Allow the cache to evict the folder."""
        self.cache.release(prefix)

    def delete(self, prefix: str) -> None:
        """Delete all objects under a prefix, and their local copies."""
        self.connection.call("delete", prefix)
        self.cache.clear(prefix)


def _listing(found: Iterable[Sequence[str]]) -> Listing:
    # Hidden names are skipped as in a folder store.
    return Listing(*(tuple(name for name in names if not name.startswith(".")) for names in found))


def _is_held(folder: Path, file: File, *, content: bool) -> bool:
    try:
        return damage(folder, [file], content=content) is None
    except OSError:
        return False


class BucketArchives:
    """The code snapshots in a bucket, each an archive.

    Args:
        objects: The bucket.
    """

    def __init__(self, objects: RemoteStore) -> None:
        self._objects = objects

    def keep(self, digest: str, items: Sequence[PlannedFile]) -> None:
        """Store the files of a snapshot, unless the bucket already has exactly these bytes.

        Args:
            digest: Digest of the snapshot.
            items: Its files, links and empty folders, in the order of the archive.

        Raises:
            OSError: The bucket did not answer.
        """
        objects, prefix, archive = self._objects, layout.code_archive(digest), _packed(items)
        found = self._fetched(digest)
        if found == archive:
            return
        if found is not None:
            # The upload skips files whose size matches, so a damaged archive must be deleted first.
            objects.delete(prefix)
        folder = objects.workspace(prefix)
        # Write and rename, so that a process that is killed leaves no half archive for the upload.
        temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
        temporary.write_bytes(archive)
        temporary.replace(folder / ARCHIVE)
        objects.upload(prefix)
        objects.release(prefix)

    def files(self, digest: str, files: Sequence[CodeFile]) -> list[PlannedFile] | None:
        """Return the listed files of a snapshot, whose content is not checked; None without an archive.

        Args:
            digest: Digest of the snapshot.
            files: Files to return, as recorded in its manifest.

        Raises:
            OSError: The bucket did not answer.
            ValueError: The bytes are not an archive, or a listed file is missing from it.
        """
        data = self._fetched(digest)
        return None if data is None else _unpacked(data, files)

    def _fetched(self, digest: str) -> bytes | None:
        """Return the archive of a snapshot; None when there is none."""
        objects, prefix = self._objects, layout.code_archive(digest)
        size = objects.trees([prefix])[prefix].get(ARCHIVE)
        if size is None:
            return None
        # The digest is left empty: the caller checks the files after it has unpacked them.
        folder = objects.fetch(prefix, [File(ARCHIVE, size, "")])
        try:
            return (folder / ARCHIVE).read_bytes()
        except FileNotFoundError:
            return None
        finally:
            objects.release(prefix)


def _packed(items: Sequence[PlannedFile]) -> bytes:
    """Return a tar archive of the given files, links and empty folders, in the given order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file, data, mode in items:
            # A new TarInfo has time 0 and no owner, so that equal code gives an equal archive.
            info = tarfile.TarInfo(file.path)
            info.mode = mode & 0o777
            if file.kind == "folder":
                info.type = tarfile.DIRTYPE
            elif file.kind == "link":
                info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(data)
            else:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data if info.isreg() else b""))
    return stream.getvalue()


def _unpacked(data: bytes, files: Sequence[CodeFile]) -> list[PlannedFile]:
    """Return the listed files of a snapshot from its archive; ignore all other members.

    The content is not checked here.

    Args:
        data: Bytes of the archive.
        files: Files to extract, as recorded in the snapshot's manifest.

    Raises:
        ValueError: The bytes are not an archive, or a listed file is missing from it.
    """
    items = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = {member.name: member for member in archive}
            # Only recorded files are taken: a damaged archive may hold absolute paths or "..".
            for file in files:
                member = members[file.path]
                stream = archive.extractfile(member) if member.isreg() else None
                content = stream.read() if stream is not None else os.fsencode(member.linkname)
                items.append(PlannedFile(file, content, member.mode))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(str(error)) from error
    except KeyError as error:
        raise ValueError(f"{error} is not in it") from error
    return items
