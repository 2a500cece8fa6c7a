"""A reader's own index: what cannot change in a store, in a SQLite file on this machine.

The index is a cache. Nothing in a store depends on it, a reader without a place for it reads the store, and
a file that is damaged is made again. Each row carries a checksum, because SQLite's pages have none: a row
with a wrong one counts as absent.

Any number of readers share one file. In WAL mode readers do not wait for a writer, and writes are short. All
that is written is derived from records that never change, so it does not matter who writes first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sqlite3
import stat
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.store.objects import is_network

ROOT = "SWEEP_CACHE"
"""Variable that names the cache of this machine; see `orchestrator.store.bucket`."""

VERSION = 1
"""Of the tables. A file of another version is made again."""

BUSY_S = 3.0
"""Longest wait for another writer, in seconds."""

_TABLES = """
create table if not exists records (key text primary key, data blob not null) without rowid;
create table if not exists facts
  (kind text, name text, value integer, primary key (kind, name)) without rowid;
"""
_CRC_BYTES = 4
_MANY = 500
"""Keys of one query. SQLite limits the number of parameters."""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})

T = TypeVar("T")


def index_folder() -> Path:
    """Return the folder of this user's indexes, on a local disk, readable by this user alone.

    SQLite's WAL mode needs shared memory, which network file systems do not have. There, as with many home
    folders of clusters, the folder for temporary files is used.

    Raises:
        OSError: there is no such place, or another user controls it.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get(ROOT) or f"{cache}/polysweep").expanduser().absolute()
    folder = home / f"index-{os.getuid()}"
    if is_network(home):
        # Directly below: whoever owned a folder in between could exchange ours.
        folder = Path(tempfile.gettempdir()) / f"polysweep-index-{os.getuid()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
    found = folder.lstat()
    # In a folder that all users may write, another one could have made it first.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(errno.EPERM, "not this user's own folder", str(folder))
    return folder


def name_of(*identity: object) -> str:
    """Return a file name for an index: equal for equal identities, such as nonce, format and address."""
    return hashlib.sha256("\n".join(map(str, identity)).encode()).hexdigest()[:24]


class Index:
    """Records and small facts under their names. No method raises: without its file it remembers nothing.

    Args:
        path: The file; None to keep everything in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._lock = threading.RLock()

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the records that are known, by key."""
        wanted = list(keys)
        found: dict[str, bytes] = {}
        for start in range(0, len(wanted), _MANY):
            some = wanted[start : start + _MANY]
            query = f"select key, data from records where key in ({','.join('?' * len(some))})"
            found |= _whole(self._rows(query, some))
        return found

    def below(self, prefix: str) -> dict[str, bytes]:
        """Return the known records whose keys begin with a prefix that ends in ``/``."""
        query = "select key, data from records where key >= ? and key < ?"
        after = prefix[:-1] + chr(ord("/") + 1)
        return _whole(self._rows(query, (prefix, after)))

    def facts(self, kind: str) -> dict[str, int]:
        """Return what was remembered of one kind, by name."""
        return dict(self._rows("select name, value from facts where kind = ?", (kind,)))

    def add(self, records: Mapping[str, bytes], facts: Mapping[tuple[str, str], int] | None = None) -> None:
        """Remember records that never change, and facts by (kind, name), in one transaction."""
        rows = [
            (key, zlib.crc32(key.encode() + data).to_bytes(_CRC_BYTES, "big") + data)
            for key, data in records.items()
        ]
        named = [(kind, name, value) for (kind, name), value in (facts or {}).items()]
        if not rows and not named:
            return

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("insert or replace into records values (?, ?)", rows)
                connection.executemany("insert or replace into facts values (?, ?, ?)", named)

        self._run(write, None)

    def _rows(self, query: str, values: Sequence[str]) -> list[Any]:
        return self._run(lambda connection: connection.execute(query, values).fetchall(), [])

    def _run(self, act: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Run an operation; make a damaged file again, and do without a file that cannot be used."""
        with self._lock:
            for _ in range(2):
                try:
                    return act(self._opened())
                except (sqlite3.Error, OSError) as error:
                    self.close()
                    code = getattr(error, "sqlite_errorcode", None)
                    # The low byte is the kind of the error, the rest says more about it.
                    if code is not None and code & 0xFF in _DAMAGED and self._path is not None:
                        _remove(self._path)
                    else:
                        self._path = None
            self._path = None
            return otherwise

    def _opened(self) -> sqlite3.Connection:
        # A connection must not be used by a process that was forked with it.
        if self._connection is None or self._pid != os.getpid():
            self._connection = _connect(self._path)
            self._pid = os.getpid()
        return self._connection

    def close(self) -> None:
        """Close the file; the next operation opens it again."""
        with contextlib.suppress(sqlite3.Error):
            if self._connection is not None:
                self._connection.close()
        self._connection = None


def _connect(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path or ":memory:", timeout=BUSY_S, check_same_thread=False)
    connection.execute("pragma journal_mode = wal")
    # A cache may lose its last rows in a crash of the machine.
    connection.execute("pragma synchronous = off")
    (version,) = connection.execute("pragma user_version").fetchone()
    if version not in (0, VERSION):
        connection.executescript("drop table if exists records; drop table if exists facts;")
    if version != VERSION:
        connection.executescript(_TABLES)
        connection.execute(f"pragma user_version = {VERSION}")
    return connection


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            path.with_name(path.name + suffix).unlink()


def _whole(rows: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """Return the rows whose checksum is right."""
    found = {}
    for key, data in rows:
        content = data[_CRC_BYTES:]
        if _checksum(key, content) == data[:_CRC_BYTES]:
            found[key] = content
    return found


def _checksum(key: str, data: bytes) -> bytes:
    return zlib.crc32(data, zlib.crc32(key.encode())).to_bytes(_CRC_BYTES, "big")
