"""A store in a bucket. Records are objects; payload is prepared in, and downloaded to, a node-local cache.

The cache is shared by all processes of the node. It evicts whole units, such as one attempt's folder or one
code snapshot, least recently used first, when its size exceeds the limit. A unit in use is never evicted:
each process that uses it holds a shared lock on a file, and child processes inherit that lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import UserError
from orchestrator.manifest import File, damage
from orchestrator.store.client import Connection, Move, Transfer
from orchestrator.store.objects import TEMPORARY, Keepalive, Listing, idle
from orchestrator.store.publishing import BucketPublisher

ROOT, LIMIT = "SWEEP_CACHE", "SWEEP_CACHE_GIB"
DEFAULT_ROOT, DEFAULT_GIB = "~/.cache/polysweep", 100.0
SHRINK_S, WAIT_S = 60.0, 0.2
_LOCKS, _TRASH = ".locks", ".trash"
_UNITS = {"payload": 4, "code": 2}
"""First part of a key to the number of parts that name one unit: ``payload/<stage>/<digest>/<n>`` and
``code/<digest>``. Files under other keys are never evicted.
"""


class Unit(NamedTuple):
    """A folder that is evicted as a whole. Units sort by last use, oldest first.

    Attributes:
        used_s: Time of the last use, in seconds since 1970; 0 when unknown.
        size: Size in bytes.
        folder: The folder.
        lock: File that its users lock.
    """

    used_s: float
    size: int
    folder: Path
    lock: Path


class Cache:
    """The part of the node's cache that belongs to one store.

    Args:
        url: Address of the store.
        home: Folder of the caches of all stores; None for the one that the environment names.

    Raises:
        UserError: The size limit in the environment is not a number.
    """

    def __init__(self, url: str, home: Path | None = None) -> None:
        self.home = home or Path(os.environ.get(ROOT) or DEFAULT_ROOT).expanduser().absolute()
        # Buckets of two servers may have the same name, so the server is part of the cache's name.
        server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        digest = hashlib.sha256(f"{url} {server}".encode()).hexdigest()
        self.root = self.home / f"{url.partition('://')[2].partition('/')[0]}-{digest[:12]}"
        self.limit_bytes = _limit_bytes()
        self._held: dict[str, int] = {}
        self._shrunk_s = -SHRINK_S

    def folder(self, prefix: str) -> Path:
        """Return the local folder of a prefix, which may not exist."""
        return self.root / prefix

    def hold(self, prefix: str) -> Path:
        """Mark the unit of a prefix as in use by this process, and return the prefix's folder.

        The mark lasts until `release`, or until the process and all children that inherited it have exited.
        """
        unit = _unit(prefix)
        if unit and unit not in self._held:
            # A shared lock: any number of processes may use a unit. Eviction needs the exclusive one.
            handle = _open_lock(_lock_of(self.root, unit))
            # Without file locks, the recent time of use still makes this unit one of the last to be evicted.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_SH)
            self._held[unit] = handle
        if unit:
            with contextlib.suppress(OSError):
                # The lock file's modification time is the time of last use, for the eviction order.
                os.utime(_lock_of(self.root, unit))
        return self.folder(prefix)

    def release(self, prefix: str) -> None:
        """Drop this process's hold on the unit of a prefix."""
        handle = self._held.pop(_unit(prefix), None)
        if handle is not None:
            os.close(handle)

    def clear(self, prefix: str) -> None:
        """Remove the local files under a prefix."""
        path = self.folder(prefix)
        # A link is removed itself; the folder that it points to may lie outside the cache.
        if path.is_dir() and not path.is_symlink():
            _remove(path, self.home)
        else:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def filling(self, prefix: str, keepalive: Keepalive) -> Iterator[None]:
        """Let one process at a time download a unit, so that no file is downloaded twice.

        Args:
            prefix: Prefix of the files to download.
            keepalive: Called repeatedly while another process downloads.
        """
        handle = _open_lock(_lock_of(self.root, _unit(prefix) or prefix).with_suffix(".filling"))
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    keepalive()
                    time.sleep(WAIT_S)
                    continue
                except OSError:  # a file system without locks: the file may be downloaded twice
                    pass
                break
            yield
        finally:
            os.close(handle)

    def shrink(self) -> None:
        """Evict the least recently used units until the cache fits its limit; at most once a minute."""
        if time.monotonic() - self._shrunk_s < SHRINK_S:
            return
        self._shrunk_s = time.monotonic()
        # Processes that were killed in the middle of a removal leave folders in the trash.
        shutil.rmtree(self.home / _TRASH, ignore_errors=True)
        units = sorted(self._units())
        left = sum(unit.size for unit in units)
        for unit in units:
            if left <= self.limit_bytes:
                return
            if _remove_unused(unit, self.home):
                left -= unit.size

    def _units(self) -> Iterator[Unit]:
        # The limit applies to the caches of all stores together.
        for store in self.home.glob("*/"):
            for first, depth in _UNITS.items():
                for folder in store.glob("/".join([first, *"*" * (depth - 1)])):
                    lock = _lock_of(store, folder.relative_to(store).as_posix())
                    with contextlib.suppress(OSError):
                        used_s = lock.stat().st_mtime if lock.exists() else 0.0
                        yield Unit(used_s, _size(folder), folder, lock)


def _limit_bytes() -> float:
    text = os.environ.get(LIMIT) or str(DEFAULT_GIB)
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not gib >= 0:
        raise UserError(f"{LIMIT} is {text!r}", allowed="a number of GiB, such as 100", fix=f"unset {LIMIT}")
    return gib * 2**30


def _unit(prefix: str) -> str:
    parts = prefix.split("/")
    depth = _UNITS.get(parts[0], 0)
    return "/".join(parts[:depth]) if depth and len(parts) >= depth else ""


def _lock_of(store: Path, unit: str) -> Path:
    return store / _LOCKS / f"{unit.replace('/', '+')}.used"


def _open_lock(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _remove_unused(unit: Unit, home: Path) -> bool:
    handle = _open_lock(unit.lock)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(unit.folder, home)
    except OSError:  # in use
        return False
    finally:
        os.close(handle)
    return True


def _remove(folder: Path, home: Path) -> None:
    """Rename a folder into the trash, then delete it.

    The rename is atomic, so no process sees a folder that is half deleted.
    """
    trash = home / _TRASH / uuid.uuid4().hex
    # Repeated because another process may empty the trash between mkdir and rename.
    while folder.exists():
        trash.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            folder.replace(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total


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

    in_place, poll_s, unseen_s = False, 5.0, 0.0
    min_lease_s = LEASE_S

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
