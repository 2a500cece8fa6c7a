"""The zip file of a bundle: its bytes are a function of the names and contents of its files.

Files are stored without compression, sorted by name, with fixed times and modes (APPNOTE.TXT 6.3.10, with its
records for 64 bits where they are needed). So a reader can compute each byte that is no content, and compares
it: there is nothing to add to a bundle, no second file of a name, no link, and no file that is larger than
the zip itself. Nothing is unpacked before all of this was compared.
"""

from __future__ import annotations

import hashlib
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAX_FILES, MAX_NAME, MAX_INDEX_BYTES = 200_000, 400, 200_000_000
"""Most files of a bundle, longest name in bytes, and most bytes of the index at the end of the zip."""

_DATE = 0x21
"""1980-01-01, the first day of the format."""
_UTF8, _REGULAR = 0x0800, 0o100644 << 16
_BIG, _MANY = 0xFFFFFFFF, 0xFFFF
_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s4H2IH")
_END64, _LOCATOR = struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
_CHUNK_BYTES = 2**20

_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


class Damaged(Exception):
    """Raised where a zip is none that `write_zip` could have written; the message is the fault."""


class Member(NamedTuple):
    """A file in the zip.

    Attributes:
        name: path with ``/``.
        size: bytes.
        crc: CRC-32 of the content.
        offset: of its header in the zip.
    """

    name: str
    size: int
    crc: int
    offset: int

    @property
    def start(self) -> int:
        """Offset of the content."""
        return self.offset + len(_local(self))

    @property
    def end(self) -> int:
        """Offset after the content."""
        return self.start + self.size


def name_fault(name: str) -> str:
    """Return why a name may not stand in a bundle, "" if it may: it must be one file everywhere."""
    if len(name.encode(errors="replace")) > MAX_NAME:
        return "is too long"
    if (
        not name.isprintable()
        or re.search(r'[\\:*?"<>|]', name)
        or unicodedata.normalize("NFC", name) != name
    ):
        return "has characters that some systems do not allow"
    for part in name.split("/"):
        if part in ("", ".", "..") or part.endswith((".", " ")) or _RESERVED.fullmatch(part):
            return "is no path inside a folder on every system"
    return ""


def clashes(names: Sequence[str]) -> list[str]:
    """Return the names that are, on some system, the same file or folder as an earlier one."""
    found, files, folders = [], set[str](), dict[str, str]()
    for name in names:
        folded = name.casefold()
        parents = [name[: at.start()] for at in re.finditer("/", name)]
        is_twice = folded in files or folded in folders or any(p.casefold() in files for p in parents)
        is_twice |= any(folders.get(p.casefold(), p) != p for p in parents)
        if is_twice:
            found.append(name)
        files.add(folded)
        folders.update((p.casefold(), p) for p in parents)
    return found


def write_zip(path: Path, contents: Mapping[str, Path | bytes]) -> None:
    """Write files as a zip.

    Args:
        path: of the zip, which must not exist.
        contents: name to content, or to a file that holds it and does not change meanwhile.

    Raises:
        ValueError: a name may not stand in a bundle.
        OSError: a file cannot be read or written.
    """
    names = sorted(contents)
    for name in names:
        if fault := name_fault(name):
            raise ValueError(f"{name!r} {fault}")
    members: list[Member] = []
    with path.open("xb") as stream:
        for name in names:
            size, crc = 0, 0
            for chunk in _chunks(contents[name]):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            members.append(Member(name, size, crc, stream.tell()))
            stream.write(_local(members[-1]))
            for chunk in _chunks(contents[name]):
                stream.write(chunk)
            if stream.tell() != members[-1].end:
                raise OSError(f"{name} changed while it was read")
        start = stream.tell()
        index = b"".join(map(_central, members))
        stream.write(index)
        stream.write(_ending(len(members), len(index), start))


def _chunks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _local(member: Member) -> bytes:
    """Return the header in front of a file's content."""
    name, is_big = member.name.encode(), member.size >= _BIG
    extra = struct.pack("<2H2Q", 1, 16, member.size, member.size) if is_big else b""
    size = _BIG if is_big else member.size
    fields = (45 if is_big else 20, _UTF8, 0, 0, _DATE, member.crc, size, size, len(name), len(extra))
    return _LOCAL.pack(b"PK\x03\x04", *fields) + name + extra


def _central(member: Member) -> bytes:
    """Return the entry of a file in the index."""
    name, values = member.name.encode(), []
    size, offset = member.size, member.offset
    if size >= _BIG:
        values, size = [size, size], _BIG
    if offset >= _BIG:
        values, offset = [*values, offset], _BIG
    extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    version = 45 if values else 20
    fields = (3 << 8 | version, version, _UTF8, 0, 0, _DATE, member.crc, size, size, len(name), len(extra))
    return _CENTRAL.pack(b"PK\x01\x02", *fields, 0, 0, 0, _REGULAR, offset) + name + extra


