"""Kernels for a model in training: attention over packed rows, fused norms and compiled layers.

Packed rows are several rows in one sequence, none of which sees another. Transformers' models look up their
attention function by a name in their config. `enable` puts the name of `_attend` there. Where rows begin
comes with each call, in the keywords that transformers has for it.

On CUDA in 16 bits the kernel is `torch.nn.attention.varlen.varlen_attn`, which reads the rows' boundaries
from a tensor. So its shapes are the same for every pack of a width. Anywhere else, each row is computed on
its own by `scaled_dot_product_attention`: no position is wasted, and a CPU needs no fixed shapes.

Fused norms and compiled layers change how numbers are rounded, not what is computed. They are for GPUs.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import AttentionInterface

from orchestrator.errors import StageFailure

T = TypeVar("T")
NAME = "packed_rows"
"""Name of this attention in a model's config. Only configs in memory ever hold it."""

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn

    _PARAMETERS = tuple(inspect.signature(varlen_attn).parameters)
except ImportError:  # torch before 2.10
    varlen_attn, _PARAMETERS = None, ()
_OPTIONS = frozenset(_PARAMETERS)
"""What the installed kernel can do: `window_size`: sliding windows; `enable_gqa`: fewer key heads."""


def has_kernel(decoder: nn.Module, device: torch.device, *, bf16: bool) -> bool:
    """Return whether the installed kernel can compute packed rows of a model, its sliding windows included.

    Args:
        decoder: the model's decoder.
        device: where to compute.
        bf16: whether in 16 bits.
    """
    windows = any(getattr(config, "sliding_window", None) for config in _configs(decoder))
    can = varlen_attn is not None and ("window_size" in _OPTIONS or not windows)
    return device.type == "cuda" and bf16 and can


@contextlib.contextmanager
def enabled(decoder: nn.Module) -> Iterator[None]:
    """Use this attention within a context; see `enable`."""
    before = [(config, config._attn_implementation) for config in _configs(decoder)]
    enable(decoder)
    try:
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def enable(decoder: nn.Module) -> None:
    """Let all layers of a decoder compute attention by this module.

    Transformers makes no masks for it: `_attend` makes what it needs from lengths and windows.
    """
    for config in _configs(decoder):
        config._attn_implementation = NAME


def _configs(decoder: nn.Module) -> list[Any]:
    """Return the configs in which the layers of a decoder look up their attention."""
    found = {
        id(config): config for module in decoder.modules() if (config := getattr(module, "config", None))
    }
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    row_lengths: tuple[int, ...] | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention of packed rows, or of rows side by side; transformers defines the signature.

    Args:
        module: the attention layer.
        query: batch x heads x tokens x head size; `key` and `value` may have fewer heads.
        attention_mask: None, because `enable` prevents masks.
        dropout: share of dropped probabilities.
        scaling: factor of the scores.
        sliding_window: how many tokens a token sees, itself included; None for all earlier ones.
        cu_seq_lens_q: where each row begins, then the width of the pack; None if the kernel is not used.
        max_length_q: most tokens of a row.
        row_lengths: tokens of each row of the pack, padding included, if the kernel is not used.
        others: what other attention functions may need.

    Returns:
        The result, batch x tokens x heads x head size, and no probabilities.
    """
    window = sliding_window if sliding_window is not None and sliding_window > 0 else None
    if cu_seq_lens_q is not None and max_length_q is not None:
        return _by_kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling, window), None
    by_row = functools.partial(_causal, dropout=dropout, scaling=scaling, window=window)
    if row_lengths is None:
        return by_row(query, key, value).transpose(1, 2).contiguous(), None
    rows = zip(
        *(torch.split(tensor, list(row_lengths), dim=2) for tensor in (query, key, value)), strict=True
    )
    return torch.cat([by_row(*row).transpose(1, 2) for row in rows], dim=1), None


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return the attention of one pack by torch's kernel for sequences of different lengths."""
    groups = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {}
    if groups > 1 and "enable_gqa" in _OPTIONS:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    if "window_size" in _OPTIONS:
        # The kernel counts the tokens before a token that it sees, models count the token itself too.
        options["window_size"] = (window - 1 if window else -1, 0)
    else:
        options["is_causal"] = True
    # The kernel does not take part in autocast, and norms before it may have returned 32 bits.
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    flat = [tensor[0].transpose(0, 1).to(dtype).contiguous() for tensor in (query, key, value)]
    result: torch.Tensor = varlen_attn(*flat, ends, ends, longest, longest, scale=scaling, **options)
    return result[None]


