"""Forgeries of a bundle, from a seed: a list with digests left alone, and one with all digests recomputed.

``forgeries(seed)`` returns 100 of them. Each is a function from the honest bundle's files to the forged zip.
"""

from __future__ import annotations

import hashlib
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from orchestrator.bundles import zipped
from orchestrator.bundles.description import CRATE, MANIFEST, SIGNATURE, BundleManifest, crate_of
from orchestrator.bundles.recomputing import recompute, state_of
from orchestrator.manifest import File
from orchestrator.sft.predictions import PREDICTIONS

Files = dict[str, bytes]
Caught = Literal["digests", "recomputation", "signature"]
"""The weakest check that finds a forgery."""


class Forgery(NamedTuple):
    """A forgery: what was done, which check finds it, and the zip made from honest files."""

    name: str
    caught: Caught
    forge: Callable[[Files, random.Random], bytes]


def read(path: Path) -> Files:
    """Return the files of a zip."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(files: Mapping[str, bytes]) -> bytes:
    """Return files as a zip in the form of a bundle."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "forged.zip")
        zipped.write_zip(path, dict(files))
        return path.read_bytes()


def closed(files: Files) -> Files:
    """Return files with a manifest that fits them; a signature stays as it is."""
    manifest = msgspec.json.decode(files[MANIFEST], type=BundleManifest)
    listed = tuple(_file(name, files[name]) for name in sorted(files) if name not in (MANIFEST, SIGNATURE))
    manifest = msgspec.structs.replace(manifest, files=listed).closed()
    return {**files, MANIFEST: manifest.encoded()}


def _file(name: str, data: bytes) -> File:
    return File(name, len(data), hashlib.sha256(data).hexdigest())


def followed(files: Files) -> Files:
    """Return files in which all that follows from the records was made again, as a careful forger does."""
    with tempfile.TemporaryDirectory() as place:
        for name, data in files.items():
            if name.startswith("store/"):
                path = Path(place, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        view = state_of(Path(place, "store"), msgspec.json.decode(files[MANIFEST])["sweep"], 1)
        files = {**files, **recompute(view).files}
        listed = [name for name in sorted(files) if name not in (MANIFEST, SIGNATURE, CRATE)]
        files[CRATE] = crate_of(view, [_file(name, files[name]) for name in listed])
    return closed(files)


# Digests left alone


def _flipped(name: str) -> Callable[[Files, random.Random], bytes]:
    """One bit of a file whose name holds a text, with a right checksum of the zip."""

    def forge(files: Files, rng: random.Random) -> bytes:
        chosen = rng.choice(sorted(each for each in files if name in each))
        data = bytearray(files[chosen])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return packed({**files, chosen: bytes(data)})

    return forge


def _changed(change: Callable[[Files, random.Random], object]) -> Callable[[Files, random.Random], bytes]:
    """Files that a function changes; the manifest stays as it is."""

    def forge(files: Files, rng: random.Random) -> bytes:
        files = dict(files)
        change(files, rng)
        return packed(files)

    return forge


def _any(files: Files, rng: random.Random) -> str:
    return rng.choice(sorted(set(files) - {MANIFEST, SIGNATURE}))


def _swap(files: Files, rng: random.Random) -> None:
    first, second = rng.sample(sorted(n for n in files if n.endswith(PREDICTIONS)), 2)
    files[first], files[second] = files[second], files[first]


def _of_zip(change: Callable[[bytearray, random.Random], object]) -> Callable[[Files, random.Random], bytes]:
    """The bytes of the honest zip, which a function changes."""

    def forge(files: Files, rng: random.Random) -> bytes:
        data = bytearray(packed(files))
        change(data, rng)
        return bytes(data)

    return forge


def _by_zipfile(
    change: Callable[[zipfile.ZipFile, Files], object],
) -> Callable[[Files, random.Random], bytes]:
    """An ordinary zip of the same files, with one more entry."""

    def forge(files: Files, rng: random.Random) -> bytes:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "forged.zip")
            with zipfile.ZipFile(path, "w") as archive:
                for name in sorted(files):
                    archive.writestr(zipfile.ZipInfo(name), files[name])
                change(archive, files)
            return path.read_bytes()

    return forge


def _entry(name: str, data: bytes = b"x", mode: int = 0o100644) -> Callable[[zipfile.ZipFile, Files], object]:
    def add(archive: zipfile.ZipFile, files: Files) -> None:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, data)

    return add


def _bomb(archive: zipfile.ZipFile, files: Files) -> None:
    archive.writestr(zipfile.ZipInfo("store/zeros"), bytes(50_000_000), zipfile.ZIP_DEFLATED)


def _named(name: str) -> Callable[[Files, random.Random], bytes]:
    """A zip in the form of a bundle with one more file, whose name `write_zip` would refuse."""

    def forge(files: Files, rng: random.Random) -> bytes:
        entries = sorted([*files.items(), (name, b"x")])
        data, members = bytearray(), []
        for each, content in entries:
            members.append(zipped.Member(each, len(content), zlib.crc32(content), len(data)))
            data += zipped._local(members[-1]) + content
        index = b"".join(map(zipped._central, members))
        return bytes(data) + index + zipped._ending(len(members), len(index), len(data))

    return forge


