"""The operations that the protocol needs of a shared place, and their form for a shared folder.

It knows keys and bytes, never what they mean. On POSIX every record is durable (file and folder synced)
before an operation returns; the object library we would otherwise use does not sync.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from orchestrator.core.secrets import redacted
from orchestrator.errors import UserError
from orchestrator.manifest import File, fsync_path, fsync_tree


class Listing(NamedTuple):
    """What lies directly under a prefix: names, not keys."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


def idle() -> None:
    """What is called in between where nothing needs to be."""


class ObjectStore(Protocol):
    """A shared place for small records and payload folders. Keys use ``/``.

    Each operation raises `OSError` when the place did not answer; "absent" is an answer, not an error.
    """

    url: str
    min_lease_s: float
    """A shorter lease would prove nothing here: others see changes only after a while."""
    in_place: bool
    """Payload is written in the shared place itself: others see it as it grows, and none is fetched."""

    def create(self, key: str, data: bytes) -> bool:
        """Writes only if absent, atomically and durably; False when the key exists."""

    def put(self, key: str, data: bytes) -> None:
        """Replaces atomically: a reader sees the old or the new bytes."""

    def get(self, key: str) -> bytes | None:
        """Returns the bytes, or None when there is no such key."""

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Returns what `get` would for each key, in a few round trips."""

    def read_from(self, key: str, start: int, limit: int | None = None) -> bytes:
        """Returns the bytes from `start` on, at most so many; none when there are no more, or no key."""

    def list(self, prefix: str) -> Listing:
        """Lists one level; an absent prefix is empty."""

    def list_many(self, prefixes: Iterable[str]) -> dict[str, Listing]:
        """Returns what `list` would for each prefix, in a few round trips."""

    def trees(self, prefixes: Iterable[str]) -> dict[str, dict[str, int]]:
        """Returns for each prefix all files under it, at any depth: path below it to size in bytes."""

    def folder(self, prefix: str) -> Path:
        """Returns the local folder in which the files under `prefix` are, or would be; fetches nothing."""

    def workspace(self, prefix: str) -> Path:
        """Returns a local folder in which this process prepares the payload under `prefix`."""

    def upload(self, prefix: str, *, pulse: Callable[[], object] = idle) -> None:
        """Makes what is in `workspace(prefix)` durable and visible to others; `pulse` is called meanwhile."""

    def fetch(
        self,
        prefix: str,
        files: Sequence[File],
        *,
        content: bool = True,
        pulse: Callable[[], object] = idle,
    ) -> Path:
        """Brings files to this machine and returns their folder, to be read only.

        It does not judge: a file that is absent or damaged in the store is so in the folder.

        Args:
            prefix: where they lie.
            files: as recorded.
            content: compare the content of what is here already, not sizes alone.
            pulse: called meanwhile.
        """

    def release(self, prefix: str) -> None:
        """Says that this process no longer uses what `workspace` or `fetch` gave it, so that it may go."""

    def delete(self, prefix: str) -> None:
        """Removes payload, for retention alone; an absent prefix is no error."""


TEMPORARY = ".tmp-"
NETWORK_TYPES = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "wekafs",
    "fuse.",
    "9p",
    "afs",
)
NETWORK_LEASE_S = 180.0
"""NFS clients cache attributes for up to a minute; three reads must see three states."""


class PosixStore:
    """A folder on a local or network file system that several machines may mount.

    Args:
        root: the folder; made on the first write.
        at_step: a seam for the kill tests, called with a name after each system call that changes
            something; does nothing in production.
    """

    in_place = True

    def __init__(self, root: Path, *, at_step: Callable[[str], None] = lambda step: None) -> None:
        self.root, self._at_step = root, at_step
        self.url = str(root)
        self.min_lease_s = NETWORK_LEASE_S if is_network(root) else 0.0

    def path(self, key: str) -> Path:
        """Returns where a key lies, which is always below the root.

        Raises:
            OSError: a record names what lies elsewhere.
        """
        return Path(self._at(key))

    def _at(self, key: str) -> str:
        """As `path`, as text: a status reads tens of thousands of records."""
        if ".." in key and ".." in key.split("/"):
            raise OSError(errno.EINVAL, f"{key!r} leads out of the store")
        return f"{self.root}/{key}" if key else str(self.root)

    def create(self, key: str, data: bytes) -> bool:
        """Links a synced temporary file to its name: the link is the atomic step."""
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
        """Renames a synced temporary file over the name."""
        path = self.path(key)
        temporary = self._write_temporary(path.parent, data)
        temporary.replace(path)
        self._at_step("replaced")
        fsync_path(path.parent)

    def get(self, key: str) -> bytes | None:
        """Reads a whole file."""
        path = self._at(key)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:  # a stream with its buffer would take twice the time
            data = os.read(handle, _RECORD_BYTES)
            return data if len(data) < _RECORD_BYTES else data + b"".join(_rest(handle))
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(handle)

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Reads one after the other: a folder has no round trips to save."""
        return {key: self.get(key) for key in keys}

    def read_from(self, key: str, start: int, limit: int | None = None) -> bytes:
        """Reads the rest of a file, or the next bytes of it."""
        try:
            with self.path(key).open("rb") as stream:
                stream.seek(start)
                return stream.read(limit)
        except (FileNotFoundError, NotADirectoryError):
            return b""

    def list(self, prefix: str) -> Listing:
        """Scans one folder; temporary files are not listed."""
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(self._at(prefix)) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        (folders if entry.is_dir() else files).append(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return Listing((), ())
        return Listing(tuple(sorted(files)), tuple(sorted(folders)))

    def list_many(self, prefixes: Iterable[str]) -> dict[str, Listing]:
        """Scans one folder after the other."""
        return {prefix: self.list(prefix) for prefix in prefixes}

    def trees(self, prefixes: Iterable[str]) -> dict[str, dict[str, int]]:
        """Walks the folders."""
        return {prefix: self._tree(prefix) for prefix in prefixes}

    def _tree(self, prefix: str) -> dict[str, int]:
        root, sizes = self.path(prefix), {}
        for place, _, names in os.walk(root):
            for path in (Path(place, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    sizes[path.relative_to(root).as_posix()] = path.stat().st_size
        return sizes

    def folder(self, prefix: str) -> Path:
        """The folder itself."""
        return self.path(prefix)

    def workspace(self, prefix: str) -> Path:
        """The folder itself: payload is written in place."""
        path = self.path(prefix)
        self._make_folders(path)
        return path

    def upload(self, prefix: str, *, pulse: Callable[[], object] = idle) -> None:
        """Syncs what was written in place."""
        fsync_tree(self.path(prefix))

    def fetch(
        self,
        prefix: str,
        files: Sequence[File],
        *,
        content: bool = True,
        pulse: Callable[[], object] = idle,
    ) -> Path:
        """The folder itself."""
        return self.path(prefix)

    def release(self, prefix: str) -> None:
        """Nothing: there are no copies."""

    def delete(self, prefix: str) -> None:
        """Removes a payload folder or file."""
        path = self.path(prefix)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        self._at_step("deleted")

    def _write_temporary(self, folder: Path, data: bytes) -> Path:
        self._make_folders(folder)
        path = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
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
        """Makes missing folders durable, each by syncing its parent."""
        if folder.is_dir():
            return
        if folder != self.root:
            self._make_folders(folder.parent)
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
        else:
            folder.mkdir(parents=True, exist_ok=True)
        fsync_path(folder.parent)
        self._at_step("made folder")


def is_network(path: Path, mounts: str = "/proc/mounts") -> bool:
    """Tells whether a folder lies on a network file system; False where mounts cannot be read.

    Args:
        path: absolute; need not exist.
        mounts: a file in the form of Linux's /proc/mounts.
    """
    try:
        lines = [line.split() for line in Path(mounts).read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False
    holding = [(len(f[1]), f[2]) for f in lines if len(f) > 2 and path.is_relative_to(_unescaped(f[1]))]
    return bool(holding) and max(holding)[1].startswith(NETWORK_TYPES)


def _unescaped(mount: str) -> str:
    return mount.replace("\\040", " ")  # how /proc/mounts writes a space


_RECORD_BYTES = 1 << 16
"""What one call reads of a record; few are longer."""


def _rest(handle: int) -> Iterator[bytes]:
    while data := os.read(handle, 1 << 20):
        yield data


_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}[a-z0-9]")
"""Names of buckets, as S3 and GCS take them."""


def open_objects(url: str) -> ObjectStore:
    """Returns the store operations for a URL or path; touches nothing.

    Raises:
        UserError: the scheme is not known, or the address names no bucket.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return PosixStore(Path(url).expanduser().absolute())
    if scheme == "file":
        return PosixStore(Path("/" + rest.lstrip("/")))
    if scheme not in ("s3", "gs"):
        raise UserError(
            f"unknown store scheme {scheme!r}",
            where=f"store.url={url}",
            allowed="a folder on a shared file system, file://, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX",
            fix="store.url=/shared/runs",
        )
    bucket, *parts = rest.rstrip("/").split("/")
    if "@" in bucket or (":" in bucket and "@" in rest):
        raise UserError(
            f"the store's address holds a user or a password: {redacted(url)}",
            where="store.url, or SWEEP_STORE",
            allowed="it is recorded with each job; endpoint and credentials come from the environment",
            fix=f"store.url={scheme}://{rest.rpartition('@')[2]}",
        )
    if not _BUCKET.fullmatch(bucket) or not all(part.strip(".") and part.isprintable() for part in parts):
        raise UserError(
            f"{redacted(url)!r} names no place in a bucket",
            where="store.url",
            allowed=f"{scheme}://BUCKET or {scheme}://BUCKET/PREFIX; endpoint and credentials come from the "
            "environment",
            fix=f"store.url={scheme}://my-bucket/runs",
        )
    from orchestrator.store.remote import RemoteStore  # only where it is needed: it may start a process

    return RemoteStore(f"{scheme}://{'/'.join([bucket, *parts])}")
