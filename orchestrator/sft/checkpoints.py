"""What training leaves on disk: the weights of an epoch, and the state to go on from.

The state is written by torch's distributed checkpointing in all three places a model may lie, so that it
can be taken up by another number of processes.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import PreTrainedModel

from orchestrator.sft.parallel import Placed, rank

EPOCHS = "checkpoints"
"""Folder of the epochs' weights, one folder a step, in the product and in each resume checkpoint."""

_STATE = "state"
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")


def epoch_name(step: int) -> str:
    """The folder of the weights after a step, in `EPOCHS`; the evaluation names these too."""
    return f"{step:06d}"


def save_state(placed: Placed, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Writes weights and the optimiser's moments, each process its own part."""
    model, moments = get_state_dict(placed.model, optimizer)
    with warnings.catch_warnings(action="ignore"):  # one process alone is no mistake
        save(
            {"model": model, "moments": moments["state"]},  # rates and such are in the config
            storage_writer=FileSystemWriter(folder / _STATE, sync_files=False),  # the context does
            no_dist=not dist.is_initialized(),
        )


def load_state(placed: Placed, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Undoes `save_state`, by whatever number of processes it was written."""
    model, moments = get_state_dict(placed.model, optimizer)
    state: dict[str, Any] = {"model": model, "moments": moments["state"]}
    with warnings.catch_warnings(action="ignore"):
        load(state, checkpoint_id=folder / _STATE, no_dist=not dist.is_initialized())
    moments = {**moments, "state": state["moments"]}
    set_state_dict(placed.model, optimizer, model_state_dict=state["model"], optim_state_dict=moments)


def save_weights(placed: Placed, folder: Path, *, dtype: torch.dtype) -> None:
    """Writes a model that `from_pretrained` reads; rank 0 does, all processes must ask."""
    weights = placed.weights(dtype)
    if rank() == 0:
        model: PreTrainedModel = placed.model
        model.save_pretrained(folder, state_dict=weights)
        model.config.dtype = dtype  # not that of the weights being trained
        model.config.save_pretrained(folder)


def link_weights(source: Path, target: Path) -> None:
    """Hard-links the weights of all epochs; copies them where links are not to be had."""
    for folder in sorted((source / EPOCHS).glob("*")):
        link_files(folder, target / EPOCHS / folder.name)


def link_files(source: Path, target: Path) -> None:
    """Hard-links a model's weight and config files; copies them where links are not to be had."""
    target.mkdir(parents=True, exist_ok=True)
    for file in _weight_files(source):
        if not (target / file.name).exists():  # never write into a file that another folder shares
            try:
                os.link(file, target / file.name)
            except OSError:
                shutil.copyfile(file, target / file.name)


def _weight_files(folder: Path) -> Iterator[Path]:
    return (file for pattern in _WEIGHT_FILES for file in sorted(folder.glob(pattern)))
