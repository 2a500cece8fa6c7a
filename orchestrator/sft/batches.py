"""The micro-batches of a training: how large they are, whether their rows are packed, and what is in them.

The choices depend on the model, its rows and its device, but change no result other than by rounding. They
are the size of micro-batches, whether rows can be packed, what the backward pass computes again, and whether
layers are compiled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from orchestrator.errors import StageFailure
from orchestrator.sft import kernels
from orchestrator.sft.distributed.parallel import Placed, world_size
from orchestrator.sft.machine import DeviceLimit
from orchestrator.sft.memory import BUSY_TOKENS, MAX_PACK_TOKENS, Load, Recompute, sizes_of, widest_pack
from orchestrator.sft.packing import (
    Division,
    Packs,
    PaddedTokens,
    Part,
    RowsAtATime,
    plan_widths,
    positions,
    useful_share,
)
from orchestrator.sft.shards import Batch, EpochOrder, Rows, Segments
from orchestrator.sft.speed import decided
from orchestrator.stage import Config

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
        return self._divisions[0].parts(rows, rank=self._rank, num_processes=self._num_processes)

    def batch(self, part: Part) -> Batch:
        """Return a micro-batch of training rows as tensors."""
        return _batch(self._rows, part, self._segments)

    def of_validation(self) -> Iterator[Batch]:
        """Return this process's micro-batches of validation rows."""
        parts = self._divisions[1].parts(
            self._validation_rows, rank=self._rank, num_processes=self._num_processes
        )
        return (_batch(self._validation, part, self._segments) for part in parts)

    def widest(self) -> Batch:
        """Return a micro-batch of the step whose micro-batches take the most memory."""
        if isinstance(packs := self._divisions[0], Packs):
            rows = self._steps[packs.widest(self._steps, num_processes=self._num_processes)]
        else:
            rows = max(self._steps, key=lambda rows: int(self._rows.lengths[rows].max()))
        return self.batch(self.of_step(rows)[0])

    def shares(self) -> tuple[float, float]:
        """Return the useful share of GPU time and the share of padding in the computed positions.

        The useful share is the mean over the steps of: real tokens / (processes x positions of the slowest
        process). Positions of padding and of masked micro-batches count as computed.
        """
        lengths, several = self._rows.lengths, self._num_processes
        computed = positions(self._divisions[0], lengths, self._steps, num_processes=several)
        tokens = sum(int(lengths[rows].sum()) for rows in self._steps)
        slowest = several * computed.max(1)
        return useful_share(lengths, self._steps, slowest), 1 - tokens / int(computed.sum())

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


CPU_ROWS = 8
"""Rows of a micro-batch on a CPU, where models are small and memory does not limit it."""
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 5e-2
"""Largest relative difference between the hidden states of a row in a pack and alone; our choice.

In float32 the measured difference was 2e-6 for models that can be packed, and 5e-2 or more for others.
"""
SEPARATE = 1e-3
"""Largest relative difference of a row's hidden states when another row of its pack changes; our choice.

It is 0 where shapes are equal. Only a router's choice for another row may change the shape of a product.
"""


def setting(uses: Config, name: str, default: Any) -> Any:
    """Return a setting, or its default for sweeps that were sealed before the setting existed."""
    if name not in uses:
        return default
    return uses[name]


class Packing(NamedTuple):
    """Whether rows are packed, and the differences that decided it; see `Placed.packing_differences`."""

    packed: bool
    difference: float | None = None
    leak: float | None = None


class Chosen(NamedTuple):
    """All that was chosen for a training.

    Attributes:
        micro: the largest micro-batch.
        recompute: what the backward pass computes again.
        compiled: whether layers are compiled.
        packing: whether rows could be packed; None if it was not tried.
        num_fused_norms: norms that compute by torch's kernel.
        adapted: keys of `uses` whose values were replaced because they did not fit.
    """

    micro: MicroBatches
    recompute: Recompute
    compiled: bool
    packing: Packing | None
    num_fused_norms: int
    adapted: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """Return what the product records of the choice."""
        packing = None
        if self.packing is not None:
            values = {name: _number(value) for name, value in self.packing._asdict().items()}
            packing = {**values, "by_kernel": self.micro.by_kernel}
        return {
            "gradient_checkpointing": self.recompute,
            "compiled": self.compiled,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "num_fused_norms": self.num_fused_norms,
            "packing": packing,
            "torch": torch.__version__,
        }


