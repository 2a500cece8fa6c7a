"""The operations that the protocol needs of a shared place, and their implementation for a shared folder.

This level handles keys and bytes, never their meaning. In a folder, a record is durable (file and folder
synced) before an operation returns. The object-store library that serves buckets does not sync files.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from orchestrator.manifest import NO_FILE, File, fsync_path, fsync_tree
from orchestrator.provenance import is_network

if TYPE_CHECKING:
    from orchestrator.core.records import CodeFile
    from orchestrator.store.code import PlannedFile


class Listing(NamedTuple):
    """The names directly under a prefix, without the prefix."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


def idle() -> None:
    """Do nothing: the default of a callback that runs during long operations."""


Keepalive = Callable[[], object]  # called again and again during a long operation, to keep a lease
T = TypeVar("T")


class Publisher(Protocol):
    """The uploads of one attempt's payload, see `orchestrator.store.publishing.BucketPublisher`."""

    def step(self) -> None:
        """Start the uploads that are due; never wait."""

    def finish(self, keepalive: Keepalive, *, checkpoints: bool) -> None:
        """Wait for the last uploads after the child has ended."""

    def output(self, files: Sequence[File], keepalive: Keepalive) -> None:
        """Upload the product's files."""

    def failed(self, files: Sequence[File], keepalive: Keepalive) -> None:
        """Upload what a later attempt needs after a failure."""


class CodeArchives(Protocol):
    """Code snapshots as archives, see `orchestrator.store.bucket.BucketArchives`."""

    def keep(self, digest: str, items: Sequence[PlannedFile]) -> None:
        """Store the files of a snapshot, unless they are there."""

    def files(self, digest: str, files: Sequence[CodeFile]) -> Sequence[PlannedFile] | None:
        """Return the listed files of a snapshot; None if it is not there."""


class ObjectStore(Protocol):
    """A shared place for small records and payload folders. Keys use ``/``.

    Each operation raises `OSError` when the place did not answer. "Absent" is an answer, not an error.
    """

    url: str
    min_lease_s: float
    """Shortest useful lease in seconds. Others see changes only after a delay."""
    unseen_s: float
    """For how many seconds others' changes may stay unseen here, because names and sizes are cached."""
    poll_s: float
    """Shortest useful poll interval in seconds. Requests to a bucket cost money."""
    home: Path
    """Local folder that holds the store's files, or copies of them. It holds no code."""
    max_looks: float
    """How many single reads may follow each other for a forecast, since each request costs time and money."""
    waits_out: bool
    """Whether operations can wait out an outage (`PatientStore`); their errors are final, or of a folder."""

    def create(self, key: str, data: bytes) -> bool:
        """Write only if absent, atomically and durably; return False when the key exists."""

    def put(self, key: str, data: bytes) -> None:
        """Write or replace atomically: a reader sees the old or the new bytes, never a mix."""

    def get(self, key: str) -> bytes | None:
        """Return the bytes, or None when there is no such key."""

    def in_bulk(self, read: Callable[[], T]) -> T | None:
        """Return what bulk reads find; None where they save no round trips, and nothing is read."""

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Return what `get` returns for each key, in few round trips."""

    def read_from(self, key: str, start: int, limit: int | None = None) -> bytes:
        """Return the bytes from `start` on, up to `limit`; empty at the end or without a key."""

    def age_s(self, key: str) -> float:
        """Return for how many seconds a key has existed, by the place's own clock; this writes a probe."""

    def list(self, prefix: str) -> Listing:
        """List one level; an absent prefix is empty."""

    def list_many(self, prefixes: Iterable[str]) -> dict[str, Listing]:
        """Return what `list` returns for each prefix, in few round trips."""

    def trees(self, prefixes: Iterable[str]) -> dict[str, dict[str, int]]:
        """Return, for each prefix, the path and size in bytes of each file under it, at any depth."""

    def sizes(self, prefix: str, files: Sequence[File]) -> Mapping[str, int]:
        """Return the sizes in bytes of those of these files that exist, by path below the prefix."""

    def size(self, key: str) -> int:
        """Return the size of a payload file in bytes, 0 if it does not exist."""

    def folder(self, prefix: str) -> Path:
        """Return the local folder of the files under `prefix`, without downloading or creating it."""

    def shared_folder(self, prefix: str) -> Path | None:
        """Return `folder` where others see its files as they are written; None where files are uploaded."""

    def workspace(self, prefix: str) -> Path:
        """Return a local folder in which this process prepares the payload under `prefix`."""

    def upload(self, prefix: str, *, keepalive: Keepalive = idle) -> None:
        """Make the files in `workspace(prefix)` durable and visible; call `keepalive` meanwhile."""

    def share(self, prefix: str) -> None:
        """Show others the files in `workspace(prefix)` as they are now, where they do not see them yet."""

    def publisher(self, key: str, *, adopted: int | None, warn: Callable[[str], None]) -> Publisher | None:
        """Return what uploads the payload of an attempt while it runs; None where it is written in place."""

    def archives(self) -> CodeArchives | None:
        """Return what keeps code snapshots as archives; None where their files are written in place."""

    def fetch(
        self, prefix: str, files: Sequence[File], *, content: bool = True, keepalive: Keepalive = idle
    ) -> Path:
        """Make recorded files available on this machine, and return their folder, which must only be read.

        The files are not judged: one that is absent or damaged in the store is so in the folder. With
        `content`, the content of local copies is compared with the record, not only their sizes.
        """

    def release(self, prefix: str) -> None:
        """Declare that this process no longer uses a folder of `workspace` or `fetch`."""

    def delete(self, prefix: str) -> None:
        """Delete payload, for retention only; an absent prefix is not an error."""


