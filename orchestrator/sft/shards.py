"""Tokenised shards: their file format, and the rows, order and batches that training makes of them.

A *step* is one optimiser step over `global_batch_size` rows. Each step is divided into *micro-batches*, one
forward and backward pass each; see `orchestrator.sft.packing`. The set of rows of a step depends on the seed,
the epoch and the step alone. So any micro-batches and number of processes give the same gradient, up to
rounding and dropout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from orchestrator.errors import StageFailure

SHARD = "shard.arrow"

SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("item_id", pa.string()),
        ("num_prompt_tokens", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
    ]
)
"""Columns of a shard's file: the fields of `Example`."""


class Example(NamedTuple):
    """One item as tokens: the prompt, then the response that the loss covers."""

    split: str
    item_id: str
    num_prompt_tokens: int
    input_ids: Sequence[int]


def table_of(examples: Sequence[Example]) -> pa.Table:
    """Return rows as a table with the columns of a shard."""
    columns = [list(column) for column in zip(*examples, strict=True)] or [[] for _ in SCHEMA]
    return pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)


def write_shard(examples: Sequence[Example], folder: Path) -> None:
    """Write the rows of one language as an Arrow file."""
    with pa.OSFile(str(folder / SHARD), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table_of(examples))


def open_shard(folder: Path, split: str | None = None) -> pa.Table:
    """Return the rows of a shard, of all splits or one, in the order in which they were written.

    The table is mapped into memory and not read. So the processes of a machine share its tokens, and a token
    is read from the disk when a batch first holds its row.
    """
    table = pa.ipc.open_file(pa.memory_map(str(folder / SHARD))).read_all()
    if split is None:
        return table
    chosen = pc.equal(table["split"], split)
    start, number = pc.index(chosen, True).as_py(), pc.sum(chosen).as_py() or 0
    part = table.slice(max(start, 0), number)
    # `prepare` writes one split after the other. A slice stays mapped; `filter` would copy the rows.
    return part if pc.all(pc.equal(part["split"], split)).as_py() is not False else table.filter(chosen)


def read_shard(folder: Path) -> list[Example]:
    """Return a copy of the rows of a shard, in the order in which they were written."""
    return [Example(**row) for row in open_shard(folder).to_pylist()]


class Segments(NamedTuple):
    """Fixed sizes of the tensor from which the kernel for packed rows reads where rows begin.

    Attributes:
        longest: most tokens of a row.
        number: rows of a pack and pieces of padding, at least.
    """

    longest: int
    number: int


