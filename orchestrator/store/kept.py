"""Records of products that this machine has read before, for views of a store in a folder.

A `done` record is created once and never changes, and a large sweep has tens of thousands. Those of one
revision are kept in one file, so that the next look need not open each of them. These rules (ours) keep the
file from hiding a record or making one up:

- Each look lists what exists. The file only answers what a listed record contains, and absence is never
  kept. So no time of a folder decides anything, however coarse it is or however long a server's clients
  cache it.
- A kept record counts for a file with the same inode number, size, and times of change, in nanoseconds.
- A record is kept once it is `SETTLED_S` old. Within one tick of a coarse clock, a file that was replaced
  could have equal times.

Any number of readers share the file. Each replaces it as a whole by a rename, and whatever it wrote is right.
A checksum tells whether it is whole: nothing syncs it to the disk.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import uuid
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchestrator import formats
from orchestrator.core.evidence import Attempt, Evidence
from orchestrator.core.records import Done, StoreMark
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import InfrastructureError
from orchestrator.manifest import File
from orchestrator.store import layout
from orchestrator.store.access import StageIndex
from orchestrator.store.index import index_folder, name_of
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import PosixStore

VERSION = 1
"""Of the file. It is part of the file's name."""

SETTLED_S = 5.0
"""Age from which a record is kept, in seconds. FAT's clock, the coarsest, has ticks of 2 s."""

MIN_NEW, MIN_SHARE = 100, 0.1
"""The file is written again for so many new records, or for this share of those in it if that is more."""

_HEAD = struct.Struct(">II")
_READ_BYTES = 1 << 16


_Stamp = tuple[int, int, int, int]
"""What changes when a file changes: inode number, size in bytes, times of change in nanoseconds."""


class _Kept(NamedTuple):
    """The content of the file.

    Attributes:
        stamps: key of a record to the stamp of its file.
        records: a JSON array of the records, in the same order.
    """

    stamps: dict[str, _Stamp]
    records: bytes | memoryview


_NOTHING = _Kept({}, b"[]")


def plain_products(
    ledger: Ledger,
    instances: Collection[StageInstance],
    listed: Mapping[str, StageIndex],
    trusted: set[tuple[str, int]],
    title: str,
) -> dict[str, Evidence]:
    """Return the evidence of the stages whose product needs no second thought, by digest.

    Most stages of a large sweep are such, and one loop over them takes half the time of one call for each.
    Nothing is raised or judged here: stages with a void, a retirement, damage, a later attempt or a record
    that cannot be read are left out.

    Args:
        ledger: the records of a folder; takes over those that are read.
        instances: stage instances whose folders could be listed.
        listed: stage to what the folder holds now.
        trusted: (digest, generation) of products whose files were compared before; grows.
        title: of the sweep and revision, such as ``smoke@2``.
    """
    objects = ledger.objects
    if not isinstance(objects, PosixStore):
        return {}
    ledger.learn(_products(ledger, objects, instances, listed, title))
    found = {}
    for instance in instances:
        index, digest = listed[instance.stage], instance.digest
        generation = max(index.done.get(digest, ()), default=0)
        if digest in index.void or digest in index.retired or not ledger.has_read(instance, generation):
            continue
        done, _ = ledger.product(instance, generation)
        if done is None or any(
            t.stage in listed and t.digest in listed[t.stage].void for t in instance.inputs
        ):
            continue
        if (digest, generation) not in trusted:
            if not _are_whole(f"{objects.root}/{layout.output(instance, done.attempt)}", done.files):
                continue
            trusted.add((digest, generation))
        if not objects.seems_there(layout.attempt(instance, done.attempt + 1, layout.CLAIM)):
            found[digest] = Evidence((Attempt(done.attempt),), done, generation)
    return found


def _are_whole(place: str, files: Iterable[File]) -> bool:
    """Return whether all files are there with their sizes, as far as that can be found out."""
    try:
        for file in files:
            if os.stat(f"{place}/{file.path}").st_size != file.size:  # noqa: PTH116 - `Path` is slow
                return False
    except OSError:
        return False
    return True


