"""Tokenised shards: their file, and the rows, order and batches that training makes of them.

Micro-batches are grouped by length within an optimiser step, so they need little padding and nothing is
packed; the set of rows of a step, and so its gradient, is the same whatever their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

SHARD = "shard.arrow"

SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("item_id", pa.string()),
        ("num_prompt_tokens", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
    ]
)


class Example(NamedTuple):
    """One item as tokens: the prompt, then the response that the loss is on."""

    split: str
    item_id: str
    num_prompt_tokens: int
    input_ids: Sequence[int]


def write_shard(examples: Sequence[Example], folder: Path) -> None:
    """Writes the rows of one language as an Arrow file."""
    columns = [list(column) for column in zip(*examples, strict=True)] or [[] for _ in SCHEMA]
    table = pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)
    with pa.OSFile(str(folder / SHARD), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)


def read_shard(folder: Path) -> list[Example]:
    """Reads the rows back, in the order in which they were written."""
    with pa.memory_map(str(folder / SHARD)) as source:
        table = pa.ipc.open_file(source).read_all()
        ids = [np.asarray(row.values).copy() for row in table["input_ids"]]
        columns = (table[name].to_pylist() for name in SCHEMA.names[:3])
        return [Example(*row) for row in zip(*columns, ids, strict=True)]


class Batch(NamedTuple):
    """Rows padded on the right, and where their response tokens are predicted.

    Attributes:
        input_ids: rows x tokens.
        positions: of the tokens before each response token, in the flattened `input_ids`.
        targets: the response tokens.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device; the copy need not be waited for."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Rows:
    """Examples as tensors, and the batches made of them; the prompt is left out of the loss."""

    def __init__(self, examples: Sequence[Example], *, pad_token_id: int) -> None:
        self._rows = [torch.tensor(np.asarray(example.input_ids), dtype=torch.long) for example in examples]
        self._first = [max(1, example.num_prompt_tokens) for example in examples]  # nothing predicts token 0
        self._pad_token_id = pad_token_id
        self.lengths = np.array([len(row) for row in self._rows])
        self.num_targets = np.maximum(self.lengths - np.array(self._first), 0)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int], *, masked: bool = False) -> Batch:
        """Makes a batch; a masked one has no response tokens, so that it adds nothing to any gradient."""
        input_ids = torch.nn.utils.rnn.pad_sequence(
            [self._rows[row] for row in rows], True, self._pad_token_id
        )
        width = input_ids.shape[1]
        targets = [
            torch.arange(number * width + self._first[row], number * width + len(self._rows[row]))
            for number, row in enumerate(rows if not masked else [])
        ]
        places = torch.cat(targets) if targets else torch.empty(0, dtype=torch.long)
        return Batch(input_ids, places - 1, input_ids.flatten()[places])


class EpochOrder:
    """The rows of each optimiser step: shuffled over the epoch, then sorted by length within the step.

    They depend on the seed, the epoch and the step alone, not on micro-batches or processes.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, *, global_batch_size: int, seed: int) -> None:
        self._lengths, self._size, self._seed = np.asarray(lengths), global_batch_size, seed

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the last may have fewer rows."""
        return -(-len(self._lengths) // self._size)

    def steps(self, epoch: int) -> list[np.ndarray]:
        """Returns the rows of each optimiser step of an epoch, the longest first."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))
        parts = [order[start : start + self._size] for start in range(0, len(order), self._size)]
        return [part[np.argsort(-self._lengths[part], kind="stable")] for part in parts]


class Part(NamedTuple):
    """One micro-batch of one process: rows, and whether it only keeps step with the other processes."""

    rows: list[int]
    masked: bool = False


def parts_of(
    rows: Sequence[int] | np.ndarray, *, size: int, rank: int = 0, num_processes: int = 1
) -> list[Part]:
    """Deals the rows of a step out as micro-batches, as many to each process.

    Neighbours in length go to the processes side by side. Where the micro-batches do not come out even, a
    process gets the step's last row once more, masked.

    Args:
        rows: of the step, by length.
        size: rows of a micro-batch.
        rank: of the process.
        num_processes: among which the rows are dealt out.
    """
    whole = [Part([int(row) for row in rows[start : start + size]]) for start in range(0, len(rows), size)]
    whole += [Part([int(rows[-1])], masked=True)] * (-len(whole) % num_processes)
    return whole[rank::num_processes]
