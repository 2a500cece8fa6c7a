"""Files with their sizes and digests: hashing them, listing a folder, making it durable and verifying it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import escaped, is_utf8
from orchestrator.formats import Stored

MAX_HASH_THREADS = 8
"""Most files that are hashed at a time. Eight threads hash about 10 GB/s, more than most disks write."""
SETTLED_S = 0.1
"""Age in seconds that a file must have for its digest to be remembered.

File systems record times in ticks of some milliseconds. A file that is changed twice in one tick, without
another size, would look unchanged.
"""

FileKey = tuple[int, int, int, int]
"""Device, inode, size in bytes and modification time in ns: what stays when a file is hard-linked."""


def file_digest(path: Path) -> str:
    """Return the sha-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def num_hash_threads() -> int:
    """Return how many files to hash at a time. `hashlib` releases Python's lock, so threads suffice."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_HASH_THREADS, usable)


def key_of(path: Path) -> FileKey:
    """Return what identifies the content of a file without reading it."""
    now = path.stat()
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


class Digests:
    """Digests of files that this process has hashed, so that a hard-linked file is not hashed again.

    A training links the weights of all earlier epochs into each of its checkpoints. The time of the last
    change of the inode (``ctime``) is no part of the key, because a new link sets it.
    """

    def __init__(self) -> None:
        self._known: dict[FileKey, str] = {}

    def digest(self, path: Path) -> str:
        """Return the sha-256 of a file's content, computed unless it is remembered."""
        key = key_of(path)
        if key not in self._known:
            digest = file_digest(path)
            is_settled = time.time_ns() - key[3] > SETTLED_S * 1e9
            if is_settled:
                self.remember(path, key, digest)
            return digest
        return self._known[key]

    def remember(self, path: Path, key: FileKey, digest: str) -> None:
        """Remember the digest of a file that nothing writes any more, if the file still has the key."""
        with contextlib.suppress(FileNotFoundError):
            if key_of(path) == key:
                self._known[key] = digest

    def of(self, paths: Iterable[Path]) -> dict[str, tuple[FileKey, str]]:
        """Return what is remembered of files, by path, for `accept` in another process."""
        keys = {str(path): key_of(path) for path in paths}
        return {path: (key, self._known[key]) for path, key in keys.items() if key in self._known}

    def accept(self, found: Mapping[str, tuple[FileKey, str]]) -> None:
        """Remember what another process computed. A file that looks different from here is left out."""
        for path, (key, digest) in found.items():
            self.remember(Path(path), key, digest)


REMEMBERED = Digests()
"""The digests that this process has computed or received."""


TRANSIENT = re.compile(r"\.(nfs|fuse_hidden|panfs|smb|__afs)[0-9A-Fa-f.]{4,}|\.smbdelete[0-9A-Za-z.]{4,}")
"""Names under which network file systems keep a deleted file while it is still open."""


_FICLONE = 0x40049409
"""Linux ioctl that makes a file share the blocks of another until one is written (linux/fs.h)."""

_CHUNK_BYTES = 2**24


class File(Stored, frozen=True):
    """One file of a product or checkpoint.

    Attributes:
        path: relative to the folder, with ``/``.
        size: bytes.
        sha256: hexadecimal digest of the content.
    """

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        check_inside(self.path)


_NO_NAMES = frozenset({"", ".", ".."})


def check_inside(path: str) -> None:
    """Raise if a path would lead out of the folder that it is relative to.

    Raises:
        ValueError: it would.
    """
    # A product's record names each of its files, so this runs tens of thousands of times in a status.
    if not path or "\0" in path or not _NO_NAMES.isdisjoint(path.split("/")):
        raise ValueError(f"{path!r} is no path inside a folder")


def scan(folder: Path) -> tuple[File, ...]:
    """Return all regular files under a folder with size (bytes) and digest, sorted by path.

    Temporary files are left out: those that vanish during the scan, and names that NFS gives to deleted files
    that are still open. Several files are hashed at a time, and digests in `REMEMBERED` are not computed
    again.
    """

    def file(path: Path) -> File | None:
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                return File(name, path.stat().st_size, REMEMBERED.digest(path))
        return None

    # Sorted here, so that the result does not depend on which thread ends first.
    paths = sorted(_files_under(folder), key=lambda path: path.parts)
    num_threads = min(len(paths), num_hash_threads())
    if num_threads < 2:  # to start a thread takes longer than it would save
        return tuple(found for found in map(file, paths) if found is not None)
    with ThreadPoolExecutor(num_threads) as pool:
        return tuple(found for found in pool.map(file, paths) if found is not None)


class Stamp(NamedTuple):
    """What changes when a file changes, without reading it.

    A writer may restore the modification time, as ``cp -p`` does, but not the time of the last change of the
    inode (``ctime``).

    Attributes:
        path: of the file.
        inode: its number.
        size: bytes.
        mtime_ns, ctime_ns: nanoseconds since the epoch.
    """

    path: str
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def stamps(place: Path) -> tuple[Stamp, ...]:
    """Return the stamps of a file, or of all regular files under a folder, sorted by path.

    They are the key under which a process may cache what it read: equal stamps mean the same content.

    Raises:
        OSError: a folder or file cannot be read.
    """
    found = []
    for path in _files_under(place) if place.is_dir() else (place,):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG((now := path.stat()).st_mode):
                found.append(Stamp(str(path), now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns))
    return tuple(sorted(found))


