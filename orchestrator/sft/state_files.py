"""Files of training state: safetensors only, written and read by any number of processes.

Each process writes its pieces of tensors, into several files if they are large, because one file is hashed by
one thread. The header records where a piece lies in its tensor::

    state/00000-of-00002.safetensors     {"__metadata__": {"offsets": "{\\"model.norm.weight\\": [0]}"},
    state/00001-of-00002.safetensors      "model.norm.weight": {"dtype": "F32", "shape": [16], ...}, ...}

A reader takes from all files what overlaps with its own pieces. So the number of processes may change between
writing and reading. With 32 rows of a weight, two writers and three readers::

    written    process 0: rows 0-15      process 1: rows 16-31
    read       process 0: rows 0-10      process 1: rows 11-21 (from both files)      process 2: rows 22-31

Nothing in the files is code, and nothing needs unpickling. The format is that of safetensors
(https://huggingface.co/docs/safetensors); only the key `offsets` is ours. Tensors are written a block at a
time and read from a mapped file, so memory holds no copy of the whole state.
(`torch.distributed.checkpoint.HuggingFaceStorageWriter` holds two.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor

from orchestrator.errors import StageFailure
from orchestrator.manifest import REMEMBERED, key_of
from orchestrator.saving import SaveAbandoned
from orchestrator.sft.distributed.parallel import rank, world_size

BLOCK_BYTES = 64 * 2**20
"""Bytes that are written at a time; our choice."""
NUM_THREADS = 4
"""Number of tensors that are read at a time; our choice."""
FILE_BYTES, MAX_FILES = 2**28, 4
"""Size above which a process writes another file, and most files of a process.