def _number(value: float) -> float | str:
    """Return a number as JSON holds it: infinity is none there."""
    return value if isinstance(value, bool) or math.isfinite(value) else str(value)


def choose(settings: Config, uses: Config, placed: Placed, rows: Rows, *, out_of_memory: int = 0) -> Chosen:
    """Choose for a placed model, and change its layers accordingly.

    Args:
        settings: the section `trainer` of what the stage reads.
        uses: the section `trainer` of what the stage uses.
        placed: the model.
        rows: the training rows.
        out_of_memory: how many choices did not fit. Each time the micro-batch is halved. Where it would not
            keep a GPU busy any more, more is computed again first, if that is left to the memory.

    Raises:
        StageFailure: not even one row fits (cause ``oom_gpu``), or the sizes are unknown (cause ``config``).
    """
    bf16 = settings.precision == "bf16"
    if placed.device.type == "cpu":
        placed.limit = DeviceLimit(setting(uses, "cpu_limit_tokens", None))
    wanted = setting(uses, "always_recompute", False) or uses.gradient_checkpointing
    wanted = None if wanted == "auto" else wanted
    longest, divisor = int(rows.lengths.max()), setting(uses, "micro_batch_divisor", 1)
    num_fused = kernels.fuse_norms(placed.model) if placed.device.type == "cuda" else 0
    packing = None if _counts_rows(uses, placed) else can_pack(placed, rows, bf16=bf16)
    packed = packing is not None and packing.packed
    # Rows padded side by side have too many shapes to compile each.
    compiled = packed and should_compile(uses, placed, int(rows.lengths.sum()) * settings.num_epochs)
    how: dict[str, Any] = {"compiled": compiled}
    micro, recompute = micro_batches(settings, uses, placed, rows, recompute=wanted, **how)
    micro = _divided(micro, divisor, longest)
    adapted: dict[str, Any] = {}
    for _ in range(out_of_memory):
        if wanted is None and recompute is not True and micro.tokens < BUSY_TOKENS:
            more: Recompute = "selective" if compiled and recompute is False else True
            micro, recompute = micro_batches(settings, uses, placed, rows, recompute=more, **how)
            micro = _divided(micro, divisor, longest)
            adapted |= {"trainer.always_recompute": True} if recompute is True else {}
        else:
            micro, divisor = _halved(micro, longest), 2 * divisor
            adapted["trainer.micro_batch_divisor"] = divisor
    if packed:
        micro = micro._replace(packed=True, by_kernel=placed.has_pack_kernel)
    placed.recompute(recompute)
    if compiled:
        placed.compile()
    return Chosen(micro, recompute, compiled, packing, num_fused, adapted)


