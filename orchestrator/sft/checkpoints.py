"""What training saves: the weights of each epoch, and the state to resume from.

The state has the same form for a single process, DDP and FSDP: named tensors, each with its place in the
whole tensor. So a training that ran on 8 GPUs can resume on 4, or on one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from transformers import PreTrainedModel

from orchestrator.sft import state_before, state_files
from orchestrator.sft.distributed.parallel import Placed, rank

EPOCHS = "checkpoints"
"""Folder of the epochs' weights, one folder per step, in the product and in each resume checkpoint."""

_STATE = "state"
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")


def epoch_name(step: int) -> str:
    """Return the folder name in `EPOCHS` for the weights after a step. The evaluation uses it too."""
    return f"{step:06d}"


def save_state(placed: Placed, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write weights and the optimiser's moments; each process writes its own part.

    Learning rates are not saved. They follow from the config and the step.
    """
    state_files.write(_tensors(*get_state_dict(placed.model, optimizer)), folder / _STATE)


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
        model: PreTrainedModel = placed.model
        model.save_pretrained(folder, state_dict=weights)
        # `save_pretrained` records the dtype of the weights in memory, which are trained in float32.
        model.config.dtype = dtype
        model.config.save_pretrained(folder)


def link_weights(source: Path, target: Path) -> None:
    """Hard-link the weights of all epochs; copy them where links are not possible."""
    for folder in sorted((source / EPOCHS).glob("*")):
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
