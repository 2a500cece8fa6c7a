"""Models and rows of the study's sizes, with random weights and tokens, and the loop that trains them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from gpu.one_pass import ROOT, Pass
from orchestrator.sft import batches
from orchestrator.sft.batches import MicroBatches
from orchestrator.sft.config import TrainerConfig
from orchestrator.sft.distributed.parallel import Placed
from orchestrator.sft.memory import SIZES, Decoder, decoder
from orchestrator.sft.shards import Example, Rows
from orchestrator.sft.train import Training
from orchestrator.sft.workload import CostsConfig
from orchestrator.stage import Config, Context

TINY = {"qwen3": "tiny-qwen3", "gemma3": "tiny-gemma3"}
"""The model of each family that stands in for the real ones on a CPU."""
MEAN_TOKENS, LONGEST_TOKENS = 480, 2048
"""Length of the study's rows over all languages (log-normal, sigma 0.5), and the longest that it keeps."""


def read_config(path: str) -> Any:
    """Return a file of the product's `conf/` as plain values."""
    return yaml.safe_load((ROOT / "conf" / path).read_text(encoding="utf-8"))


def costs() -> CostsConfig:
    """Return the assumptions of the product's plans."""
    return msgspec.convert(read_config("costs/study.yaml"), CostsConfig)


class Size:
    """A model of `conf/model/`, as its sizes.

    Attributes:
        decoder: its sizes, as the product's memory terms take them.
        family: qwen3 or gemma3.

    Args:
        name: file in `conf/model/`.
        small: take the tiny model of the family instead.
        layers: number of layers; None for all.
    """

    def __init__(self, name: str, *, small: bool = False, layers: int | None = None) -> None:
        found = read_config(f"model/{name}.yaml")
        self.family: str = found["family"].partition("_")[0]
        if small:
            found = read_config(f"model/{TINY[self.family]}.yaml")
        sizes = dict(found["architecture"])
        sizes["num_layers"] = min(sizes["num_layers"], layers or sizes["num_layers"])
        self.decoder: Decoder = decoder(sizes, self.family)

    def build(self, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Return the model with random weights on a device."""
        sizes = {theirs: getattr(self.decoder, ours) for ours, theirs in SIZES.items()}
        sizes |= {"max_position_embeddings": LONGEST_TOKENS * 2, "pad_token_id": 0, "eos_token_id": 1}
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        torch.manual_seed(0)
        try:
            with torch.device(device):
                if self.family == "gemma3":
                    return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, sliding_window=512))
                return Qwen3ForCausalLM(Qwen3Config(**sizes))
        finally:
            torch.set_default_dtype(before)


def rows_of(size: Size, num: int, *, small: bool, width: int | None = None, seed: int = 0) -> list[Example]:
    """Return rows of random tokens, of one width or of the study's lengths; 40 % of each is the prompt."""
    random = np.random.default_rng(seed)
    mean, longest = (MEAN_TOKENS // 12, LONGEST_TOKENS // 10) if small else (MEAN_TOKENS, LONGEST_TOKENS)
    lengths = np.clip(np.exp(random.normal(np.log(mean) - 0.125, 0.5, num)), 16, longest).astype(int)
    if width is not None:
        lengths = np.full(num, width)
    return [
        Example("train", str(k), int(n * 0.4), random.integers(2, size.decoder.vocab_size, n))
        for k, n in enumerate(lengths)
    ]


def placed(
    one: Pass, size: Size, *, bf16: bool = True, recompute: bool = True, sharding: str = "ddp"
) -> Placed:
    """Return a model as the training stage places it in one process."""
    return Placed(
        lambda: size.build(one.device),
        device=one.device,
        sharding=sharding,
        bf16=bf16,
        gradient_checkpointing=recompute,
        chunk_tokens=1024,
    )


def training(
    one: Pass, model: Placed, rows: Rows, *, micro: MicroBatches, precision: str = "bf16"
) -> Training:
    """Return the product's training loop over some rows, by the study's settings, one step an epoch."""
    settings = _settings(rows, precision=precision)
    return Training(
        model,
        rows=rows,
        validation=rows,
        settings=Config({"seed": 0, "trainer": settings}),
        context=Context(Path(tempfile.mkdtemp(dir=one.scratch))),
        micro=micro,
    )


def choose(
    model: Placed, rows: Rows, *, precision: str = "bf16", num_epochs: int = 1, **uses: Any
) -> batches.Chosen:
    """Let the product choose micro-batches and kernels for a model, and change the model accordingly.

    Args:
        model: placed without recomputation.
        rows: of one step.
        precision: bf16 or fp32.
        num_epochs: how often the rows are trained on, for the decision on compiling.
        uses: settings of `trainer` other than those of the study.
    """
    settings = _settings(rows, precision=precision, num_epochs=num_epochs, **uses)
    return batches.choose(Config(settings), Config(settings), model, rows)


def _settings(rows: Rows, **given: Any) -> dict[str, Any]:
    """Return the study's settings of the trainer, with all rows in one step."""
    given = read_config("trainer/paper.yaml") | {"num_epochs": 1, "global_batch_size": len(rows), **given}
    # YAML 1.1 reads 1e-5 as text: the schema makes a number of it.
    settings: dict[str, Any] = msgspec.to_builtins(msgspec.convert(given, TrainerConfig, strict=False))
    return settings
