"""Memory of full fine-tuning on one device: parameters, state, activations and logits, and what fits.

The module is arithmetic alone, without config, plan or torch. A plan calls it before anything runs. The
`train` stage calls the same functions to choose its micro-batch. So a plan and a run use the same
arithmetic. The formulas follow section 5 of the study, unless marked as ours.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from orchestrator.errors import StageFailure

GIB = 2**30
STATE_BYTES = 16
"""Bytes per parameter: master weight, gradient and Adam's two moments, all in fp32."""
LOGIT_BYTES = 14
"""Bytes per logit: the value in bf16 and fp32, and the gradients of both, that of the softmax included."""
MAX_PACK_TOKENS = 32_768
"""Ours: the widest micro-batch. Wider ones are no faster: a GPU is busy with a few thousand tokens."""
BUSY_TOKENS = 8_192
"""Ours: tokens of a micro-batch that keep a GPU busy.

On an H200, 16 and 64 rows of 480 tokens were equally fast (docs/gpu.md).
"""
GRAIN = 128
"""Ours: tokens of which the width of a pack is a multiple."""
CUDA_GIB, SPARE_SHARE = 2.0, 0.10
"""Ours: memory that CUDA and NCCL take, and the share of a device that is lost to fragmentation."""
HOST_GIB = 0.5
"""Ours: memory of the libraries of one process on a CPU."""
HOST_BYTES, GPU_HOST_GIB = 4, 4.0
"""Ours: host memory of a GPU job: bytes per parameter during loading and saving, and GiB per process."""


SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "tied": "tie_word_embeddings",
}
"""Sizes of a decoder: their names in `model.architecture`, and in a transformers config."""


class Decoder(NamedTuple):
    """Sizes of a decoder on which its cost depends."""

    num_parameters: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool

    @property
    def num_embeddings(self) -> int:
        """Parameters of the input embeddings. Gradient checkpointing never computes them again."""
        return self.vocab_size * self.hidden_size

    @property
    def num_unlayered(self) -> int:
        """Parameters outside the layers, mostly embeddings and head. FSDP gathers them as one unit."""
        return self.num_embeddings * (1 if self.tied else 2)

    @property
    def num_layer(self) -> int:
        """Parameters of one layer."""
        return (self.num_parameters - self.num_unlayered) // self.num_layers


Recompute = bool | Literal["selective"]
"""What the backward pass computes again of each layer: all, nothing, or all but its matrix products.

Selective recomputation keeps the results of matrix products and of attention, which take the time, and
computes norms, rotations and activations again, which take half of the memory (Korthikanti et al. 2022,
arXiv 2205.05198, section 5, which computes attention again instead).
"""


class Load(NamedTuple):
    """How a model is trained, as far as memory depends on it.

    Attributes:
        row_tokens: tokens of the longest row.
        checkpointing: what the backward pass computes again; None for what `decided` finds.
        value_bytes: bytes of an activation: 2 in bf16, 4 in fp32.
        loss_chunk_tokens: number of tokens whose logits exist at a time; None for all of a micro-batch.
        sharded: whether GPUs share the state (FSDP, also of one GPU), or each holds all of it (DDP).
        on_cpu: whether host memory is used: no CUDA, and processes that do not share their state.
    """

    row_tokens: int
    checkpointing: Recompute | None = True
    value_bytes: int = 2
    loss_chunk_tokens: int | None = None
    sharded: bool = True
    on_cpu: bool = False


class Fit(NamedTuple):
    """Number of GPUs and micro-batch that fit, with the memory that they take.

    Attributes:
        num_gpus: over which the state is sharded.
        micro_batch: rows of the maximal length in a micro-batch; a pack has more of usual length.
        terms_gib: see `terms_gib`.
        tokens: of a micro-batch.
        checkpointing: what the backward pass computes again.
    """

    num_gpus: int
    micro_batch: int
    terms_gib: Mapping[str, float]
    tokens: int
    checkpointing: Recompute

    @property
    def memory_gib(self) -> float:
        """Peak memory of one device."""
        return sum(self.terms_gib.values())


def num_parameters(architecture: Mapping[str, Any], family: str | None) -> int:
    """Return the number of parameters of a decoder, exact for Qwen3 and Gemma3.

    Both normalise the queries and keys of each head. A layer of Gemma3 has four norms, other layers have two.
    """
    hidden, head = architecture["hidden_size"], architecture["head_dim"]
    is_gemma3, is_qwen3 = (str(family).startswith(name) for name in ("gemma3", "qwen3"))
    attention = 2 * hidden * head * (architecture["num_heads"] + architecture["num_kv_heads"])
    head_norms = 2 * head if is_gemma3 or is_qwen3 else 0
    mlp = 3 * hidden * architecture["intermediate_size"]
    norms = hidden * (4 if is_gemma3 else 2)
    tables = architecture["vocab_size"] * hidden * (1 if architecture["tied"] else 2)
    layer: int = attention + head_norms + mlp + norms
    return int(tables + architecture["num_layers"] * layer + hidden)


def decoder(architecture: Mapping[str, Any], family: str | None) -> Decoder:
    """Return the sizes of a model from `model.architecture` and `model.family` of the config."""
    sizes = {name: architecture[name] for name in Decoder._fields if name != "num_parameters"}
    return Decoder(num_parameters=num_parameters(architecture, family), **sizes)


