"""What a reader keeps of a store on this machine: records in a SQLite file, rows in Parquet files.

Both are caches of what cannot change. Nothing in a store depends on them, a reader without a place for them
reads the store, and a file that is damaged is made again. Each row of the SQLite file carries a checksum,
because SQLite's pages have none: a row with a wrong one counts as absent.

Any number of readers share one file. In WAL mode readers do not wait for a writer, and writes are short. All
that is written is derived from records that never change, so it does not matter who writes first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sqlite3
import stat
import tempfile
import threading
import uuid
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from orchestrator.provenance import is_network
from orchestrator.store.table import Rows, arrow_table

KEY = "__key"
"""Column that holds the key of a row."""

MAX_SEGMENTS = 8


class Segment(NamedTuple):
    """A file of rows, and which of its keys count.

    Attributes:
        path: of the file.
        keys: those whose rows count; other rows in it belong to other segments, or to nothing any more.
        is_whole: whether all of its keys count.
    """

    path: Path
    keys: frozenset[str]
    is_whole: bool


class RowSegments:
    """The segments of one table, so that a query need not read again what cannot change.

    Rows belong to a key, such as a product or an attempt that has ended. A segment is a file with the rows of
    some keys; it is written once. A later look writes one more segment, with the keys that are new. Many
    small segments are merged. A segment that is damaged or missing costs time: its keys are read from the
    store again.

    Args:
        folder: of this user, on a local disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def update(self, wanted: Mapping[str, Callable[[], Rows]]) -> list[Segment]:
        """Return segments that together hold the rows of all wanted keys, each once.

        Args:
            wanted: key to a function that returns its rows; called for keys that no segment holds.

        Raises:
            OSError: the folder cannot be written.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found, left = [], set(wanted)
        for path in sorted(self._folder.glob("*.parquet"), key=lambda path: (-_size(path), path.name)):
            keys = _keys(path)
            used = left & keys
            if not used:  # damaged, superseded, or of products that count no more
                _remove_segment(path)
                continue
            left -= used
            found.append(Segment(path, frozenset(used), used == keys))
        if len(found) >= MAX_SEGMENTS:
            # The largest stays as it is. The keys of the others are written anew, as one segment.
            for segment in found[1:]:
                _remove_segment(segment.path)
                left |= segment.keys
            found = found[:1]
        if left:
            rows = [{**row, KEY: key} for key in wanted if key in left for row in wanted[key]()]
            found.append(Segment(self._write(rows, left), frozenset(left), True))
        return found

    def _write(self, rows: Rows, keys: Collection[str]) -> Path:
        import pyarrow.parquet

        table = arrow_table(rows or [{KEY: None}])
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        path = self._folder / f"{uuid.uuid4().hex}.parquet"
        # First the keys: a segment without them does not count.
        about = {"crc": zlib.crc32(data), "keys": sorted(keys)}
        path.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
        temporary = path.with_suffix(".part")
        temporary.write_bytes(data)
        temporary.replace(path)
        return path


def _remove_segment(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)


def _keys(path: Path) -> set[str]:
    """Return the keys of a segment; none if the file is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if zlib.crc32(path.read_bytes()) == about["crc"]:
            return set(about["keys"])
    return set()


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


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
