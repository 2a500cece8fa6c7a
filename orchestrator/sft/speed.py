"""Speed of training by device: a model of the utilisation, fitted to measurements (docs/gpu.md).

A token costs time for matrix products, and time for everything else: norms, activations, rotations, residual
sums. The first part is limited by arithmetic, the second by the bandwidth of the GPU's memory::

    matrix products   (6 N + 2 L if layers are computed again) / (0.8 x peak)
    everything else   layers x hidden size x bytes / bandwidth

N are all parameters and L those of the layers. The share of the peak is what a large matrix product reaches
on an H200: 795 of 989 TFLOP/s. The bytes are fitted to three measurements there: 2,440 with a fused norm
(within 6 % for Qwen3-1.7B and the width of Qwen3-8B), 1,110 with compiled layers (Qwen3-1.7B). The model is
ours.
"""

from __future__ import annotations

from orchestrator.costs import DEVICES
from orchestrator.sft.memory import Decoder

PEAK_SHARE = 0.8
"""Share of the peak that large matrix products reach."""
COMPILED_BYTES, FUSED_BYTES = 1110.0, 2440.0
"""Bytes that a token moves per layer and per element of the hidden size, with and without compiled layers."""
USEFUL_SHARE = 0.95
"""Lowest share of computed positions that are real tokens, where rows are packed."""


def mfu(model: Decoder, device: str, *, recomputes: bool, is_compiled: bool) -> float | None:
    """Return the model FLOPs utilisation of training on a device; None for an unknown one, such as a CPU.

    On an H200, Qwen3-1.7B with recomputation and compiled layers takes 16.5 + 13.3 microseconds a token. That
    is an MFU of 0.35. On an A100, whose memory is fast relative to its arithmetic, it is 0.39.

    Args:
        model: its sizes.
        device: a key of `orchestrator.costs.DEVICES`, or the name that the driver reports.
        recomputes: whether layers are computed again in the backward pass.
        is_compiled: whether layers are compiled.
    """
    known = [found for key, found in DEVICES.items() if key in device.lower()]
    if not known:
        return None
    peak, bandwidth = known[-1].peak_tflops * 1e12, known[-1].bandwidth_tb_s * 1e12
    flops = 6.0 * model.num_parameters
    again = 2.0 * model.num_layer * model.num_layers if recomputes else 0.0
    moved = (COMPILED_BYTES if is_compiled else FUSED_BYTES) * model.num_layers * model.hidden_size
    return flops / peak / ((flops + again) / (PEAK_SHARE * peak) + moved / bandwidth)