TEMPORARY = ".tmp-"
_RECORD_BYTES = 1 << 16  # of the first read of a record; few are longer
NETWORK_LEASE_S = 180.0
"""Shortest lease in seconds on a network file system: three reads of what NFS may cache for a minute."""


class PosixStore:
    """A folder on a local or network file system that several machines may mount.

    Args:
        root: The folder; created by the first write.
        at_step: Called with a name after each system call that changes something. Tests use it to kill the
            process at every such point; in production it does nothing.
    """

    waits_out, poll_s, max_looks = True, 0.0, math.inf

    def __init__(self, root: Path, *, at_step: Callable[[str], None] = lambda step: None) -> None:
        self.root = self.home = root
        self._at_step = at_step
        self.url = str(root)
        self.min_lease_s = NETWORK_LEASE_S if is_network(root) else 0.0
        self.unseen_s = self.min_lease_s / 3

    def path(self, key: str) -> Path:
        """Return the path of a key, always below the root.

        Raises:
            OSError: The key leads out of the store, as one taken from a damaged record may.
        """
        return Path(self._at(key))

    def _at(self, key: str) -> str:
        """Return `path` as text. A status reads tens of thousands of records, and `Path` is slow."""
        # The first test is cheap, and settles nearly every key.
        if ".." in key and ".." in key.split("/"):
            raise OSError(errno.EINVAL, f"{key!r} leads out of the store")
        return f"{self.root}/{key}" if key else str(self.root)

    def create(self, key: str, data: bytes) -> bool:
        """Write a temporary file, sync it, and link it to its name. The link is the atomic step.

        A rename would replace an existing file, and an exclusive open would show others a file that is still
        empty.
        """
        path = self.path(key)
        temporary = self._write_temporary(path.parent, data)
        try:
            os.link(temporary, path)
            self._at_step("linked")
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        fsync_path(path.parent)
        self._at_step("created")
        return True

    def put(self, key: str, data: bytes) -> None:
        """Write a temporary file, sync it, and rename it over the name."""
        path = self.path(key)
        temporary = self._write_temporary(path.parent, data)
        temporary.replace(path)
        self._at_step("replaced")
        fsync_path(path.parent)

    def get(self, key: str) -> bytes | None:
        """Read a whole file."""
        path = self._at(key)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:  # a buffered stream takes twice the time
            data = os.read(handle, _RECORD_BYTES)
            rest = iter(lambda: os.read(handle, 1 << 20), b"") if len(data) >= _RECORD_BYTES else ()
            return b"".join((data, *rest))
        except IsADirectoryError:
            return b""  # in the place of a record: unreadable, and not absent
        except OSError as error:
            # An error of os.read has no file name.
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(handle)

    def in_bulk(self, read: Callable[[], T]) -> None:
        """Return None: a folder has no round trips to save."""

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Read one file after the other."""
        return {key: self.get(key) for key in keys}

    def read_from(self, key: str, start: int, limit: int | None = None) -> bytes:
        """Read a file from an offset."""
        try:
            with self.path(key).open("rb") as stream:
                stream.seek(start)
                return stream.read(limit)
        except (FileNotFoundError, NotADirectoryError):
            return b""

    def age_s(self, key: str) -> float:
        """Compare the time of the file with that of a new one: the file server dates both."""
        probe = self._write_temporary(self.root, b"age")
        try:
            return probe.stat().st_mtime - self.path(key).stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def list(self, prefix: str) -> Listing:
        """Scan one folder, without temporary files."""
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(self._at(prefix)) as entries:
                for entry in entries:
                    # Hidden names are temporary files, and files that NFS keeps for deleted ones.
                    if not entry.name.startswith("."):
                        is_record = entry.name.endswith(".json") and "/" in prefix  # else a sweep or stage
                        (folders if entry.is_dir() and not is_record else files).append(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return Listing((), ())
        return Listing(tuple(sorted(files)), tuple(sorted(folders)))

    def list_many(self, prefixes: Iterable[str]) -> dict[str, Listing]:
        """Scan one folder after the other."""
        return {prefix: self.list(prefix) for prefix in prefixes}

    def trees(self, prefixes: Iterable[str]) -> dict[str, dict[str, int]]:
        """Walk the folders."""
        return {prefix: self._tree(prefix) for prefix in prefixes}

    def _tree(self, prefix: str) -> dict[str, int]:
        root, sizes = self.path(prefix), {}
        for place, _, names in os.walk(root):
            for path in (Path(place, name) for name in names):
                # The owner of a running attempt may delete files while they are listed.
                with contextlib.suppress(FileNotFoundError):
                    sizes[path.relative_to(root).as_posix()] = path.stat().st_size
        return sizes

    def seems_there(self, key: str) -> bool:
        """Return whether a file is known to exist, for display: in a seventh of the time of a failed open."""
        return os.access(self._at(key), os.F_OK)

    def sizes(self, prefix: str, files: Sequence[File]) -> dict[str, int]:
        """Ask the file system for each.

        Raises:
            OSError: A file's size cannot be read, which does not mean that the file is missing.
        """
        found, place = {}, self._at(prefix)
        for file in files:
            try:
                found[file.path] = os.stat(f"{place}/{file.path}").st_size  # noqa: PTH116 - `Path` is slow
            except OSError as error:
                if error.errno not in NO_FILE:
                    raise
        return found

    def size(self, key: str) -> int:
        """Ask the file system."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return os.stat(self._at(key)).st_size  # noqa: PTH116 - `Path` is slow
        return 0

    def folder(self, prefix: str) -> Path:
        """Return the path itself."""
        return self.path(prefix)

    shared_folder = folder

    def workspace(self, prefix: str) -> Path:
        """Create and return the folder itself: payload is written in place."""
        path = self.path(prefix)
        self._make_folders(path)
        return path

    def upload(self, prefix: str, *, keepalive: Keepalive = idle) -> None:
        """Sync the files that were written in place."""
        fsync_tree(self.path(prefix))

    def share(self, prefix: str) -> None:
        """Do nothing: others see the files as they are written."""

    def publisher(self, key: str, *, adopted: int | None, warn: Callable[[str], None]) -> None:
        """Return None: the payload is written in place."""

    def archives(self) -> None:
        """Return None: the files of snapshots are written in place."""

    def fetch(
        self, prefix: str, files: Sequence[File], *, content: bool = True, keepalive: Keepalive = idle
    ) -> Path:
        """Return the folder itself."""
        return self.path(prefix)

    def release(self, prefix: str) -> None:
        """Do nothing, because there are no copies."""

    def delete(self, prefix: str) -> None:
        """Delete a payload folder or file."""
        path = self.path(prefix)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        self._at_step("deleted")

    def _write_temporary(self, folder: Path, data: bytes) -> Path:
        self._make_folders(folder)
        # In the same folder as the final name, since links and renames cannot cross file systems.
        path = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            # Synced before it gets its name: after a crash, a name must never point to a partial record.
            with path.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self._at_step("wrote temporary")
        return path

    def _make_folders(self, folder: Path) -> None:
        """Create missing folders durably, by syncing the parent of each."""
        if folder.is_dir():
            return
        if folder != self.root:
            self._make_folders(folder.parent)
            # Another process may have created it meanwhile.
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
        else:
            folder.mkdir(parents=True, exist_ok=True)
        fsync_path(folder.parent)
        self._at_step("made folder")
