"""The micro-batches of a training in this process: of each optimiser step, and of the validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from orchestrator.sft.packing import (
    Division,
    Packs,
    PaddedTokens,
    Part,
    RowsAtATime,
    plan_widths,
    useful_share,
)
from orchestrator.sft.shards import Batch, EpochOrder, Rows, Segments

_SEGMENTS = 64
"""Ours: the kernel's tensor has a multiple of so many rows, so that few trainings differ in its size."""


class MicroBatches(NamedTuple):
    """The largest micro-batch, and how rows are put into it.

    Attributes:
        rows: rows of a micro-batch, padded side by side; None to count tokens.
        tokens: tokens of a micro-batch, padding included, if `rows` is None.
        packed: whether rows are packed, or padded side by side.
        by_kernel: whether the boundaries in packs are a tensor for torch's kernel.
    """

    rows: int | None = None
    tokens: int = 0
    packed: bool = False
    by_kernel: bool = False


class Batches:
    """The micro-batches of one process of a training.

    Args:
        rows: the training rows.
        validation: the validation rows.
        order: which rows each step has.
        num_epochs: number of epochs.
        global_batch_size: rows of a step.
        micro: the largest micro-batch.
        rank: of the process.
        num_processes: number of processes that share each step.

    Attributes:
        widths: tokens of the packs, ascending; empty if rows are not packed.
    """

    def __init__(
        self,
        rows: Rows,
        validation: Rows,
        *,
        order: EpochOrder,
        num_epochs: int,
        global_batch_size: int,
        micro: MicroBatches,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.micro, self._rank, self._num_processes = micro, rank, num_processes
        self._rows, self._validation = rows, validation
        self._steps = [step for epoch in range(num_epochs) for step in order.steps(epoch)]
        self._validation_rows = np.argsort(-validation.lengths, kind="stable")
        self._segments: Segments | None = None
        self.widths: tuple[int, ...] = ()
        if micro.rows is not None:
            # A micro-batch larger than a process's share of a step would leave others without rows.
            size = min(micro.rows, -(-global_batch_size // num_processes))
            self.micro = micro._replace(rows=size)
            self._divisions: tuple[Division, Division] = (RowsAtATime(size), RowsAtATime(size))
        elif micro.packed:
            self._divisions = self._packs()
        else:
            self._divisions = (
                PaddedTokens(rows.lengths, max_tokens=micro.tokens),
                PaddedTokens(validation.lengths, max_tokens=micro.tokens),
            )

    def _packs(self) -> tuple[Packs, Packs]:
        """Return the packs of training and validation, which share their widths."""
        several = self._num_processes
        lengths, validation = self._rows.lengths, self._validation.lengths
        widths = plan_widths(lengths, self._steps, num_processes=several, max_tokens=self.micro.tokens)
        packs, validated = Packs(lengths, widths=widths), Packs(validation, widths=widths)
        self.widths = validated.widths
        if self.micro.by_kernel:
            longest = int(max(lengths.max(), validation.max()))
            most = max(
                packs.max_rows(self._steps, num_processes=several),
                validated.max_rows([self._validation_rows], num_processes=several),
            )
            pieces = most + -(-self.widths[-1] // longest) + 1
            self._segments = Segments(longest, -(-pieces // _SEGMENTS) * _SEGMENTS)
        return packs, validated

    def of_step(self, rows: np.ndarray) -> list[Part]:
        """Return what this process computes of a step."""
        return self._parts(rows, self._rank)

    def _parts(self, rows: np.ndarray, rank: int) -> list[Part]:
        return self._divisions[0].parts(rows, rank=rank, num_processes=self._num_processes)

    def batch(self, part: Part) -> Batch:
        """Return a micro-batch of training rows as tensors."""
        return _batch(self._rows, part, self._segments)

    def of_validation(self) -> Iterator[Batch]:
        """Return this process's micro-batches of validation rows."""
        parts = self._divisions[1].parts(
            self._validation_rows, rank=self._rank, num_processes=self._num_processes
        )
        return (_batch(self._validation, part, self._segments) for part in parts)

    def widest(self) -> np.ndarray:
        """Return the rows of the step whose micro-batches take the most memory."""
        return max(self._steps, key=lambda rows: max(map(self._positions, self.of_step(rows))))

    def _positions(self, part: Part) -> int:
        """Return how many positions a micro-batch computes."""
        return part.width or len(part.rows) * int(self._rows.lengths[part.rows].max())

    def shares(self) -> tuple[float, float]:
        """Return the useful share of GPU time and the share of padding in the computed positions.

        The useful share is the mean over the steps of: real tokens / (processes x positions of the slowest
        process). Positions of padding and of masked micro-batches count as computed.
        """
        every = range(self._num_processes)
        if isinstance(packs := self._divisions[0], Packs):
            slowest = packs.computed(self._steps, num_processes=self._num_processes)
            total = int(slowest.sum())
        else:
            positions = np.array(
                [
                    [sum(map(self._positions, self._parts(rows, number))) for number in every]
                    for rows in self._steps
                ]
            )
            slowest, total = self._num_processes * positions.max(1), int(positions.sum())
        tokens = sum(int(self._rows.lengths[rows].sum()) for rows in self._steps)
        return useful_share(self._rows.lengths, self._steps, slowest), 1 - tokens / total

    def facts(self) -> dict[str, Any]:
        """Return what the product records of the micro-batches."""
        useful, padding = self.shares()
        return {
            "micro_batch_size": self.micro.rows,
            "micro_batch_tokens": self.micro.tokens or None,
            "widths": list(self.widths),
            "padding_share": round(padding, 4),
            "useful_share": round(useful, 4),
        }


def _batch(rows: Rows, part: Part, segments: Segments | None) -> Batch:
    if part.width is None:
        return rows.batch(part.rows, masked=part.masked)
    return rows.pack(part.rows, width=part.width, segments=segments)
