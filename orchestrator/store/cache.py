"""The node's cache of buckets, in which payload is prepared, and into which it is downloaded.

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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import UserError
from orchestrator.store.objects import Keepalive

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
