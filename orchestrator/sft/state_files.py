"""Files of training state: safetensors alone, written and read by any number of processes.

Each process writes one file with its pieces of tensors. Where a piece lies in its tensor is in the header::

    state/00000-of-00002.safetensors     {"__metadata__": {"offsets": "{\\"model.norm.weight\\": [0]}"},
    state/00001-of-00002.safetensors      "model.norm.weight": {"dtype": "F32", "shape": [16], ...}, ...}

A reader takes from all files what overlaps with its own pieces. Nothing in them is code, and nothing needs
unpickling. The format is that of safetensors (https://huggingface.co/docs/safetensors); the key `offsets` is
ours. Tensors are written a block at a time and read from a mapped file, so that no copy of the state is held
in memory (`torch.distributed.checkpoint.HuggingFaceStorageWriter` holds two).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor

from orchestrator.errors import StageFailure
from orchestrator.sft.distributed.parallel import rank, world_size

BLOCK_BYTES = 64 * 2**20
NUM_THREADS = 4
"""Blocks that are copied at a time; ours."""

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
"""What safetensors calls the types of elements."""
Box = tuple[slice, ...]


class Piece(NamedTuple):
    """A saved part of a tensor.

    Attributes:
        offsets: of its first element in the tensor, one a dimension.
        shape: of the piece.
        read: returns the part of the piece in a box, one slice a dimension.
    """

    offsets: Sequence[int]
    shape: Sequence[int]
    read: Callable[[Box], torch.Tensor]


def write(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write this process's pieces of tensors, of which all processes have the same names.

    Sharded tensors are written where they lie; of the others each process writes its share.

    Args:
        tensors: by name, on any device.
        folder: is made if need be.

    Raises:
        OSError: the file system refused.
    """
    folder.mkdir(exist_ok=True)
    pieces = dict(_own_pieces(tensors))
    # the largest elements first, so that each tensor is aligned to its own
    order = sorted(pieces, key=lambda name: -pieces[name][1].element_size())
    header: dict[str, object] = {
        "__metadata__": {"offsets": json.dumps({name: list(pieces[name][0]) for name in order})}
    }
    starts, end = {}, 0
    for name in order:
        tensor = pieces[name][1]
        starts[name], end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    path = folder / f"{rank():05d}-of-{world_size():05d}.safetensors"
    with path.open("wb") as stream, ThreadPoolExecutor(NUM_THREADS) as pool:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.flush()
        os.truncate(stream.fileno(), first + end)
        jobs = [
            pool.submit(_write_block, stream.fileno(), block, first + starts[name] + offset)
            for name in order
            for offset, block in _blocks(pieces[name][1])
        ]
        for job in jobs:
            job.result()


def read(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Fill tensors, in place, with what any number of processes have written.

    Raises:
        StageFailure: a tensor, or a part of it, is in no file, or a file is damaged (cause ``storage``).
    """
    found: dict[str, list[Piece]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, piece in _pieces_in(path):
            found.setdefault(name, []).append(piece)
    fill(tensors, found, where=folder)


def fill(tensors: Mapping[str, torch.Tensor], saved: Mapping[str, Sequence[Piece]], *, where: Path) -> None:
    """Fill tensors, in place, from saved pieces; of sharded ones the part in this process.

    Args:
        tensors: by name.
        saved: pieces by name of the tensor.
        where: what to name in errors.

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
    """Return how many elements were in no piece."""
    missing = local.numel()
    for piece in saved:
        ours, theirs = [], []
        for start, size, saved_start, saved_size in zip(
            offsets, local.shape, piece.offsets, piece.shape, strict=True
        ):
            low, high = max(start, saved_start), min(start + size, saved_start + saved_size)
            ours.append(slice(low - start, max(low, high) - start))
            theirs.append(slice(low - saved_start, max(low, high) - saved_start))
        target = local[tuple(ours)]
        if target.numel():
            target.copy_(piece.read(tuple(theirs)))
            missing -= target.numel()
    return missing


def _pieces_in(path: Path) -> list[tuple[str, Piece]]:
    try:
        file: Any = safe_open(path, framework="pt")
        offsets = json.loads(file.metadata()["offsets"])
        views = {name: file.get_tensor(name) for name in offsets}  # of the file: nothing is read yet
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise StageFailure("storage", f"{path} holds no state: {error}") from error
    return [(name, Piece(offsets[name], values.shape, values.__getitem__)) for name, values in views.items()]


def _local_pieces(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[Sequence[int], torch.Tensor]]:
    """Return offsets and values of the part in this process; of tied tensors only those of the first name."""
    pieces: dict[str, tuple[Sequence[int], torch.Tensor]] = {}
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
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.ndim
    whole: Any = tensor
    (chunk,) = whole.__create_chunk_list__()  # what torch's own checkpoints are made by
    return tuple(chunk.offsets)


def _own_pieces(
    tensors: Mapping[str, torch.Tensor],
) -> Iterator[tuple[str, tuple[Sequence[int], torch.Tensor]]]:
    """Yield what this process writes: its shards, and its share of what all processes hold."""
    pieces = _local_pieces(tensors)
    shared = {name for name in pieces if not isinstance(tensors[name], DTensor)}
    total, before = sum(pieces[name][1].nbytes for name in shared), 0
    for name, (offsets, local) in pieces.items():
        writer = rank()
        if name in shared:
            writer = before * world_size() // total
            before += local.nbytes
        if writer == rank():
            yield name, (offsets, local)


def _blocks(tensor: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the bytes of a tensor, block by block, each with where it begins."""
    values = tensor.contiguous().view(-1).view(torch.uint8)
    for start in range(0, len(values), BLOCK_BYTES):
        yield start, values[start : start + BLOCK_BYTES]


def _write_block(handle: int, block: torch.Tensor, offset: int) -> None:
    data = memoryview(block.cpu().numpy().data)
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written