One thread hashes 1.2 GB/s (measured on one H200's host), so four keep up with a disk of 4 GB/s.
"""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of element types in safetensors."""
Box = tuple[slice, ...]
"""One slice per dimension of a tensor."""


class Piece(NamedTuple):
    """A saved part of a tensor.

    Attributes:
        offsets: of its first element in the tensor, one per dimension.
        shape: of the piece.
        read: returns the part of the piece in a box, which has one slice per dimension.
    """

    offsets: Sequence[int]
    shape: Sequence[int]
    read: Callable[[Box], torch.Tensor]


Pieces = dict[str, tuple[Sequence[int], torch.Tensor]]
"""Name of a tensor to the offsets and the values of a piece of it."""


def write_pieces(pieces: Pieces, folder: Path, *, is_needless: Callable[[], bool] = lambda: False) -> None:
    """Write pieces, durably, and remember the digests of the files.

    Args:
        pieces: from `own_pieces`.
        folder: created if needed.
        is_needless: returns whether the state is no longer needed.

    Raises:
        OSError: the file system refused.
        SaveAbandoned: the state is no longer needed.
    """
    folder.mkdir(exist_ok=True)
    total = sum(tensor.nbytes for _, tensor in pieces.values())
    num_files = min(MAX_FILES, 1 + total // FILE_BYTES)
    # The largest pieces first, each into the file that is the smallest so far.
    files: list[list[str]] = [[] for _ in range(num_files)]
    sizes = [0] * num_files
    for name in sorted(pieces, key=lambda name: -pieces[name][1].nbytes):
        smallest = sizes.index(min(sizes))
        files[smallest].append(name)
        sizes[smallest] += pieces[name][1].nbytes
    with ThreadPoolExecutor(num_files) as pool:
        jobs = [
            pool.submit(
                _write_file, {name: pieces[name] for name in names}, folder / _file_name(number), is_needless
            )
            for number, names in enumerate(files)
        ]
    for job in jobs:
        job.result()


def _file_name(number: int) -> str:
    """Return the name of this process's file with a number; the first has none in its name."""
    return f"{rank():05d}-of-{world_size():05d}{f'.{number}' if number else ''}.safetensors"


def _write_file(pieces: Pieces, path: Path, is_needless: Callable[[], bool]) -> None:
    """Write one file, hashed as it is written, and make it durable."""
    # The largest elements first, so that each tensor begins at a multiple of its element size.
    order = sorted(pieces, key=lambda name: -pieces[name][1].element_size())
    header: dict[str, object] = {
        "__metadata__": {"offsets": json.dumps({name: list(pieces[name][0]) for name in order})}
    }
    end = 0
    for name in order:
        tensor = pieces[name][1]
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        head = memoryview(len(text).to_bytes(8, "little") + text)
        for block in chain([head], *(_blocks(pieces[name][1]) for name in order)):
            if is_needless():
                raise SaveAbandoned
            digest.update(block)
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    REMEMBERED.remember(path, key_of(path), digest.hexdigest())


def read(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Fill tensors, in place, with what any number of processes wrote.

    Raises:
        StageFailure: a tensor, or a part of it, is in no file, or a file is damaged (cause ``storage``).
    """
    found: dict[str, list[Piece]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, piece in _pieces_in(path):
            found.setdefault(name, []).append(piece)
    fill(tensors, found, where=folder)


def fill(tensors: Mapping[str, torch.Tensor], saved: Mapping[str, Sequence[Piece]], *, where: Path) -> None:
    """Fill tensors, in place, from saved pieces. Of sharded tensors, fill the part in this process.

    Args:
        tensors: by name.
        saved: pieces by name of the tensor.
        where: folder to name in errors.

    Raises:
        StageFailure: as for `read`.
    """
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        jobs = {
            name: pool.submit(_fill_one, local, offsets, saved.get(name, ()))
            for name, (offsets, local) in _local_pieces(tensors).items()
        }
    for name, job in jobs.items():
        if error := job.exception():
            raise StageFailure("storage", f"{name} in {where} cannot be read: {error}") from error
        if job.result():
            raise StageFailure("storage", f"{job.result()} elements of {name} are not in {where}")


def _fill_one(local: torch.Tensor, offsets: Sequence[int], saved: Iterable[Piece]) -> int:
    """Copy the overlap of each saved piece with a local part. Return how many elements no piece covered.

    In one dimension, let the local part be rows 11 to 21 and a saved piece rows 0 to 15. The overlap is rows
    11 to 15. That is rows 0 to 4 of the local part, and rows 11 to 15 of the piece.
    """
    missing = local.numel()
    for piece in saved:
        ours, theirs = [], []
        for start, size, saved_start, saved_size in zip(
            offsets, local.shape, piece.offsets, piece.shape, strict=True
        ):
            # Without an overlap `high` is below `low`: the slice below is then empty.
            low, high = max(start, saved_start), min(start + size, saved_start + saved_size)
            ours.append(slice(low - start, max(low, high) - start))
            theirs.append(slice(low - saved_start, max(low, high) - saved_start))
        target = local[tuple(ours)]
        if target.numel():
            target.copy_(piece.read(tuple(theirs)))
            missing -= target.numel()
    return missing


def _pieces_in(path: Path) -> list[tuple[str, Piece]]:
    """Return the pieces in a file. No values are read yet.

    Raises:
        StageFailure: the file is not a state file (cause ``storage``).
    """
    try:
        file: Any = safe_open(path, framework="pt")
        offsets = json.loads(file.metadata()["offsets"])
        views = {name: file.get_tensor(name) for name in offsets}  # views of the mapped file
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise StageFailure("storage", f"{path} holds no state: {error}") from error
    return [(name, Piece(offsets[name], values.shape, values.__getitem__)) for name, values in views.items()]


def _local_pieces(tensors: Mapping[str, torch.Tensor]) -> Pieces:
    """Return offsets and values of the part of each tensor in this process.

    Tied tensors share their memory, so only the first name is returned. Parts without elements are left out:
    FSDP gives some processes nothing of a small tensor.
    """
    pieces: Pieces = {}
    seen: set[tuple[int, ...]] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach()
        local = whole.to_local() if isinstance(whole, DTensor) else whole
        place = (local.data_ptr(), *local.shape)
        if local.numel() and place not in seen:
            seen.add(place)
            pieces[name] = _offsets(whole), local
    return pieces


def _offsets(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return where the part in this process begins in the whole tensor, one offset per dimension."""
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.ndim
    whole: Any = tensor
    (chunk,) = whole.__create_chunk_list__()  # as torch's own checkpoints do
    return tuple(chunk.offsets)


def own_pieces(tensors: Mapping[str, torch.Tensor]) -> Pieces:
    """Return what this process writes: its shards, and its share of what all processes hold."""
    pieces = _local_pieces(tensors)
    shared = {name for name in pieces if not isinstance(tensors[name], DTensor)}
    total, before = sum(pieces[name][1].nbytes for name in shared), 0
    own: Pieces = {}
    for name, (offsets, local) in pieces.items():
        writer = rank()
        if name in shared:
            # Tensors in order, divided by bytes: process r writes those that begin in the r-th part of the
            # total.
            writer = before * world_size() // total
            before += local.nbytes
        if writer == rank():
            own[name] = offsets, local
    return own


def _blocks(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in blocks."""
    values = tensor.contiguous().view(-1).view(torch.uint8)
    for start in range(0, len(values), BLOCK_BYTES):
        yield memoryview(values[start : start + BLOCK_BYTES].cpu().numpy().data)
