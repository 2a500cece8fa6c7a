"""Speed of training: a model of the utilisation, fitted to measurements on an H100 and an H200 (docs/gpu.md).

A token costs time for matrix products, and time for everything else: norms, activations, rotations, residual
sums. On a device with the peak P, these are::

    matrix products   (6 L + 2 L if layers are computed again + 0.6 x 8 H) / (0.55 P)
    everything else   layers x hidden size x c / P

L are the parameters of the layers and H those of the head, which sees the 60 % of positions that are
answers, and whose forward pass is computed twice. The constants are fitted: 0.55, and c = 1.26e5 FLOPs with
compiled layers, for Qwen3-1.7B and the width of Qwen3-8B with and without recomputation; c = 3.8e5 FLOPs with
fused norms alone. All six measurements are met within 8 %. Both devices were equally fast, although the
memory of one is 1.4 times as fast. So time is taken to follow the peak of a device, which for other devices
is a prediction. The model is ours.
"""

from __future__ import annotations

from orchestrator.costs import DEVICES
from orchestrator.sft.memory import Decoder, Recompute

PRODUCT_SHARE = 0.55
"""Share of the peak that the matrix products of training reach."""
COMPILED_FLOPS, FUSED_FLOPS = 1.26e5, 3.8e5
"""Cost of everything else, per layer and element of the hidden size, with and without compiled layers."""
SELECTIVE_FACTOR = 4 / 3
"""Ours, not measured: selective recomputation repeats the forward pass, a third of everything else."""
ANSWER_SHARE = 0.6
"""Share of the positions that the head sees."""


def mfu(model: Decoder, device: str, *, recomputes: Recompute, is_compiled: bool) -> float | None:
    """Return the model FLOPs utilisation of training on a GPU; None for an unknown device, such as a CPU.

    It is 6 x parameters / (peak x seconds of a token). Qwen3-1.7B without recomputation and with compiled
    layers takes 25.6 microseconds a token on an H100, which is an MFU of 0.41.

    Args:
        model: its sizes.
        device: a key of `orchestrator.costs.DEVICES`, or the name that the driver reports.
        recomputes: what the backward pass computes again.
        is_compiled: whether layers are compiled.
    """
    if not any(key in device.lower() for key in DEVICES):
        return None
    layers = (8.0 if recomputes is True else 6.0) * model.num_layer * model.num_layers
    products = layers + 8.0 * ANSWER_SHARE * model.num_embeddings
    others = (COMPILED_FLOPS if is_compiled else FUSED_FLOPS) * model.num_layers * model.hidden_size
    if recomputes == "selective":
        others *= SELECTIVE_FACTOR
    return 6.0 * model.num_parameters / (products / PRODUCT_SHARE + others)
