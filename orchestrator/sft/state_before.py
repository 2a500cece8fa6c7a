"""Reader of training state in the previous format: torch's distributed checkpoints, whose index is a pickle.

It only reads, so that a training that was interrupted under the previous version can resume. A pickle may
name any function for the reader to call, so loading one from a shared folder could run foreign code. Two
restricted unpicklers prevent that. The index is read by one that accepts a fixed list of names, and replaces
classes by a plain record. Tensors are read by torch's own (``weights_only``).
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
    """Return whether a folder holds state in the previous format."""
    return (folder / INDEX).is_file()


def read(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Fill tensors, in place, with state that any number of processes wrote in the previous format.

    Raises:
        StageFailure: the index or a tensor names something that a state does not need (cause ``data``), or as
            for `state_files.read`.
    """
    try:
        found = _pieces(folder)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise StageFailure("data", f"{folder / INDEX} is no index of a training state: {reason}") from error
    state_files.fill(tensors, found, where=folder)


class _Record:
    """Stand-in for each class in an index. It keeps the class's arguments and state, and runs no code."""

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
    # The class has two names, because Python 3.13 moved it to another module.
    **{(module, "PosixPath"): _Record for module in ("pathlib", "pathlib._local")},
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that accepts only the names in `_NAMES`, and calls only their stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name.

        Raises:
            UnpicklingError: the name has no place in an index.
        """
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _NAMES[module, name]


def _pieces(folder: Path) -> dict[str, list[Piece]]:
    """Return the saved pieces of each tensor, from the index.

    Raises:
        ValueError: a piece is in a file that a state does not have, such as one outside of the folder.
    """
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
        # The index is untrusted: a path such as ``../../x`` must not be opened.
        if not _FILE.fullmatch(path) or info.state.get("transform_descriptors"):
            raise ValueError(f"{name} is in {path!r}")
        load = functools.partial(_load, folder / path, int(start), int(length))
        found.setdefault(name, []).append(Piece(offsets, shapes[name, offsets], load))
    return found


def _load(path: Path, start: int, length: int, box: Box) -> torch.Tensor:
    """Read one piece, which is a torch archive inside of the file. Return the part of it in a box."""
    with path.open("rb") as stream:
        stream.seek(start)
        saved = io.BytesIO(stream.read(length))
    values: torch.Tensor = torch.load(saved, map_location="cpu", weights_only=True)
    return values[box]