def _divided(micro: MicroBatches, divisor: int, longest: int) -> MicroBatches:
    """Return a part of a micro-batch, of one row at least."""
    rows = None if micro.rows is None else max(1, micro.rows // divisor)
    return micro._replace(rows=rows, tokens=micro.tokens and max(longest, micro.tokens // divisor))


def _counts_rows(uses: Config, placed: Placed) -> bool:
    """Return whether micro-batches have a number of rows, as on a CPU by default, and not of tokens."""
    has_tokens = setting(uses, "micro_batch_tokens", None) is not None
    return uses.micro_batch_size is not None or (placed.device.type == "cpu" and not has_tokens)


def _halved(micro: MicroBatches, longest: int) -> MicroBatches:
    """Return half of a micro-batch. A row is never split.

    Raises:
        StageFailure: it holds one row only (cause ``oom_gpu``).
    """
    if micro.rows == 1 or (micro.rows is None and micro.tokens <= longest):
        raise StageFailure("oom_gpu", "not even a micro-batch of one row fits: more GPUs are needed")
    return _divided(micro, 2, longest)


def can_pack(placed: Placed, rows: Rows, *, bf16: bool) -> Packing:
    """Compare rows in a pack with rows alone. If they agree, let the model compute packs from now on.

    The rows are a short one, the longest and one of middle length, so every sliding window is in use.
    """
    order = np.argsort(rows.lengths, kind="stable")
    chosen = [int(order[place]) for place in dict.fromkeys((0, len(order) - 1, len(order) // 2))]
    # A pack of one row proves nothing; twice the same row is enough to see one through the other.
    chosen = chosen if len(chosen) > 1 else 2 * chosen
    longest = int(rows.lengths.max())
    width = int(rows.lengths[chosen].sum()) + 1
    segments = (
        Segments(longest, len(chosen) + 2)
        if kernels.has_kernel(placed.decoder, placed.device, bf16=bf16)
        else None
    )
    with placed.evaluating():
        difference, leak = placed.packing_differences(
            rows.pack(chosen, width=width, segments=segments), [rows.batch([row]) for row in chosen]
        )
    packed = difference <= (TOLERANCE_16_BIT if bf16 else TOLERANCE) and leak <= SEPARATE
    if packed:
        kernels.enable(placed.decoder)
    return Packing(packed, difference, leak)


def micro_batches(
    settings: Config, uses: Config, placed: Placed, rows: Rows, *, recompute: Recompute | None, compiled: bool
) -> tuple[MicroBatches, Recompute]:
    """Return the configured micro-batch, or the widest that fits, and what the backward pass recomputes.

    Args:
        settings, uses, placed, rows: as for `choose`.
        recompute: what is computed again; None for what is fastest in the memory.
        compiled: whether layers are compiled.

    Raises:
        StageFailure: not even one row fits (cause ``oom_gpu``), or the sizes are unknown (cause ``config``).
    """
    size, tokens = uses.micro_batch_size, setting(uses, "micro_batch_tokens", None)
    if placed.device.type == "cpu":
        size = CPU_ROWS if size is None and tokens is None else size
        return MicroBatches(size, tokens or 0), recompute or False
    if recompute is not None and (size is not None or tokens is not None):
        return MicroBatches(size, tokens or 0), recompute
    model = sizes_of(placed.model)
    load = Load(
        row_tokens=int(rows.lengths.max()),
        checkpointing=recompute,
        value_bytes=2 if settings.precision == "bf16" else 4,
        loss_chunk_tokens=uses.loss_chunk_tokens,
        sharded=placed.is_sharded,
    )
    share = -(-settings.global_batch_size * int(rows.lengths.mean()) // world_size())
    given = tokens or (size * load.row_tokens if size is not None else None)
    memory: dict[str, Any] = {
        "num_gpus": world_size() if placed.is_sharded else 1,
        "memory_gib": torch.cuda.get_device_properties(placed.device).total_memory / 2**30,
    }
    load = decided(
        model,
        load,
        least_tokens=given or 1,
        most_tokens=given or min(MAX_PACK_TOKENS, share),
        is_compiled=compiled,
        **memory,
    )
    if size is None and tokens is None:
        tokens = widest_pack(model, load, **memory)
        if tokens is None:
            raise StageFailure("oom_gpu", "not even a micro-batch of one row fits: more GPUs are needed")
    return MicroBatches(size, tokens or 0), load.checkpointing or False


COMPILE_S, COMPILED_SPEED = 120, 1.4
"""Seconds to compile layers for all widths, and how much faster they are, both as measured (docs/gpu.md)."""
_TFLOPS = 250
"""Ours: what a GPU computes a second in training, for the decision whether compiling is worth it."""


def should_compile(uses: Config, placed: Placed, num_tokens: int) -> bool:
    """Return whether layers are compiled: as configured, or if that saves more seconds than it takes."""
    wanted = setting(uses, "compile", "auto")
    if wanted != "auto":
        return bool(wanted)
    planned_s = 6 * placed.num_parameters * num_tokens / (_TFLOPS * 1e12 * world_size())
    return placed.device.type == "cuda" and planned_s * (1 - 1 / COMPILED_SPEED) > COMPILE_S