def _products(
    ledger: Ledger,
    objects: PosixStore,
    instances: Iterable[StageInstance],
    listed: Mapping[str, StageIndex],
    title: str,
) -> list[Done]:
    """Return the records of products that were not read before, as far as they can be read."""
    wanted = {}
    for instance in instances:
        index, digest = listed[instance.stage], instance.digest
        if generations := index.done.get(digest):
            generation = max(generations)
            if generation not in index.void.get(digest, ()) and not ledger.has_read(instance, generation):
                wanted[layout.done(instance, generation)] = (instance.stage, digest, generation)
    if not wanted:
        return []
    path = _place(ledger, objects, title)
    began_s = time.time()
    kept = _load(path)
    found = _unchanged(objects.root, kept, wanted)
    fresh = _read(objects.root, wanted.keys() - found.keys())
    settled = {key for key, (stamp, _) in fresh.items() if stamp[-1] < (began_s - SETTLED_S) * 1e9}
    decoded = {key: done for key, (_, data) in fresh.items() if (done := _decoded(data)) is not None}
    settled &= decoded.keys()
    if path is not None and len(settled) >= max(MIN_NEW, MIN_SHARE * len(found)):
        with contextlib.suppress(OSError):
            _write(path, kept, found.keys(), {key: fresh[key] for key in settled})
    return [
        done
        for key, done in (found | decoded).items()
        if (done.stage, done.digest, done.generation) == wanted[key]
    ]


def _place(ledger: Ledger, objects: PosixStore, title: str) -> Path | None:
    """Return the path of the file; None if this machine has no place for it, or the store has no mark."""
    with contextlib.suppress(OSError, InfrastructureError):
        mark, _ = ledger.read(layout.STORE, StoreMark)
        if mark is not None:
            # A copy of a store has the nonce of the original, so its address counts too.
            name = name_of(mark.nonce, mark.format, objects.url, title, VERSION)
            return index_folder() / f"{name}.products"
    return None


def _load(path: Path | None) -> _Kept:
    """Read the file: a checksum of what follows, the size of the stamps, stamps and records.

    It counts as empty if it is absent, torn or foreign.
    """
    with contextlib.suppress(OSError, struct.error, msgspec.DecodeError):
        # Parts of it are views, because a copy of many megabytes takes longer than their checksum.
        data = memoryview(path.read_bytes() if path is not None else b"")
        crc, size = _HEAD.unpack_from(data)
        if zlib.crc32(data[4:]) == crc:
            start, end = _HEAD.size, _HEAD.size + size
            return _Kept(msgspec.msgpack.decode(data[start:end], type=dict[str, _Stamp]), data[end:])
    return _NOTHING


def _unchanged(root: Path, kept: _Kept, wanted: Mapping[str, object]) -> dict[str, Done]:
    """Return the wanted records of the file whose own files have not changed since."""
    if not kept.stamps:
        return {}
    records: list[Done | None]
    try:
        records = msgspec.json.decode(kept.records, type=list[Done])
    except msgspec.ValidationError:
        # A record of a later version. Each is decoded by itself, leniently, or not at all.
        raw = msgspec.json.decode(kept.records, type=list[msgspec.Raw])
        records = [_decoded(bytes(data)) for data in raw]
    found = {}
    for (key, stamp), record in zip(kept.stamps.items(), records, strict=True):
        if record is None or key not in wanted:
            continue
        try:
            if _stamp(os.stat(f"{root}/{key}")) == stamp:  # noqa: PTH116 - `Path` is slow
                found[key] = record
        except OSError:
            continue
    return found


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(root: Path, keys: Iterable[str]) -> dict[str, tuple[_Stamp, bytes]]:
    """Read records and their stamps; leave out those that cannot be read."""
    found = {}
    for key in keys:
        with contextlib.suppress(OSError):
            handle = os.open(f"{root}/{key}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                stamp, data = _stamp(os.fstat(handle)), os.read(handle, _READ_BYTES)
                while len(data) < stamp[1] and (more := os.read(handle, _READ_BYTES)):
                    data += more
            finally:
                os.close(handle)
            found[key] = (stamp, data)
    return found


def _decoded(data: bytes) -> Done | None:
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        return formats.decode(data, Done)
    return None


def _write(
    path: Path, kept: _Kept, unchanged: Iterable[str], fresh: Mapping[str, tuple[_Stamp, bytes]]
) -> None:
    """Replace the file by one with the records that have not changed, and the new ones."""
    old = dict(zip(kept.stamps, msgspec.json.decode(kept.records, type=list[msgspec.Raw]), strict=True))
    every = {key: (kept.stamps[key], bytes(old[key])) for key in unchanged} | dict(fresh)
    records = b"[" + b",".join(data for _, data in every.values()) + b"]"
    stamps = msgspec.msgpack.encode({key: stamp for key, (stamp, _) in every.items()})
    content = _HEAD.pack(0, len(stamps))[4:] + stamps + records
    temporary = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(zlib.crc32(content).to_bytes(4, "big") + content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
