"""What the simulated file system consists of, and what it hands out: listings and open files."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

FIRST_HANDLE = 1 << 24
"""Smallest number of an open file; the kernel's own are smaller."""


class Node:
    """A file, folder or link.

    Attributes:
        names: of a folder, its entries.
        data: of a file, or the target of a link.
        synced: the content that outlives the machine that wrote it.
        status: of its content, for `os.stat`; None until it is known.
    """

    __slots__ = ("data", "kind", "mode", "names", "number", "status", "synced", "written_s")

    def __init__(self, kind: int, number: int, now_s: float) -> None:
        self.kind = kind
        self.number = number
        self.mode = 0o755
        self.names: dict[str, None] = {}
        self.data = b""
        self.synced = b""
        self.written_s = now_s
        self.status: os.stat_result | None = None


class FolderEntry:
    """An entry of a listing, as `os.DirEntry` is one."""

    __slots__ = ("_node", "name", "path")

    def __init__(self, name: str, path: str, node: Node) -> None:
        self.name = name
        self.path = path
        self._node = node

    def __fspath__(self) -> str:
        return self.path

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a folder."""
        return self._node.kind == stat.S_IFDIR

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a file."""
        return self._node.kind == stat.S_IFREG

    def is_symlink(self) -> bool:
        """Return whether it is a link."""
        return self._node.kind == stat.S_IFLNK

    def is_junction(self) -> bool:
        """Return False: no such thing is here."""
        return False


class FolderScan:
    """A listing, as `os.scandir` returns one."""

    def __init__(self, entries: list[FolderEntry]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[FolderEntry]:
        return self._entries

    def __next__(self) -> FolderEntry:
        return next(self._entries)

    def __enter__(self) -> FolderScan:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Do nothing."""


class WrittenFile(io.BytesIO):
    """A file that is open for writing. What is written is there when it is flushed or closed.

    Args:
        data: that it begins with.
        is_text: whether text is written, and not bytes.
        flushed: called with the whole content.
        numbered: returns the number of an open file.
        left: called with that number when the file is closed.
    """

    def __init__(
        self,
        data: bytes,
        *,
        is_text: bool,
        flushed: Callable[[bytes], None],
        numbered: Callable[[], int],
        left: Callable[[int], None],
    ) -> None:
        super().__init__(data)
        self.seek(0, io.SEEK_END)
        self._is_text = is_text
        self._flushed = flushed
        self._numbered = numbered
        self._left = left
        self._number: int | None = None

    def write(self, data: Any) -> int:
        """Write bytes, or text where it was opened for that."""
        return super().write(data.encode() if self._is_text else data)

    def flush(self) -> None:
        """Hand what was written to the file system."""
        if not self.closed:
            self._flushed(self.getvalue())

    def fileno(self) -> int:
        """Return its number."""
        if self._number is None:
            self._number = self._numbered()
        return self._number

    def close(self) -> None:
        """Flush and close."""
        if not self.closed:
            try:
                self.flush()
            finally:
                if self._number is not None:
                    self._left(self._number)
                super().close()


class ReadFile(io.BytesIO):
    """A file that is open for reading."""

    def fileno(self) -> int:
        """Return a number that nothing has."""
        return FIRST_HANDLE - 1
