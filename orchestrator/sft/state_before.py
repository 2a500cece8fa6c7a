"""Training state as the version before saved it: torch's distributed checkpoints, whose index is a pickle.

It is only read, so that a training that was interrupted under that version goes on. A pickle may name any
function to be called. The index is read by an unpickler that knows twelve names, each of which stands for a
plain record here, and the tensors by torch's own restricted one.
"""

from __future__ import annotations

import functools
import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import StageFailure
from orchestrator.sft import state_files
from orchestrator.sft.state_files import Box, Piece

INDEX = ".metadata"
_FILE = re.compile(r"__\d+_\d+\.distcp")


def is_before(folder: Path) -> bool:
    """Tell whether a folder holds state of the version before."""
    return (folder / INDEX).is_file()


def read(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Fill tensors, in place, with what any number of processes of the version before have written.

    Raises:
        StageFailure: the index or a tensor names what has no place in a state (cause ``data``), or as for
            `state_files.read`.
    """
    try:
        found = _pieces(folder)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise StageFailure("data", f"{folder / INDEX} is no index of a training state: {reason}") from error
    state_files.fill(tensors, found, where=folder)


class _Record:
    """Stands for each class in an index: holds what the class would have been given, and does nothing."""

    def __init__(self, *arguments: object) -> None:
        self.state: Any = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


_METADATA = "torch.distributed.checkpoint.metadata"
_NAMES: Mapping[tuple[str, str], Any] = {
    **{
        (_METADATA, name): _Record
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties"),
            *("ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
        )
    },
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _Record,
    ("torch.serialization", "_get_layout"): _Record,
    ("torch", "Size"): tuple,
    **{("torch", str(dtype).removeprefix("torch.")): str(dtype) for dtype in state_files.DTYPES},
    **{(module, "PosixPath"): _Record for module in ("pathlib", "pathlib._local")},
}


class _Unpickler(pickle.Unpickler):
    """Knows the names in `_NAMES`, and calls nothing but what they stand for."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name stands for.

        Raises:
            UnpicklingError: it has no place in an index.
        """
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _NAMES[module, name]


def _pieces(folder: Path) -> dict[str, list[Piece]]:
    index = _Unpickler(io.BytesIO((folder / INDEX).read_bytes())).load().state
    shapes = {
        (name, tuple(chunk.state["offsets"])): tuple(chunk.state["sizes"])
        for name, tensor in index["state_dict_metadata"].items()
        for chunk in tensor.state["chunks"]
    }
    found: dict[str, list[Piece]] = {}
    for place, info in index["storage_data"].items():
        name, offsets = place.state["fqn"], tuple(place.state.get("offset") or ())
        path, start, length = (info.state[key] for key in ("relative_path", "offset", "length"))
        if not _FILE.fullmatch(path) or info.state.get("transform_descriptors"):
            raise ValueError(f"{name} is in {path!r}")
        load = functools.partial(_load, folder / path, int(start), int(length))
        found.setdefault(name, []).append(Piece(offsets, shapes[name, offsets], load))
    return found


def _load(path: Path, start: int, length: int, box: Box) -> torch.Tensor:
    with path.open("rb") as stream:
        stream.seek(start)
        saved = io.BytesIO(stream.read(length))
    values: torch.Tensor = torch.load(saved, map_location="cpu", weights_only=True)
    return values[box]