@functools.lru_cache(maxsize=4096)
def terms_gib(
    model: Decoder, load: Load, *, num_gpus: int, micro_batch: int, memory_gib: float
) -> Mapping[str, float]:
    """Return what one device holds at the peak of a training step, in GiB, by term.

    - ``state``: weights, gradients and moments, divided by the GPUs if sharded.
    - ``weights``: the copies in use (ours). Unsharded with bf16, all weights in bf16. With FSDP,
      embeddings, head and two layers: gathered in bf16, with fp32 gradients; on one GPU all layers in bf16.
    - ``activations``: the input of each layer, with selective checkpointing also the results of its matrix
      products and attention; without checkpointing, all values of each layer.
    - ``layer``: values and gradients of the one layer that is being computed (ours).
    - ``logits``: of one chunk of the loss.
    - ``reserve``: what no tensor can use.

    For example, the state of 1 billion parameters takes 14.9 GiB on one GPU, or 3.7 GiB on each of four.
    """
    tokens = micro_batch * load.row_tokens
    sharded = load.sharded and not load.on_cpu
    if sharded:
        # 2 bytes of a gathered bf16 weight, and 4 of its fp32 gradient before it is reduced.
        copies = 6 * (model.num_unlayered + 2 * model.num_layer)
        if num_gpus == 1:
            # All layers stay cast until the step ends.
            copies += 2 * (model.num_layers - 2) * model.num_layer
    else:
        copies = 2 * model.num_parameters if load.value_bytes == 2 else 0
    layer = tokens * load.value_bytes * _layer_values(model)
    if load.checkpointing is False:
        kept = model.num_layers * layer
    else:
        values = _product_values(model) if load.checkpointing == "selective" else 0
        kept = model.num_layers * tokens * (model.hidden_size + values) * load.value_bytes
    logits = LOGIT_BYTES * model.vocab_size * min(tokens, load.loss_chunk_tokens or tokens)
    return {
        "state": STATE_BYTES * model.num_parameters / (num_gpus if sharded else 1) / GIB,
        "weights": copies / GIB,
        "activations": kept / GIB,
        "layer": 2 * layer / GIB,  # the values, and their gradients
        "logits": logits / GIB,
        "reserve": reserve_gib(memory_gib, on_cpu=load.on_cpu),
    }


def reserve_gib(memory_gib: float, *, on_cpu: bool) -> float:
    """Return the part of a device's memory that no tensor can use, in GiB."""
    return HOST_GIB if on_cpu else CUDA_GIB + SPARE_SHARE * memory_gib


def _layer_values(model: Decoder) -> int:
    """Return how many values a layer holds per token.

    These are the MLP's input and products, queries, keys, values and norms.
    """
    attention = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    return 4 * model.intermediate_size + attention + 8 * model.hidden_size


def _product_values(model: Decoder) -> int:
    """Return how many values the matrix products and the attention of a layer make per token.

    These are queries, keys, values, the attention's result, gate, up and the results of two projections.
    """
    attention = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    return 2 * model.intermediate_size + attention + 2 * model.hidden_size


def widest_pack(
    model: Decoder, load: Load, *, num_gpus: int, memory_gib: float, max_tokens: int = MAX_PACK_TOKENS
) -> int | None:
    """Return the tokens of the widest micro-batch that fits; None if the longest row does not.

    The `train` stage calls it with its longest row and its device's actual memory. The result is a function
    of the arguments. A search by trial and error would depend on what else uses the GPU at that moment.

    Args:
        model: from `decoder`.
        load: how it is trained.
        num_gpus: number of processes over which the state is sharded.
        memory_gib: of one device.
        max_tokens: most tokens to try, unless a row is longer.
    """

    def fits(tokens: int) -> bool:
        one = load._replace(row_tokens=tokens)
        terms = terms_gib(model, one, num_gpus=num_gpus, micro_batch=1, memory_gib=memory_gib)
        return sum(terms.values()) <= memory_gib

    if not fits(load.row_tokens):
        return None
    # Bisection over multiples: `low` of them fit, `high` do not.
    low, high = load.row_tokens // GRAIN, max_tokens // GRAIN + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * GRAIN) else (low, middle)
    return max(load.row_tokens, low * GRAIN)


def sizes_of(model: Any) -> Any:
    """Return the sizes of a model.

    Raises:
        StageFailure: its config lacks one (cause ``config``).
    """
    text = model.config.get_text_config()
    sizes = {ours: getattr(text, theirs, None) for ours, theirs in SIZES.items()}
    if unknown := [SIZES[name] for name, size in sizes.items() if size is None]:
        what = f"config.json of a {text.model_type} has no {', '.join(unknown)} to reckon memory with"
        raise StageFailure("config", f"{what}: set trainer.micro_batch_tokens")
    return decoder(sizes, text.model_type)


def generation_gib(model: Decoder, evaluation: Mapping[str, Any], item_tokens: float) -> dict[str, float]:
    """Return the memory of generation in GiB, by term: weights, and the cache of keys and values of a batch.

    Each row of the batch is a mean item with an answer as long as it may become. vLLM takes as many rows as
    fit, so that one is enough.

    Args:
        model: its sizes.
        evaluation: the section of the config.
        item_tokens: of a mean item.
    """
    value_bytes = 2 if evaluation["precision"] == "bf16" else 4
    num_rows = 1 if evaluation.get("engine") == "vllm" else evaluation["batch_size"]
    tokens = num_rows * (item_tokens + evaluation["max_new_tokens"])
    cache = 2 * model.num_layers * model.num_kv_heads * model.head_dim * value_bytes * tokens
    return {"weights": value_bytes * model.num_parameters / GIB, "cache": cache / GIB}


def in_words(terms: Mapping[str, float]) -> str:
    """Return the terms of memory as a text, the largest first."""
    parts = sorted(terms.items(), key=lambda term: -term[1])
    return " + ".join(f"{name} {gib:.1f}" for name, gib in parts if gib >= 0.05) + " GiB"
