"""Speed of training: a model of the utilisation, fitted to measurements on an H100, and the cost of saving.

A token costs time for matrix products, for everything else (norms, activations, rotations, residual sums),
and a part of what a pack costs (gradients are added up once a pack). On a device with the peak P, these are::

    matrix products   (6 L + 2 L if layers are computed again + 0.6 x 8 H) / (0.645 P)
    everything else   layers x hidden size x c / P
    of a pack         7.9e3 x parameters / tokens of the pack / P

L are the parameters of the layers and H those of the head, which sees the 60 % of positions that are
answers, and whose forward pass is computed twice. The constants are fitted: 7.9e3 to the bytes that move (26
a parameter), 0.645 and c = 1.14e5 FLOPs to ten measurements with compiled layers, of Qwen3-1.7B and of the
8B's width with each kind of recomputation and packs of 10,496 to 31,232 tokens (docs/gpu.md). All are met
within 7 %; packs of 7,040 tokens were up to 14 % slower. Without compiled layers, c = 2.4e5, and 2.5 times
that with selective recomputation, which then waits for Python. Time is taken to follow the peak of a device,
which for other devices is a prediction. The model is ours.

`save_costs` is arithmetic alone: it follows `orchestrator.saving` and `orchestrator.sft.checkpoints`. Its
constants are ours unless a source is named.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestrator.costs import DEVICES, Hardware
from orchestrator.errors import UserError
from orchestrator.saving import HELD_FACTOR, WRITE_FACTOR
from orchestrator.sft.memory import (
    BUSY_TOKENS,
    GRAIN,
    MAX_PACK_TOKENS,
    Decoder,
    Fit,
    Load,
    Recompute,
    in_words,
    terms_gib,
    widest_pack,
)

PRODUCT_SHARE = 0.645
"""Share of the peak that the matrix products of training reach."""
COMPILED_FLOPS, FUSED_FLOPS = 1.14e5, 2.4e5
"""Cost of everything else, per layer and element of the hidden size, with and without compiled layers."""
SELECTIVE_FACTOR = 2.5
"""Factor on everything else for selective recomputation without compiled layers, of a 1.7B."""
PACK_FLOPS = 7.9e3
"""Cost of a pack per parameter."""
ANSWER_SHARE = 0.6
"""Share of the positions that the head sees."""


def cost(model: Decoder, *, recomputes: Recompute, is_compiled: bool, pack_tokens: int) -> float:
    """Return the FLOPs at the peak of a device that take as long as training on one position.

    Args:
        model: its sizes.
        recomputes: what the backward pass computes again.
        is_compiled: whether layers are compiled.
        pack_tokens: of a micro-batch.
    """
    layers = (8.0 if recomputes is True else 6.0) * model.num_layer * model.num_layers
    products = layers + 8.0 * ANSWER_SHARE * model.num_embeddings
    others = (COMPILED_FLOPS if is_compiled else FUSED_FLOPS) * model.num_layers * model.hidden_size
    if recomputes == "selective" and not is_compiled:
        others *= SELECTIVE_FACTOR
    return products / PRODUCT_SHARE + others + PACK_FLOPS * model.num_parameters / pack_tokens


def mfu(
    model: Decoder, device: str, *, recomputes: Recompute, is_compiled: bool, pack_tokens: int
) -> float | None:
    """Return the model FLOPs utilisation of training on a GPU; None for an unknown device, such as a CPU.

    It is 6 x parameters / (peak x seconds of a position). Qwen3-1.7B with compiled layers, nothing computed
    again and packs of 10,496 tokens takes 23.5 microseconds a position on an H100, an MFU of 0.44.

    Args:
        model: its sizes.
        device: a key of `orchestrator.costs.DEVICES`, or the name that the driver reports.
        recomputes, is_compiled, pack_tokens: as for `cost`.
    """
    if not any(key in device.lower() for key in DEVICES):
        return None
    taken = cost(model, recomputes=recomputes, is_compiled=is_compiled, pack_tokens=pack_tokens)
    return 6.0 * model.num_parameters / taken


def decided(
    model: Decoder,
    load: Load,
    *,
    num_gpus: int,
    memory_gib: float,
    most_tokens: int,
    least_tokens: int = 1,
    is_compiled: bool = True,
) -> Load:
    """Return the load with the recomputation that is fastest in the memory, where that is left to it.

    Full recomputation costs a quarter of the arithmetic. Selective recomputation costs nothing measurable
    with compiled layers. Without any, a micro-batch holds fewer tokens, and each one has a price of its own.

    Args:
        model: from `decoder`.
        load: how it is trained.
        num_gpus: number of processes over which the state is sharded.
        memory_gib: of one device.
        most_tokens: of a micro-batch.
        least_tokens: of a micro-batch, if its size is given.
        is_compiled: whether layers are compiled.
    """
    if load.checkpointing is not None:
        return load
    # Models that are trained on a CPU are small.
    if load.on_cpu:
        return load._replace(checkpointing=False)
    ways: tuple[Recompute, ...] = (False, "selective", True)
    # Smaller packs were not measured, and may be slower than the model has it.
    least_tokens = max(least_tokens, min(BUSY_TOKENS // 2, most_tokens))
    best, least = load._replace(checkpointing=True), float("inf")
    for how in ways:
        one = load._replace(checkpointing=how)
        tokens = widest_pack(model, one, num_gpus=num_gpus, memory_gib=memory_gib, max_tokens=most_tokens)
        if tokens is None or tokens < least_tokens // GRAIN * GRAIN:
            continue
        taken = cost(model, recomputes=how, is_compiled=is_compiled, pack_tokens=tokens)
        # Ours: a hundredth is not worth to compute more again.
        if taken < 0.99 * least:
            best, least = one, taken
    return best


@functools.lru_cache(maxsize=4096)
def fit(
    model: Decoder,
    load: Load,
    *,
    max_gpus: int,
    memory_gib: float,
    global_batch: int,
    micro_batch: int | None,
    num_gpus: int | None = None,
    micro_batch_tokens: int | None = None,
    is_compiled: bool = True,
) -> Fit | None:
    """Return the fewest GPUs of one machine (1, 2, 4, ...) that fit, with the widest micro-batch on them.

    Args:
        model: from `decoder`.
        load: how it is trained.
        max_gpus: number of GPUs that may be taken.
        memory_gib: of one device.
        global_batch: rows of an optimiser step.
        micro_batch: rows of the only one to try; None for any number of tokens.
        num_gpus: the only number to try; None for any.
        micro_batch_tokens: tokens of the only micro-batch to try, if its rows are not given; None for any.
        is_compiled: whether layers are compiled.

    Returns:
        None if nothing fits.
    """
    numbers = [num_gpus] if num_gpus else [2**power for power in range(max_gpus.bit_length())]
    # On a CPU all processes share the host's memory, so only the first number is tried.
    for number in numbers[:1] if load.on_cpu else numbers:
        share = max(1, global_batch // number)
        most = load.row_tokens * (min(micro_batch, share) if micro_batch else share)
        is_given = bool(micro_batch or micro_batch_tokens)
        if micro_batch_tokens and not micro_batch:
            # A row is never split.
            most = min(most, max(micro_batch_tokens, load.row_tokens))
        if not is_given:
            most = min(MAX_PACK_TOKENS, most)
        how: dict[str, Any] = {"num_gpus": number, "memory_gib": memory_gib}
        one = decided(
            model,
            load,
            least_tokens=most if is_given else 1,
            most_tokens=most,
            is_compiled=is_compiled,
            **how,
        )
        tokens = most if is_given else widest_pack(model, one, max_tokens=most, **how)
        if tokens is not None and number <= max_gpus:
            pack = one._replace(row_tokens=tokens)
            terms = terms_gib(model, pack, num_gpus=number, micro_batch=1, memory_gib=memory_gib)
            if sum(terms.values()) <= memory_gib:
                return Fit(number, tokens // load.row_tokens, terms, tokens, one.checkpointing or False)
    return None


def layers_compiled(cell: Mapping[str, Any]) -> bool:
    """Return whether the layers of a cell's training are compiled."""
    return cell["trainer"].get("compile") is not False and cell["trainer"]["micro_batch_size"] is None


