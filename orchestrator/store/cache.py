"""The node-local cache of a store at a URL: where attempts work, and what was fetched, shared by processes.

A folder of one attempt (or one code snapshot) goes as a whole, least recently used first, when there is more
than the limit. While a process lives that uses it, it stays: the process, and what it forked, hold a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import UserError

ROOT, LIMIT = "SWEEP_CACHE", "SWEEP_CACHE_GIB"
DEFAULT_ROOT, DEFAULT_GIB = "~/.cache/polysweep", 100.0
SHRINK_S, WAIT_S = 60.0, 0.2
_LOCKS, _TRASH = ".locks", ".trash"
_UNITS = {"payload": 4, "code": 2}
"""First folder of a key to the number of parts that name what goes as a whole; all else stays."""


class Unit(NamedTuple):
    """What goes as a whole: how long ago it was used, its size, its folder, and its lock."""

    used_s: float
    size: int
    folder: Path
    lock: Path


class Cache:
    """The part of the cache that belongs to one store.

    Args:
        url: of the store.
        home: of the caches of all stores; by default as the environment says.

    Raises:
        UserError: the environment's limit is no number.
    """

    def __init__(self, url: str, home: Path | None = None) -> None:
        self.home = home or Path(os.environ.get(ROOT) or DEFAULT_ROOT).expanduser().absolute()
        server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        digest = hashlib.sha256(f"{url} {server}".encode()).hexdigest()
        self.root = self.home / f"{url.partition('://')[2].partition('/')[0]}-{digest[:12]}"
        self.limit_bytes = _limit_bytes()
        self._held: dict[str, int] = {}
        self._shrunk_s = -SHRINK_S

    def folder(self, prefix: str) -> Path:
        """Returns where the files under a prefix are, or would be."""
        return self.root / prefix

    def hold(self, prefix: str) -> Path:
        """Marks what a prefix belongs to as in use by this process until its end; returns its folder."""
        unit = _unit(prefix)
        if unit and unit not in self._held:
            handle = _open_lock(self._lock(unit))
            with contextlib.suppress(OSError):  # a file system without locks: used lately, so among the last
                fcntl.flock(handle, fcntl.LOCK_SH)
            self._held[unit] = handle
        if unit:
            with contextlib.suppress(OSError):
                os.utime(self._lock(unit))
        return self.folder(prefix)

    def release(self, prefix: str) -> None:
        """Ends the use of what a prefix belongs to."""
        handle = self._held.pop(_unit(prefix), None)
        if handle is not None:
            os.close(handle)

    def clear(self, prefix: str) -> None:
        """Removes what lies under a prefix here."""
        path = self.folder(prefix)
        if path.is_dir() and not path.is_symlink():
            _remove(path, self.home)
        else:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def filling(self, prefix: str, pulse: Callable[[], object]) -> Iterator[None]:
        """Lets one process at a time fetch what belongs together, so that nothing is fetched twice.

        Args:
            prefix: of what is fetched.
            pulse: called while another process fetches.
        """
        handle = _open_lock(self._lock(_unit(prefix) or prefix).with_suffix(".filling"))
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pulse()
                    time.sleep(WAIT_S)
                    continue
                except OSError:  # a file system without locks: it may be fetched twice
                    pass
                break
            yield
        finally:
            os.close(handle)

    def shrink(self) -> None:
        """Removes what was not used for longest until the rest is within the limit; looks once a minute."""
        if time.monotonic() - self._shrunk_s < SHRINK_S:
            return
        self._shrunk_s = time.monotonic()
        shutil.rmtree(self.home / _TRASH, ignore_errors=True)  # of a process that was killed meanwhile
        units = sorted(self._units())
        left = sum(unit.size for unit in units)
        for unit in units:
            if left <= self.limit_bytes:
                return
            if _remove_unused(unit, self.home):
                left -= unit.size

    def _units(self) -> Iterator[Unit]:
        for store in self.home.glob("*/"):
            for first, depth in _UNITS.items():
                for folder in store.glob("/".join([first, *"*" * (depth - 1)])):
                    lock = _lock_of(store, folder.relative_to(store).as_posix())
                    with contextlib.suppress(OSError):
                        used_s = lock.stat().st_mtime if lock.exists() else 0.0
                        yield Unit(used_s, _size(folder), folder, lock)

    def _lock(self, unit: str) -> Path:
        return _lock_of(self.root, unit)


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
    """Takes a folder out of the way in one step, then deletes it."""
    trash = home / _TRASH / uuid.uuid4().hex
    while folder.exists():
        trash.parent.mkdir(parents=True, exist_ok=True)  # which others may have emptied just now
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
