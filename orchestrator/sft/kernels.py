"""Faster kernels for a model on a GPU: one kernel for a norm, and compiled layers.

Neither changes what is computed, only how it is rounded. Both are chosen before the first step.
"""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_EPS = ("variance_epsilon", "eps", "epsilon", "norm_eps")
"""Names that models give to the small number in a norm."""
_SHAPES = 64
"""How often a layer may be compiled: for each width, with and without gradients, for each kind of layer."""


def prepare() -> None:
    """Set what torch needs on a GPU before it allocates or compiles anything.

    cuDNN builds a plan of attention for every new shape, which takes a fifth of a second each. Segments that
    can grow prevent that memory is lost between tensors of different sizes.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if hasattr(torch.cuda.memory, "_set_allocator_settings"):
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    # Compiled kernels are shared by all cells of a machine: without a folder, each user's are in /tmp.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "polysweep", "inductor")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))


def fuse_norms(model: nn.Module) -> int:
    """Let each root-mean-square norm of a model compute by torch's kernel. Return how many there are.

    Models implement the norm in several passes over memory. What a class computes is found by its results for
    random numbers: a product with the weight, or with 1 + weight (Gemma). Other classes stay as they are.
    """
    fused: dict[tuple[str, float], Any] = {}
    number = 0
    for module in list(model.modules()):
        eps = next((name for name in _EPS if isinstance(getattr(module, name, None), float)), None)
        parameters = dict(module.named_parameters(recurse=False))
        if eps is None or set(parameters) != {"weight"} or parameters["weight"].ndim != 1:
            continue
        kind: Any = type(module)
        key = (f"{kind.__module__}.{kind.__qualname__}", getattr(module, eps))
        if key not in fused:
            offset = _offset(module, getattr(module, eps))
            fused[key] = None if offset is None else _fused(kind, eps, offset)
        if fused[key] is not None:
            module.__class__ = fused[key]
            number += 1
    return number


@functools.cache
def _fused(kind: Any, eps: str, offset: int) -> Any:
    """Return a norm's class with another `forward`.

    One class serves all norms: compiled code that depends on objects would not be shared by layers.
    """

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if offset:
            # In 16 bits 1 + weight would lose the weight's last digits; models add in 32 bits too.
            normed = functional.rms_norm(x.float(), weight.shape, weight.float() + offset, getattr(self, eps))
            return normed.type_as(x)
        return functional.rms_norm(x, weight.shape, weight.to(x.dtype), getattr(self, eps))

    return type(f"Fused{kind.__name__}", (kind,), {"forward": forward})


@torch.no_grad()
def _offset(module: nn.Module, eps: float) -> int | None:
    """Return what a norm adds to its weight, 0 or 1; None if it computes something else."""
    generator = torch.Generator().manual_seed(0)
    width = len(module.weight)  # type: ignore[arg-type]
    x, weight = torch.randn(3, 5, width, generator=generator), torch.randn(width, generator=generator)
    probe = copy.copy(module)
    probe._parameters = {"weight": nn.Parameter(weight)}
    try:
        result = probe(x)
    except Exception:  # other arguments, or other buffers: not a plain norm
        return None
    for offset in (0, 1):
        expected = functional.rms_norm(x, (width,), weight + offset, eps)
        if isinstance(result, torch.Tensor) and result.shape == x.shape:
            if torch.allclose(result, expected, rtol=1e-4, atol=1e-5):
                return offset
    return None


def compile_layers(layers: nn.ModuleList, *, backend: str = "inductor") -> None:
    """Compile the forward pass of each layer, once for each width of pack.

    Only `forward` is compiled. What gathers weights or computes again before and after it stays outside.
    Layers of one class share their compiled code.
    """
    torch._dynamo.config.recompile_limit = max(_SHAPES, torch._dynamo.config.recompile_limit)
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False, backend=backend)
