"""Files with their sizes and digests: listing, making durable and verifying a folder.

It knows folders of a local file system only: no store, no stage.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from orchestrator.formats import Stored
from orchestrator.text import escaped

TRANSIENT = re.compile(r"\.(nfs|fuse_hidden|panfs|smb|__afs)[0-9A-Fa-f.]{4,}")
"""Names under which network file systems keep a deleted file for as long as it is open."""


_FICLONE = 0x40049409
"""The request of Linux that makes a file share the blocks of another until one of them is written:
linux/fs.h."""

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


def check_inside(path: str) -> None:
    """Refuse a path that would lead out of the folder that it is relative to.

    Raises:
        ValueError: it would.
    """
    if not path or "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ValueError(f"{path!r} is no path inside a folder")


def file_digest(path: Path) -> str:
    """Returns the sha-256 of a file's content, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def scan(folder: Path) -> tuple[File, ...]:
    """Lists all regular files under a folder with size (bytes) and digest, sorted by path.

    Left out are files of a moment: what NFS keeps of a deleted file that is still open somewhere, and what
    vanishes while it is read.
    """
    found = []
    for root, _, names in os.walk(folder, onerror=_raise_unless_gone):
        for path in (Path(root, name) for name in names if not TRANSIENT.fullmatch(name)):
            try:
                if path.is_file():
                    name = path.relative_to(folder).as_posix()
                    found.append(File(name, path.stat().st_size, file_digest(path)))
            except FileNotFoundError:
                continue
    return tuple(sorted(found, key=lambda file: file.path.split("/")))


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def contain(folder: Path, *, linked: Path | None = None) -> bool:
    """Put what links lead to outside of a folder into it: what is deleted there must not be missed here.

    The folder itself may have become such a link. What its owner may not read or change is opened to him.

    A link that leads nowhere, in a circle or to a device stays as it is: it is no file of the folder.

    Args:
        folder: of a product or a checkpoint.
        linked: a folder whose files are never written again: hard links to them do.

    Returns:
        Whether there was such a link.

    Raises:
        ValueError: a name is no UTF-8 text, which no record can hold.
        OSError: there is no room for a copy.
    """
    is_changed = folder.is_symlink()
    if is_changed:
        _replace(folder, folder.resolve(), linked, frozenset())
    real = folder.resolve()
    open_to_owner(folder)
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *names)):
            if not _is_text(path.name):
                raise ValueError(
                    f"the name of {escaped(path.relative_to(folder).as_posix())} is no UTF-8 text"
                )
            target = _target(path) if path.is_symlink() else None
            if target is None or target.is_relative_to(real) or real.is_relative_to(target):
                continue
            is_changed |= _replace(path, target, linked, frozenset({real}))
    return is_changed


def _replace(link: Path, target: Path, linked: Path | None, above: frozenset[Path]) -> bool:
    """Put a copy of what a link leads to in its place; False when that is not possible."""
    copy = link.with_name(f".{uuid.uuid4().hex}")
    if not _copy(target, copy, linked, above):
        return False
    link.unlink()
    copy.rename(link)
    return True


def open_to_owner(folder: Path) -> None:
    """Let the owner read all files of a folder, and change its folders, as far as they are ours."""
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


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _target(link: Path) -> Path | None:
    try:
        return link.resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, or in a circle
        return None


def _copy(source: Path, target: Path, linked: Path | None, above: frozenset[Path]) -> bool:
    """Copy a file or folder, links as what they lead to; False when it is neither, or holds itself."""
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


def copy_file(source: Path, target: Path, pulse: Callable[[], object] = lambda: None) -> None:
    """Copy a file's content into a new file, by a reflink where the file system can.

    Args:
        source: an existing file.
        target: where none is yet.
        pulse: called often meanwhile.
    """
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
            return
        except OSError:
            pass  # not on this file system
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            pulse()


def fsync_path(path: Path) -> None:
    """Makes a file's content, or a folder's entries, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Makes every file and folder under `folder` durable, deepest first."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(FileNotFoundError):  # it vanished just now
                    fsync_path(path)
        with contextlib.suppress(*([] if Path(root) == folder else [FileNotFoundError])):
            fsync_path(Path(root))


def damage_by_size(sizes: Mapping[str, int], files: Iterable[File]) -> str | None:
    """Finds the first file that is missing or has another size.

    Args:
        sizes: of the files that there are, by path.
        files: what was recorded.

    Returns:
        A phrase as of `damage`, or None when all is well.
    """
    for file in files:
        if (size := sizes.get(file.path)) != file.size:
            return _other_size(file, size)
    return None


def _other_size(file: File, size: int | None) -> str:
    if size is None:
        return f"{file.path} is missing"
    return f"{file.path} has {size} bytes instead of {file.size}"


_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""Errors that say that there is no such file, not that it cannot be read."""


def damage(folder: Path, files: Iterable[File], *, content: bool = True) -> str | None:
    """Finds the first file that is not what the manifest says.

    Args:
        folder: where the files should be.
        files: what was recorded.
        content: also compare digests, not sizes alone.

    Returns:
        A phrase for the user, such as ``weights.bin is missing``, or None when all is well.

    Raises:
        OSError: a file cannot be read, which says nothing of what it holds.
    """
    for file in files:
        path = folder / file.path  # the folder's own: it need not be one of this machine's file system
        try:
            size = path.stat().st_size
            if size != file.size:
                return _other_size(file, size)
            if content and file_digest(path) != file.sha256:
                return f"{file.path} has other content than recorded"
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            return _other_size(file, None)
    return None


_STEP_WORD = r"(?:checkpoint|ckpt|global_step|step|iteration|iter|epoch)[-_=]?"
_STEP_NAME = re.compile(rf"(?:(?:{_STEP_WORD}[0-9]{{1,18}}[-_])*{_STEP_WORD})?([0-9]{{1,18}})")


def step_of(name: str) -> int | None:
    """Returns the step that a checkpoint folder's name says, None for a name that says none.

    It is a number alone (``00000120``), or follows a word as in ``checkpoint-120``, ``ckpt_120``,
    ``step=120``, ``global_step120``, ``iter-120`` and ``epoch=3-step=120``, where the last number is the
    step.
    """
    match = _STEP_NAME.fullmatch(name)
    return int(match.group(1)) if match else None
