"""What training leaves on disk: the weights of an epoch, and the state to go on from.

The state is the same in all three places a model may lie, so that it can be taken up by another number of
processes.
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
"""Folder of the epochs' weights, one folder a step, in the product and in each resume checkpoint."""

_STATE = "state"
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")


def epoch_name(step: int) -> str:
    """The folder of the weights after a step, in `EPOCHS`; the evaluation names these too."""
    return f"{step:06d}"


def save_state(placed: Placed, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write weights and the optimiser's moments, each process its own part. Rates are in the config."""
    state_files.write(_tensors(*get_state_dict(placed.model, optimizer)), folder / _STATE)


def load_state(placed: Placed, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Undo `save_state`, however many processes wrote the state, of this version or the one before.

    Raises:
        StageFailure: the state is damaged, or is none of ours.
    """
    model, moments = get_state_dict(placed.model, optimizer)
    form = state_before if state_before.is_before(folder / _STATE) else state_files
    form.read(_tensors(model, moments), folder / _STATE)
    set_state_dict(placed.model, optimizer, model_state_dict=model, optim_state_dict=moments)


def _tensors(model: Mapping[str, Any], moments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {
        **{f"model.{name}": tensor for name, tensor in model.items()},
        **{
            f"moments.{name}.{moment}": tensor
            for name, moments_of_one in moments["state"].items()
            for moment, tensor in moments_of_one.items()
        },
    }


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