def _files_under(folder: Path) -> Iterator[Path]:
    """Yield the paths of all entries under a folder that are no folders and not `TRANSIENT`."""
    for root, _, names in os.walk(folder, onerror=_raise_unless_gone):
        yield from (Path(root, name) for name in names if not TRANSIENT.fullmatch(name))


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def contain(folder: Path, *, linked: Path | None = None) -> bool:
    """Replace links that lead out of a folder by copies, so that deletions elsewhere cannot damage it.

    The folder itself may be such a link. Files and folders that their owner may not read or change get the
    missing permissions.

    A link that is broken, circular or leads to a device stays, because it is not a file of the folder.

    Args:
        folder: a product or a checkpoint.
        linked: a folder whose files are never written again, so that hard links to them suffice.

    Returns:
        Whether there was such a link.

    Raises:
        ValueError: a name is not UTF-8 text, so no record can hold it.
        OSError: there is no room for a copy.
    """
    is_changed = folder.is_symlink()
    if is_changed:
        _replace(folder, folder.resolve(), linked, frozenset())
    real = folder.resolve()
    open_to_owner(folder)
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *names)):
            if not is_utf8(path.name):
                raise ValueError(
                    f"the name of {escaped(path.relative_to(folder).as_posix())} is no UTF-8 text"
                )
            target = _target(path) if path.is_symlink() else None
            # A link to a folder above would copy the folder into itself without end.
            if target is None or target.is_relative_to(real) or real.is_relative_to(target):
                continue
            is_changed |= _replace(path, target, linked, frozenset({real}))
    return is_changed


def _replace(link: Path, target: Path, linked: Path | None, above: frozenset[Path]) -> bool:
    """Put a copy of a link's target in its place; return False if that is not possible."""
    # Copied beside the link first: if the copy fails, the link is still there.
    copy = link.with_name(f".{uuid.uuid4().hex}")
    if not _copy(target, copy, linked, above):
        return False
    link.unlink()
    copy.rename(link)
    return True


def open_to_owner(folder: Path) -> None:
    """Let the owner read all files of a folder and change its folders, if they belong to this user."""
    _add_mode(folder, 0o700)
    for place, folders, names in os.walk(folder):
        for name in folders:
            _add_mode(Path(place, name), 0o700)
        for name in names:
            _add_mode(Path(place, name), 0o400)


def _add_mode(path: Path, mode: int) -> None:
    with contextlib.suppress(OSError):
        found = path.lstat().st_mode
        if not stat.S_ISLNK(found) and found & mode != mode:
            path.chmod(stat.S_IMODE(found) | mode)


def _target(link: Path) -> Path | None:
    try:
        return link.resolve(strict=True)
    except (OSError, RuntimeError):  # the link is broken or circular
        return None


def _copy(source: Path, target: Path, linked: Path | None, above: frozenset[Path]) -> bool:
    """Copy a file or folder, with links followed; return False if it is neither, or contains itself."""
    if source.is_dir():
        real = source.resolve()
        if any(folder.is_relative_to(real) for folder in above):
            return False
        target.mkdir()
        for inner in sorted(source.iterdir()):
            _copy(inner, target / inner.name, linked, above | {real})
    elif not source.is_file():
        return False
    elif linked is not None and source.resolve().is_relative_to(linked.resolve()):
        os.link(source.resolve(), target)
    else:
        copy_file(source, target)
    return True


def copy_file(source: Path, target: Path, keepalive: Callable[[], object] = lambda: None) -> None:
    """Copy a file's content into a new file, by a reflink if the file system supports it.

    Args:
        source: an existing file.
        target: a path where no file exists.
        keepalive: called often meanwhile, to keep the lease.
    """
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
            return
        except OSError:
            pass  # not on this file system
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            keepalive()


def fsync_path(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Make every file and folder under `folder` durable, deepest first."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(FileNotFoundError):  # it vanished just now
                    fsync_path(path)
        # An inner folder may vanish meanwhile; if the top one does, that is an error.
        with contextlib.suppress(*([] if Path(root) == folder else [FileNotFoundError])):
            fsync_path(Path(root))


def damage_by_size(sizes: Mapping[str, int], files: Iterable[File]) -> str | None:
    """Return the first difference between a listing and the recorded files, by presence and size.

    Args:
        sizes: sizes of the files that exist, by path.
        files: the recorded files.

    Returns:
        A phrase as from `damage`, or None if there is no difference.
    """
    for file in files:
        if (size := sizes.get(file.path)) != file.size:
            return _other_size(file, size)
    return None


def _other_size(file: File, size: int | None) -> str:
    if size is None:
        return f"{file.path} is missing"
    return f"{file.path} has {size} bytes instead of {file.size}"


NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""Errors that mean that there is no such file. All others only mean that it cannot be read now."""


def damage(folder: Path, files: Iterable[File], *, content: bool = True) -> str | None:
    """Return the first difference between a folder and the recorded files.

    Args:
        folder: where the files should be.
        files: the recorded files.
        content: also compare digests, not sizes alone.

    Returns:
        A phrase for the user, such as ``weights.bin is missing``, or None if there is no difference.

    Raises:
        OSError: a file cannot be read, which is no evidence of damage.
    """
    for file in files:
        # Made by the folder's own operator: it need not be a path of this machine's file system.
        path = folder / file.path
        try:
            size = path.stat().st_size
            if size != file.size:
                return _other_size(file, size)
            if content and file_digest(path) != file.sha256:
                return f"{file.path} has other content than recorded"
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            return _other_size(file, None)
    return None
