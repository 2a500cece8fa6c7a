"""What training saves: the weights of each epoch, and the state to resume from.

The state has the same form for a single process, DDP and FSDP: named tensors, each with its place in the
whole tensor. So a training that ran on 8 GPUs can resume on 4, or on one.

A `Saver` saves both while the training goes on. They are copied to host memory, which takes seconds, and then
written by threads, which takes minutes for a large model. Where the host has no room for a copy of the state,
the state is written at once instead.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from transformers import PreTrainedModel

from orchestrator.errors import is_out_of_space
from orchestrator.manifest import REMEMBERED, file_digest, fsync_path, key_of
from orchestrator.sft import state_before, state_files
from orchestrator.sft.distributed.parallel import Placed, local_part, rank
from orchestrator.sft.machine import copied, may_copy, pin
from orchestrator.stage import Context

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


def load_state(placed: Placed, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Load what `write_state` wrote, from any number of processes, in the current or the previous format.

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


PROGRESS = "progress.json"
"""File of the record of a training so far, in each checkpoint."""


class Progress(NamedTuple):
    """Record of the training so far, part of each checkpoint.

    Attributes:
        seconds: of training.
        loss: of each step.
        validation_loss: of each epoch.
        held_s: seconds of these in which the training waited for weights and states to be saved.
    """

    seconds: float
    loss: list[float]
    validation_loss: list[float]
    held_s: float = 0.0


class Saver:
    """Writer of one training's weights and states. All processes make the same calls.

    Args:
        placed: the model.
        optimizer: its optimiser.
        context: of the running stage.
        bf16: whether the weights of an epoch are saved in bfloat16, or in float32.

    Attributes:
        held_s: seconds for which saving has held the training up since this object was made.
    """

    def __init__(
        self, placed: Placed, optimizer: torch.optim.Optimizer, context: Context, *, bf16: bool
    ) -> None:
        self._placed = placed
        self._optimizer = optimizer
        self._context = context
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._weights: Future[None] | None = None
        self._unwritten: tuple[dict[str, torch.Tensor], Path] | None = None
        self._room: Future[None] | None = None
        self._may_copy: bool | None = None
        self._is_over = threading.Event()
        self.held_s = 0.0

    def make_room(self) -> None:
        """Allocate pinned host memory for the copies of a GPU's state and weights, in a thread.

        Pinning takes about a second a gigabyte. The first copies would hold the training up for that time.
        PyTorch keeps the memory, and gives it to copies of the same sizes.
        """
        if self._placed.device.type != "cuda":
            return
        own = sizes_of_state(self._placed)
        self._may_copy = may_copy(sum(own))
        sizes = own if self._may_copy else []
        if rank() == 0:
            sizes += [parameter.numel() * self._dtype.itemsize for parameter in self._placed.parameters]
        self._room = self._pool.submit(pin, sizes)

    def epoch(self, step: int) -> None:
        """Save the weights after the last step of an epoch, in a thread of rank 0."""
        with self._holding():
            self._wait_for_weights()
            weights = self._placed.weights(self._dtype)
            if rank() == 0:
                folder = self._context.output / EPOCHS / epoch_name(step)
                self._weights = self._pool.submit(self._write, weights, folder)

    def _write(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """Write weights. Keep those for which there is no space: the disk may be full for a while alone."""
        try:
            write_weights(self._placed.model, weights, folder, dtype=self._dtype)
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            if is_out_of_space(error):
                self._unwritten = weights, folder
            raise

    def _write_again(self) -> None:
        """Write the weights for which there was no space."""
        if (unwritten := self._unwritten) is not None:
            self._unwritten = None
            self._weights = self._pool.submit(self._write, *unwritten)

    def state(self, step: int, progress: Progress) -> None:
        """Save a checkpoint to resume from, in a thread if the state may be copied."""

        self._write_again()
        weights = self._weights
        held_s = progress.held_s + self.held_s
        record = json.dumps(progress._replace(held_s=held_s)._asdict())

        def finish(folder: Path) -> None:
            if rank() == 0:
                if weights is not None:
                    weights.result()
                # The next attempt's output folder is empty: it takes these epochs from here.
                link_weights(self._context.output, folder, last_step=step)
                (folder / PROGRESS).write_text(record, encoding="utf-8")

        def begin(folder: Path) -> Callable[[], None]:
            if self._room is not None:
                self._room.result()
            pieces = state_of(self._placed, self._optimizer)
            if self._may_copy is None:
                self._may_copy = may_copy(sum(tensor.nbytes for _, tensor in pieces.values()))
            if not self._may_copy:
                write_state(pieces, folder)
                return lambda: finish(folder)
            copies = {name: (offsets, copied(tensor)) for name, (offsets, tensor) in pieces.items()}
            if self._placed.device.type == "cuda":
                torch.cuda.synchronize()

            def write() -> None:
                write_state(copies, folder, is_needless=self._is_over.is_set)
                copies.clear()
                finish(folder)

            return write

        with self._holding():
            self._context.checkpoint_later(step, begin)

    def wait(self) -> None:
        """Wait until the checkpoint that is being written counts, because the training stops."""
        with self._holding():
            self._context.finish_checkpoint()

    def end(self) -> None:
        """Wait for the last weights. A checkpoint that is being written is abandoned: training is done."""
        with self._holding():
            self._is_over.set()
            self._context.finish_checkpoint()
            self._wait_for_weights()
            self._pool.shutdown()

    def _wait_for_weights(self) -> None:
        """Wait for weights that are being written; if there is no space for them, make room and try again."""
        futures.wait([pending for pending in (self._room, self._weights) if pending is not None])
        if self._unwritten is not None:
            self._context.saves.make_room()  # of a rank: the folder of the checkpoints is the same
            self._write_again()
        for pending in (self._room, self._weights):
            if pending is not None:
                pending.result()

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Count the seconds that the training waits."""
        started_s = time.monotonic()
        with self._context.phase("save"):
            yield
        self.held_s += time.monotonic() - started_s