def _causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return the causal attention of rows of one length, batch x heads x tokens x head size."""
    tokens = query.shape[2]
    has_window = window is not None and window < tokens
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_band(tokens, window, query.device) if has_window else None,
        dropout_p=dropout,
        is_causal=not has_window and tokens > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _band(tokens: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which tokens each token sees: itself and those before it within the window."""
    place = torch.arange(tokens, device=device)
    distance = place[:, None] - place[None]
    return (distance >= 0) & (distance < (window or tokens))


AttentionInterface.register(NAME, _attend)


_PRODUCTS = (
    *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm"),
    *("aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu"),
    *("aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention"),
    "torch_attn::_varlen_attn",
)
"""Operators whose results selective recomputation keeps: matrix products, and attention."""


def keeping_products() -> Any:
    """Return the contexts with which `torch.utils.checkpoint` keeps the results of products and attention."""
    return create_selective_checkpoint_contexts(_kept)  # type: ignore[no-untyped-call]


def _kept(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    is_product = getattr(operator, "_schema", None) is not None and operator._schema.name in _PRODUCTS
    return CheckpointPolicy.MUST_SAVE if is_product else CheckpointPolicy.PREFER_RECOMPUTE


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
    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if change is not None:
        change("expandable_segments:True")
        # Pages of host memory are touched by several threads, outside of the driver's lock.
        with contextlib.suppress(RuntimeError, ValueError):  # other names in another version
            change(
                "expandable_segments:True,pinned_use_cuda_host_register:True,pinned_num_register_threads:8"
            )
    # Compiled kernels outlast a job, whose /tmp may be its own, and serve all cells.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "polysweep", "inductor")
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))


def lacks_deterministic(error: Exception) -> bool:
    """Return whether an error means that an operator has no kernel that repeats."""
    return "does not have a deterministic implementation" in str(error)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch use only kernels that repeat bit for bit, within a context. An operator without one fails.

    Attention's backward pass then adds up in a fixed order, in `varlen_attn` too. Sums of several processes
    are as fixed as NCCL makes them: it chooses by the machines and sizes, not by time.

    Args:
        wanted: False to change nothing.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        # Read once, before the first matrix product: cuBLAS then uses no workspace of another stream.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # It would fill each new tensor with a value, to show reads of uninitialised memory.
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - not typed
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def repeating(action: Callable[[], T], wanted: bool | str) -> T:
    """Return an action's result, computed by kernels that repeat bit for bit.

    Args:
        action: it may be called twice.
        wanted: ``auto`` for other kernels if an operator has none that repeats. It fails at its first use.
    """
    is_first = wanted is not False
    while True:
        try:
            with deterministic(is_first):
                return action()
        except (RuntimeError, StageFailure) as error:
            if wanted != "auto" or not is_first or not lacks_deterministic(error):
                raise
            print(f"trainer.deterministic=auto: {error}", flush=True)
        # Not within `except`: the error holds the tensors of the first call.
        is_first = False
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
    except Exception:  # noqa: BLE001 - other arguments, or other buffers: not a plain norm
        return None
    if not isinstance(result, torch.Tensor) or result.shape != x.shape:
        return None
    expected = {offset: functional.rms_norm(x, (width,), weight + offset, eps) for offset in (0, 1)}
    return next(
        (n for n, norm in expected.items() if torch.allclose(result, norm, rtol=1e-4, atol=1e-5)), None
    )


def compile_layers(layers: nn.ModuleList, *, backend: str = "inductor") -> None:
    """Compile the forward pass of each layer, once for each width of pack.

    Only `forward` is compiled. What gathers weights or computes again before and after it stays outside.
    Layers of one class share their compiled code.
    """
    torch._dynamo.config.recompile_limit = max(_SHAPES, torch._dynamo.config.recompile_limit)
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False, backend=backend)
