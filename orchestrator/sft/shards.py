"""Tokenised shards: their file, and the rows, order and batches that training makes of them.

The row order of an optimiser step depends on (seed, epoch, step) alone. Within a step rows are sorted by
length, so that micro-batches need little padding; the set of rows, and so the gradient, is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset, Sampler

SHARD = "shard.arrow"
IGNORED = -100
"""The label of tokens that the loss leaves out."""

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


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Examples as tensors, the prompt masked from the loss."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._rows = []
        for example in examples:
            ids = torch.tensor(np.asarray(example.input_ids), dtype=torch.long)
            labels = ids.clone()
            labels[: example.num_prompt_tokens] = IGNORED
            self._rows.append({"input_ids": ids, "labels": labels})
        self.lengths = [len(example.input_ids) for example in examples]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._rows[index]


class EpochOrder(Sampler[int]):
    """The order of rows in an epoch: shuffled, then sorted by length within each optimiser step."""

    def __init__(self, lengths: Sequence[int], *, global_batch_size: int, seed: int) -> None:
        self._lengths, self._size, self._seed = np.asarray(lengths), global_batch_size, seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter([int(row) for step in self.steps(self._epoch) for row in step])

    def steps(self, epoch: int) -> list[np.ndarray]:
        """Returns the rows of each optimiser step of an epoch; the last step may be smaller."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))
        parts = [order[start : start + self._size] for start in range(0, len(order), self._size)]
        return [part[np.argsort(-self._lengths[part], kind="stable")] for part in parts]

    def num_tokens(self, epoch: int) -> list[int]:
        """Returns the number of tokens, padding left out, of each step of an epoch."""
        return [int(self._lengths[part].sum()) for part in self.steps(epoch)]


def collate(rows: Sequence[Mapping[str, torch.Tensor]], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pads rows on the right to the longest of them."""

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], True, value)

    input_ids = padded("input_ids", pad_token_id)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
        "labels": padded("labels", IGNORED),
    }