def _at(data: bytearray, mark: bytes, field: int, form: str, value: int, skip: int = 0) -> None:
    """Writes a number into a record of the zip."""
    start = 0
    for _ in range(skip + 1):
        start = data.index(mark, start) + 4
    struct.pack_into(form, data, start - 4 + field, value)


_END, _INDEX, _HEADER = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"


def _insert(data: bytearray, at: int, more: bytes) -> None:
    data[at:at] = more


LEFT_ALONE: Mapping[str, Callable[[Files, random.Random], bytes]] = {
    **{
        f"one bit of {what}": _flipped(part)
        for what, part in {
            "the sealed revision": "sweeps/graded/1.json",
            "a request": "requests/",
            "a claim": "claim.json",
            "a start record": "start.json",
            "an end record": "end.json",
            "a product's record": "/done/",
            "a spec": "spec.json",
            "predictions": PREDICTIONS,
            "weights": "model.safetensors",
            "the summary of a training": "training.json",
            "the rows": "rows.json",
            "the rows as CSV": "rows.csv",
            "the claims": "claims.json",
            "a table": "accuracy.md",
            "the manifest": MANIFEST,
            "the mark of the store": "store.json",
        }.items()
    },
    "a file is missing": _changed(lambda f, r: f.pop(_any(f, r))),
    "predictions are missing": _changed(lambda f, r: f.pop(next(n for n in f if n.endswith(PREDICTIONS)))),
    "the manifest is missing": _changed(lambda f, r: f.pop(MANIFEST)),
    "a file too many": _changed(lambda f, r: f.update({"report/more.md": b"# More\n"})),
    "a record too many": _changed(lambda f, r: f.update({"store/nodes/000001.json": b"{}"})),
    "a file that differs only in case": _named("ROWS.json"),
    "two files are swapped": _changed(_swap),
    "a file has another name": _changed(lambda f, r: f.update({"rows2.json": f.pop("rows.json")})),
    "a file is cut off": _changed(lambda f, r: f.update({(n := _any(f, r)): f[n][:-1]})),
    "a file is longer": _changed(lambda f, r: f.update({(n := _any(f, r)): f[n] + b"\n"})),
    "a file is empty": _changed(lambda f, r: f.update({_any(f, r): b""})),
    "a digest in the manifest": _changed(
        lambda f, r: f.update({MANIFEST: f[MANIFEST].replace(b'"sha256": "', b'"sha256": "0', 1)})
    ),
    "a size in the manifest": _changed(
        lambda f, r: f.update({MANIFEST: f[MANIFEST].replace(b'"size": ', b'"size": 1', 1)})
    ),
    "the root digest": _changed(
        lambda f, r: f.update({MANIFEST: f[MANIFEST].replace(b'"root": "', b'"root": "0')})
    ),
    "the manifest is written otherwise": _changed(lambda f, r: f.update({MANIFEST: f[MANIFEST] + b" "})),
    "the manifest has a further key": _changed(
        lambda f, r: f.update({MANIFEST: f[MANIFEST].replace(b'"format": 1,', b'"format": 1, "x": 1,')})
    ),
    "bytes after the zip": _of_zip(lambda d, r: d.extend(b"more")),
    "bytes before the zip": _of_zip(lambda d, r: _insert(d, 0, b"#!/bin/sh\n")),
    "bytes between two files": _of_zip(lambda d, r: _insert(d, d.index(_HEADER, 4), b"more")),
    "bytes before the index": _of_zip(lambda d, r: _insert(d, d.index(_INDEX), b"more")),
    "a comment of the zip": _of_zip(lambda d, r: _at(d, _END, 20, "<H", 4) or d.extend(b"more")),
    "the time of a file": _of_zip(lambda d, r: _at(d, _INDEX, 12, "<H", 77)),
    "the time in a header": _of_zip(lambda d, r: _at(d, _HEADER, 10, "<H", 77)),
    "a checksum of the zip": _of_zip(lambda d, r: _at(d, _INDEX, 16, "<I", 77)),
    "a size of the zip": _of_zip(lambda d, r: _at(d, _INDEX, 24, "<I", 2**31)),
    "an offset of the zip": _of_zip(lambda d, r: _at(d, _INDEX, 42, "<I", 0, skip=1)),
    "a link in place of a file": _of_zip(lambda d, r: _at(d, _INDEX, 38, "<I", 0o120777 << 16)),
    "one bit of the zip": _of_zip(lambda d, r: d.__setitem__(n := r.randrange(len(d)), d[n] ^ 1)),
    "half of the zip": _of_zip(lambda d, r: d.__delitem__(slice(len(d) // 2, None))),
    "a path that leads out": _named("../../etc/cron.d/x"),
    "an absolute path": _named("/tmp/x"),
    "a link to a password": _by_zipfile(_entry("store/x", b"/etc/passwd", 0o120777)),
    "a second file of a name": _named("rows.json"),
    "a file that unpacks to a thousand times its size": _by_zipfile(_bomb),
}
"""What is done to a bundle, without a change of its digests; each is found by plain `verify`."""
