"""Cost of saving a training: sizes of files, interval, share of the wall time, and seconds of a stop.

The module is arithmetic alone, without config, plan or torch. A plan calls it before anything runs; it
follows `orchestrator.saving` and `orchestrator.sft.saver`. All constants are ours unless a source is named.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.saving import HELD_FACTOR, WRITE_FACTOR

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