def _ending(count: int, size: int, start: int) -> bytes:
    """Return what follows the index."""
    more = b""
    if count >= _MANY or size >= _BIG or start >= _BIG:
        more = _END64.pack(b"PK\x06\x06", 44, 3 << 8 | 45, 45, 0, 0, count, count, size, start)
        more += _LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1)
    few = min(count, _MANY)
    return more + _END.pack(b"PK\x05\x06", 0, 0, few, few, min(size, _BIG), min(start, _BIG), 0)


class Zip:
    """A zip that someone sent, open for reading. Its structure was compared; its contents were not.

    Args:
        stream: the file, open for as long as this object is used.

    Attributes:
        members: by name, in their order.

    Raises:
        Damaged: `write_zip` writes no such file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        size = stream.seek(0, 2)
        stream.seek(0)
        if stream.read(2) != b"PK":  # the first bytes of every zip
            raise Damaged("it is no zip" if size else "it is empty")
        count, index_size, start = self._ending(size)
        if count > MAX_FILES or index_size > MAX_INDEX_BYTES:
            raise Damaged(f"the zip claims to hold {count:,} files: at most {MAX_FILES:,} are read")
        if (expected := _ending(count, index_size, start)) != self._bytes(
            size - len(expected), len(expected)
        ):
            raise Damaged("the end of the zip is not as a bundle's")
        if start + index_size + len(expected) != size:
            raise Damaged("the zip holds bytes that belong to no file")
        self.members = {member.name: member for member in self._index(count, start, index_size)}

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset < 0:
            raise Damaged("the zip is cut off")
        self._stream.seek(offset)
        return self._stream.read(size)

    def _ending(self, size: int) -> tuple[int, int, int]:
        """Return number of files, size and start of the index."""
        mark, _, _, _, count, index_size, start, _ = _END.unpack(self._bytes(size - _END.size, _END.size))
        if mark != b"PK\x05\x06":
            raise Damaged("this is no zip, or something follows it")
        if count == _MANY or _BIG in (index_size, start):
            at = size - _END.size - _LOCATOR.size - _END64.size
            *_, count, index_size, start = _END64.unpack(self._bytes(at, _END64.size))
        return count, index_size, start

    def _index(self, count: int, start: int, size: int) -> list[Member]:
        """Return the files, after comparing each byte that is no content with the one that it must be."""
        index, at, offset, before = self._bytes(start, size), 0, 0, ""
        members: list[Member] = []
        for _ in range(count):
            member = self._entry(index, at, offset)
            entry, local = _central(member), _local(member)
            if index[at : at + len(entry)] != entry:
                raise Damaged(f"{_shown(member.name)}: its entry in the zip is not as a bundle's")
            if member.end > start or self._bytes(offset, len(local)) != local:
                raise Damaged(f"{_shown(member.name)}: its header in the zip is not as a bundle's")
            if fault := name_fault(member.name):
                raise Damaged(f"{_shown(member.name)} {fault}")
            if member.name <= before:
                raise Damaged(f"{_shown(member.name)} is there twice, or not in the order of names")
            members.append(member)
            at, offset, before = at + len(entry), member.end, member.name
        if at != size or offset != start:
            raise Damaged("the zip holds bytes that belong to no file")
        if twice := clashes([member.name for member in members]):
            raise Damaged(f"{_shown(twice[0])} is the name of another file where case does not count")
        return members

    def _entry(self, index: bytes, at: int, offset: int) -> Member:
        """Return the file that an entry describes; what else it holds is compared by the caller."""
        try:
            fields = _CENTRAL.unpack_from(index, at)
            crc, size, name_size = fields[7], fields[9], fields[10]
            after = at + _CENTRAL.size + name_size
            name = index[after - name_size : after].decode()
            if size == _BIG:
                size = struct.unpack_from("<Q", index, after + 4)[0]
        except (struct.error, UnicodeDecodeError):
            raise Damaged("the index of the zip is damaged") from None
        return Member(name, size, crc, offset)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file in parts."""
        member = self.members[name]
        self._stream.seek(member.start)
        left = member.size
        while left:
            chunk = self._stream.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise Damaged("the zip is cut off")
            left -= len(chunk)
            yield chunk

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return b"".join(self.chunks(name))

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a file's content, in hexadecimal.

        Raises:
            Damaged: the zip's own checksum is of other content.
        """
        digest, crc = hashlib.sha256(), 0
        for chunk in self.chunks(name):
            digest.update(chunk)
            crc = zlib.crc32(chunk, crc)
        if crc != self.members[name].crc:
            raise Damaged(f"{_shown(name)} has other content than the checksum of the zip")
        return digest.hexdigest()

    def extract(self, names: Sequence[str], folder: Path) -> None:
        """Write files under an empty folder. No name leads out of it: all were compared."""
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                for chunk in self.chunks(name):
                    stream.write(chunk)


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else f"{name[:120]}...")