class Batch(NamedTuple):
    """Rows side by side or in one pack, with the positions that predict their response tokens.

    A model's output at position p predicts token p + 1. For a row ``P P R R`` of two prompt tokens and
    two response tokens, `positions` holds 1 and 2, and `targets` holds the tokens at 2 and 3.

    Attributes:
        input_ids: token ids, rows x tokens, padded on the right; of a pack 1 x tokens.
        positions: index of the token before each response token, in the flattened `input_ids`.
        targets: ids of the response tokens.
        places: of a pack: the place of each token in its row, 1 x tokens. None for rows side by side.
        row_lengths: of a pack: tokens of each row, then of each piece of padding.
        ends: of a pack: where each row ends, after a 0; None if `row_lengths` is used.
        longest: of a pack: most tokens of a row.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    places: torch.Tensor | None = None
    row_lengths: tuple[int, ...] = ()
    ends: torch.Tensor | None = None
    longest: int = 0

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, copied asynchronously."""
        fields: dict[str, Any] = self._asdict()
        tensors = {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}
        moved: Any = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return self._replace(**moved)

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments of the decoder; the names for packs are those that transformers uses."""
        inputs: dict[str, Any] = {"input_ids": self.input_ids}
        if self.places is not None:
            inputs["position_ids"] = self.places
            if self.ends is None:
                inputs["row_lengths"] = self.row_lengths
            else:
                inputs |= {"cu_seq_lens_q": self.ends, "max_length_q": self.longest}
        return inputs


class Rows:
    """Rows of tokens, and the batches made of them. The loss excludes the prompt.

    The tokens stay where they are, one flat array for each chunk of the table: those of mapped shards stay on
    disk until a batch holds them.

    Args:
        rows: examples, or a table with the columns of a shard.
        pad_token_id: fills the end of shorter rows.

    Attributes:
        lengths: tokens of each row.
        first_targets: place of the first response token of each row, at least 1: nothing predicts token 0.
        num_targets: response tokens of each row.
    """

    def __init__(self, rows: Sequence[Example] | pa.Table, *, pad_token_id: int) -> None:
        table = rows if isinstance(rows, pa.Table) else table_of(rows)
        chunks = table["input_ids"].chunks
        self._pad_token_id = pad_token_id
        self._flat: list[np.ndarray] = [chunk.values.to_numpy() for chunk in chunks]
        offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._chunk_of = np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks])
        self._starts = np.concatenate([np.empty(0, np.int64), *(places[:-1] for places in offsets)])
        self.lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(places) for places in offsets)])
        self.first_targets = np.maximum(table["num_prompt_tokens"].to_numpy(), 1)
        self.num_targets = np.maximum(self.lengths - self.first_targets, 0)

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, row: int) -> np.ndarray:
        """Return the token ids of a row (int32), without a copy."""
        start = self._starts[row]
        found: np.ndarray = self._flat[self._chunk_of[row]][start : start + self.lengths[row]]
        return found

    def batch(self, rows: Sequence[int], *, masked: bool = False) -> Batch:
        """Return a batch of rows. A masked batch has no response tokens, so it adds nothing to any gradient.

        Args:
            rows: indices of the rows.
            masked: leave all targets out.
        """
        width = int(self.lengths[rows].max())
        input_ids = np.full((len(rows), width), self._pad_token_id, np.int64)
        # Indices into the flattened, padded batch: row `number` begins at number * width.
        places = [np.empty(0, np.int64)]
        for number, row in enumerate(rows):
            length = self.lengths[row]
            input_ids[number, :length] = self.tokens(row)
            if not masked:
                places.append(np.arange(number * width + self.first_targets[row], number * width + length))
        targets = torch.from_numpy(np.concatenate(places))
        tokens = torch.from_numpy(input_ids)
        return Batch(tokens, targets - 1, tokens.flatten()[targets])

    def pack(self, rows: Sequence[int], *, width: int, segments: Segments | None = None) -> Batch:
        """Return a batch of rows one after another, with padding at the end. Without rows it is all padding.

        Args:
            rows: indices of the rows.
            width: tokens of the pack.
            segments: sizes for the kernel; None to divide the pack by `Batch.row_lengths`.
        """
        lengths, longest = [int(self.lengths[row]) for row in rows], int(self.lengths.max())
        input_ids, places = np.full(width, self._pad_token_id, np.int64), np.zeros(width, np.int64)
        targets, end = [np.empty(0, np.int64)], 0
        for row, length in zip(rows, lengths, strict=True):
            start, end = end, end + length
            input_ids[start:end] = self.tokens(row)
            places[start:end] = np.arange(length)
            targets.append(np.arange(start + self.first_targets[row], end))
        if segments is not None:
            longest = segments.longest
        # Padding is rows of its own, no longer than others, so that no position is left uncomputed.
        lengths += [min(longest, width - piece) for piece in range(end, width, longest)]
        chosen, tokens = torch.from_numpy(np.concatenate(targets)), torch.from_numpy(input_ids)
        pack = Batch(
            tokens[None], chosen - 1, tokens[chosen], torch.from_numpy(places)[None], longest=longest
        )
        if segments is None:
            return pack._replace(row_lengths=tuple(lengths))
        return pack._replace(ends=_ends(lengths, segments.number))


def _ends(lengths: Sequence[int], number: int) -> torch.Tensor:
    """Return a 0 and where each row ends. Empty rows at the end fill the tensor up to a fixed size."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return torch.nn.functional.pad(ends, (0, max(0, number + 1 - len(ends))), value=int(ends[-1]))


def rows_of(shards: Mapping[str, Path], languages: Sequence[str], split: str, *, pad_token_id: int) -> Rows:
    """Join the rows of one split of all languages of the mixture, in the mixture's order.

    Raises:
        StageFailure: a language has no training row, or none has a validation row (cause ``data``).
    """
    tables = []
    for language in languages:
        of_language = open_shard(shards[language], split)
        if split == "train" and not len(of_language):
            what = f"no {split} row of {language} is left: trainer.max_length_tokens is too low"
            raise StageFailure("data", what)
        tables.append(of_language)
    if not len(table := pa.concat_tables(tables)):
        raise StageFailure("data", f"no {split} row is left of {', '.join(languages)}")
    return Rows(table, pad_token_id=pad_token_id)


class EpochOrder:
    """The rows of each optimiser step: shuffled over the epoch, then sorted by length within the step.

    The order depends on the seed, the epoch and the step alone. It does not depend on micro-batches,
    processes or a random state. So a resumed training computes the order again and skips the steps that are
    done.

    Args:
        lengths: tokens of each row.
        global_batch_size: rows of an optimiser step.
        seed: of the shuffle.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, *, global_batch_size: int, seed: int) -> None:
        self._lengths, self._size, self._seed = np.asarray(lengths), global_batch_size, seed

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimiser steps of an epoch; the last may have fewer rows."""
        return -(-len(self._lengths) // self._size)

    def steps(self, epoch: int) -> list[np.ndarray]:
        """Return the row indices of each optimiser step of an epoch, the longest row first."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))
        parts = [order[start : start + self._size] for start in range(0, len(order), self._size)]
        # A stable sort: rows of equal length keep their shuffled order on every platform.
        return [part[np.argsort(-self._lengths[part], kind="stable")] for part in parts]