def placed_on(cell: Mapping[str, Any], model: Decoder, hardware: Hardware) -> Fit:
    """Return the GPUs and the micro-batch for the cell's rows.

    All rows are assumed to have the maximal length, because a plan has not tokenised them.

    Raises:
        UserError: it does not fit; the message names what takes the memory.
    """
    trainer = cell["trainer"]
    load = Load(
        row_tokens=trainer["max_length_tokens"],
        checkpointing=None if (how := trainer["gradient_checkpointing"]) == "auto" else how,
        value_bytes=2 if trainer["precision"] == "bf16" else 4,
        loss_chunk_tokens=trainer.get("loss_chunk_tokens"),
        sharded=trainer.get("sharding") != "ddp",
        on_cpu=hardware.device == "cpu",
    )
    asked, tokens = trainer["micro_batch_size"], trainer.get("micro_batch_tokens")
    found = fit(
        model,
        load,
        max_gpus=hardware.max_gpus,
        memory_gib=hardware.memory_gib,
        global_batch=trainer["global_batch_size"],
        micro_batch=asked,
        micro_batch_tokens=tokens,
        num_gpus=None if load.on_cpu else trainer.get("num_processes") or hardware.num_gpus,
        is_compiled=layers_compiled(cell),
    )
    if found is not None:
        return found
    if not load.on_cpu and (trainer.get("num_processes") or 0) > hardware.max_gpus:
        raise UserError(
            f"trainer.num_processes={trainer['num_processes']}, but a cell may have {hardware.max_gpus} GPUs",
            fix="--max-gpus, or launcher.gpus_per_worker",
        )
    # Nothing fits. The message describes the attempt with the most GPUs and the smallest micro-batch.
    most = 2 ** (hardware.max_gpus.bit_length() - 1)
    num_gpus = 1 if load.on_cpu else trainer.get("num_processes") or most
    size = min(
        asked or -(-(tokens or 1) // load.row_tokens), max(1, trainer["global_batch_size"] // num_gpus)
    )
    terms = terms_gib(model, load, num_gpus=num_gpus, micro_batch=size, memory_gib=hardware.memory_gib)
    total_gib = sum(terms.values())
    place = "this host" if load.on_cpu else f"{num_gpus} x {hardware.device}"
    key = "micro_batch_size" if asked else "micro_batch_tokens"
    smaller = f"trainer.{key}=null, or " if size > 1 else ""
    raise UserError(
        f"{cell['model']['name']} does not fit on {place}: {total_gib:.1f} GiB are needed,"
        f" {hardware.memory_gib:.1f} GiB are there" + ("" if load.on_cpu else " on each"),
        where=f"training with a micro-batch of {size} and rows of {load.row_tokens:,} tokens",
        allowed=in_words(terms),
        fix=f"{smaller}more or larger devices",
    )


GB = 1e9
STATE_BYTES = 12
"""Bytes per parameter of a checkpoint: weight and Adam's two moments, all in fp32."""
DISK_GB_S = 1.0
"""Bandwidth of the disk, in GB/s, unless another one is given."""
INTERVAL_S = 60.0
"""Least seconds between two checkpoints, by default (`policy.checkpoint_interval_s`)."""
COPY_GB_S = 20.0
"""Bandwidth from a GPU to pinned host memory, in GB/s: somewhat less than PCIe 4.0 x16 gives."""
COPY_MARGIN = 1.5
"""Factor on the copy in host memory, because PyTorch rounds pinned blocks up to powers of two."""


class SaveCosts(NamedTuple):
    """What saving costs one training.

    Attributes:
        state_gb: size of a checkpoint to resume from.
        weights_gb: size of one epoch's weights.
        interval_s: seconds between two checkpoints.
        lost_s: seconds of work that a killed attempt may lose: an interval, and the time of writing.
        held_s: seconds in which the whole training waits for weights, states, hashing and fsync.
        share: these seconds divided by the wall time with them.
        stop_s: seconds that a stop may take: a step, a checkpoint that is being written, and the last one.
    """

    state_gb: float
    weights_gb: float
    interval_s: float
    lost_s: float
    held_s: float
    share: float
    stop_s: float


def state_seconds(num_parameters: int, disk_gb_s: float = DISK_GB_S) -> float:
    """Return the seconds of writing a checkpoint. Files are hashed while they are written."""
    return STATE_BYTES * num_parameters / GB / disk_gb_s


def save_costs(
    num_parameters: int,
    *,
    weight_bytes: int,
    num_gpus: int,
    step_s: float,
    num_steps: int,
    num_epochs: int,
    disk_gb_s: float = DISK_GB_S,
    is_copied: bool = True,
    interval_s: float = INTERVAL_S,
    validation_s: float = 0.0,
) -> SaveCosts:
    """Return what saving costs a training that is not interrupted.

    For example, 8.2 billion parameters on four GPUs have a state of 98 GB. Copying it holds the training up
    for 1.2 s, and writing it takes 98 s at 1 GB/s. The interval is 4 x 98 = 393 s. With steps of 26 s, 36 of
    them and 6 epochs, the training waits 2 x 1.2 s for states, 6 x 0.8 s for copies of 16 GB of weights, and
    16 s for the last weights to be written: 24 s of 960, or 2.5 %. Pinned memory is taken to be allocated
    before the first copy.

    Args:
        num_parameters: of the model.
        weight_bytes: bytes per parameter of an epoch's weights.
        num_gpus: which write the state together.
        step_s: seconds of an optimiser step.
        num_steps: of all epochs.
        num_epochs: whose weights are saved.
        disk_gb_s: bandwidth of the disk for all processes together.
        is_copied: whether the host has room for a copy of the state; otherwise all wait while it is written.
        interval_s: configured least interval.
        validation_s: seconds of the validation after an epoch, while its weights are written.
    """
    state_gb, weights_gb = (size * num_parameters / GB for size in (STATE_BYTES, weight_bytes))
    write_s = state_gb / disk_gb_s
    held_s = state_gb / num_gpus / COPY_GB_S if is_copied else write_s
    interval_s = max(interval_s, HELD_FACTOR * held_s, WRITE_FACTOR * write_s)
    # Rank 0 alone gathers and copies the weights of an epoch.
    weights_s, copy_s = weights_gb / disk_gb_s, weights_gb / COPY_GB_S
    training_s = num_steps * step_s
    # Near the end no state is saved, see `Checkpoints.is_due`.
    saving_s = training_s - max(write_s, HELD_FACTOR * held_s)
    # The weights of an epoch wait for those of the one before, if an epoch is shorter than writing them.
    behind_s = max(0.0, weights_s - training_s / num_epochs)
    # The last weights have only their validation to hide behind.
    all_s = max(0, int(saving_s / interval_s)) * held_s + num_epochs * copy_s + (num_epochs - 1) * behind_s
    all_s += max(0.0, weights_s - validation_s)
    return SaveCosts(
        state_gb=state_gb,
        weights_gb=weights_gb,
        interval_s=interval_s,
        lost_s=interval_s + (write_s if is_copied else 0.0),
        held_s=all_s,
        share=all_s / (training_s + all_s),
        stop_s=step_s + (2 if is_copied else 1) * write_s,
    )
