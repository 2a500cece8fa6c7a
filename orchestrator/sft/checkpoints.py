"""What training saves: the weights of each epoch, and the state to resume from.

The state has the same form for a single process, DDP and FSDP: named tensors, each with its place in the
whole tensor. So a training that ran on 8 GPUs can resume on 4, or on one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from transformers import PreTrainedModel

from orchestrator.manifest import REMEMBERED, file_digest, fsync_path, key_of
from orchestrator.sft import state_before, state_files
from orchestrator.sft.distributed.parallel import Placed, local_part, rank

EPOCHS = "checkpoints"
"""Folder of the epochs' weights, one folder per step, in the product and in each resume checkpoint."""

_STATE = "state"
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")


def epoch_name(step: int) -> str:
    """Return the folder name in `EPOCHS` for the weights after a step. The evaluation uses it too."""
    return f"{step:06d}"


def state_of(placed: Placed, optimizer: torch.optim.Optimizer) -> state_files.Pieces:
    """Return this process's part of the weights and of the optimiser's moments.

    Learning rates are not saved. They follow from the config and the step.
    """
    return state_files.own_pieces(_tensors(*get_state_dict(placed.model, optimizer)))


def sizes_of_state(placed: Placed) -> list[int]:
    """Return the bytes of the large tensors of `state_of`, before there are moments.

    A weight and its two moments have the same size. Buffers and steps are small.
    """
    return 3 * [local_part(parameter).nbytes for parameter in placed.parameters]


def write_state(
    pieces: state_files.Pieces, folder: Path, *, is_needless: Callable[[], bool] = lambda: False
) -> None:
    """Write what `state_of` returned, or a copy of it; see `state_files.write_pieces`."""
    state_files.write_pieces(pieces, folder / _STATE, is_needless=is_needless)


def save_state(placed: Placed, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write weights and the optimiser's moments; each process writes its own part."""
    write_state(state_of(placed, optimizer), folder)


def load_state(placed: Placed, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Load what `save_state` wrote, from any number of processes, in the current or the previous format.

    Raises:
        StageFailure: the state is damaged or incomplete, or not a training state.
    """
    # This also creates the moments of a fresh optimiser, as tensors to read into.
    model, moments = get_state_dict(placed.model, optimizer)
    form = state_before if state_before.is_before(folder / _STATE) else state_files
    form.read(_tensors(model, moments), folder / _STATE)
    set_state_dict(placed.model, optimizer, model_state_dict=model, optim_state_dict=moments)


def _tensors(model: Mapping[str, Any], moments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return weights and moments as one flat mapping, such as ``moments.model.norm.weight.exp_avg``."""
    return {
        **{f"model.{name}": tensor for name, tensor in model.items()},
        **{
            f"moments.{name}.{moment}": tensor
            for name, moments_of_one in moments["state"].items()
            for moment, tensor in moments_of_one.items()
        },
    }


def save_weights(placed: Placed, folder: Path, *, dtype: torch.dtype) -> None:
    """Write a model that `from_pretrained` reads. Rank 0 writes; all processes must call this together."""
    weights = placed.weights(dtype)
    if rank() == 0:
        write_weights(placed.model, weights, folder, dtype=dtype)


def write_weights(
    model: PreTrainedModel, weights: dict[str, torch.Tensor], folder: Path, *, dtype: torch.dtype
) -> None:
    """Write a model with the given weights, durably, and remember the digests of the files."""
    # Several files of large models are hashed at a time.
    total = sum(tensor.nbytes for tensor in weights.values())
    most = max(state_files.FILE_BYTES, -(-total // state_files.MAX_FILES))
    model.save_pretrained(folder, state_dict=weights, max_shard_size=most)
    # `save_pretrained` records the dtype of the weights in memory, which are trained in float32.
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    paths = list(_weight_files(folder))
    with ThreadPoolExecutor(2 * len(paths)) as pool:
        # Read from the page cache while the kernel writes it to the disk.
        digests = pool.map(file_digest, paths)
        for written in [pool.submit(fsync_path, path) for path in paths]:
            written.result()
        for path, digest in zip(paths, digests, strict=True):
            REMEMBERED.remember(path, key_of(path), digest)


def link_weights(source: Path, target: Path, *, last_step: int) -> None:
    """Hard-link the weights of the epochs up to a step; copy them where links are not possible."""
    for folder in sorted((source / EPOCHS).glob("*")):
        # A later epoch may be in the middle of being written.
        if int(folder.name) <= last_step:
            link_files(folder, target / EPOCHS / folder.name)


def link_files(source: Path, target: Path) -> None:
    """Hard-link a model's weight and config files; copy them where links are not possible."""
    target.mkdir(parents=True, exist_ok=True)
    for file in _weight_files(source):
        # Never overwrite: an existing file may be a hard link, and writing would change another folder's
        # file.
        if not (target / file.name).exists():
            try:
                os.link(file, target / file.name)
            except OSError:
                shutil.copyfile(file, target / file.name)


def _weight_files(folder: Path) -> Iterator[Path]:
    return (file for pattern in _WEIGHT_FILES for file in sorted(folder.glob(pattern)))
