"""Saving of a training while it goes on: the weights of an epoch, and the state to resume from.

Both are copied to host memory, which takes seconds, and then written by threads, which takes minutes for a
large model. Where the host has no room for a copy of the state, the state is written at once instead.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from orchestrator.errors import is_out_of_space
from orchestrator.sft.checkpoints import (
    EPOCHS,
    epoch_name,
    link_weights,
    sizes_of_state,
    state_of,
    write_state,
    write_weights,
)
from orchestrator.sft.distributed.parallel import Placed, rank
from orchestrator.sft.host import copied, may_copy, pin
from orchestrator.stage import Context

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
