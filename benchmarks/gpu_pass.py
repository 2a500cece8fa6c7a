"""One pass over a GPU: its models, rows and training loop, its budget of seconds, and its results."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from orchestrator.sft.batches import MicroBatches
from orchestrator.sft.distributed.parallel import Placed
from orchestrator.sft.shards import Example, Rows
from orchestrator.sft.train import Training
from orchestrator.stage import Config, Context

SIZES = {
    "0.6b": (28, 1024, 3072, 16, 8, 151936, True),
    "1.7b": (28, 2048, 6144, 16, 8, 151936, True),
    "8b": (36, 4096, 12288, 32, 8, 151936, False),
    "tiny": (2, 64, 128, 4, 2, 512, True),
}
"""Layers, hidden size, MLP size, heads, key-value heads, vocabulary and tied embeddings of Qwen3 models."""

PEAK_FLOPS = {"h100": 989e12, "h200": 989e12, "a100": 312e12}
"""Dense bfloat16 operations a second, from the makers' data sheets."""

TRAINER = {
    "learning_rate": 1e-5,
    "num_epochs": 1,
    "global_batch_size": 512,
    "warmup_share": 0.03,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "precision": "bf16",
}


class Check:
    """The sizes, the device and the results of one pass.

    Args:
        small: tiny sizes, on the CPU.
        budget_s: seconds for the whole pass.
    """

    def __init__(self, *, small: bool, budget_s: float) -> None:
        self.small, self._budget_s, self._start_s = small, budget_s, time.monotonic()
        self.cuda = torch.cuda.is_available() and not small
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.results: list[dict[str, Any]] = []

    @property
    def left_s(self) -> float:
        """Seconds that are left of the budget."""
        return self._budget_s - (time.monotonic() - self._start_s)

    def record(self, what: str, **facts: Any) -> None:
        """Print a result at once, so that a pass that is cut off loses none."""
        self.results.append({"what": what, **facts})
        print(json.dumps(self.results[-1], default=str), flush=True)

    def wait(self) -> None:
        """Wait until the device has computed all that it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def clean(self) -> None:
        """Free what the last section held, and forget its peak."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        """Return the largest memory allocated since the last `clean`, in GiB."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 1) if self.cuda else 0.0

    def seconds(self, action: Callable[[], object]) -> float:
        """Return how long an action takes on the device."""
        self.wait()
        start_s = time.perf_counter()
        action()
        self.wait()
        return time.perf_counter() - start_s

    def model(self, name: str, layers: int | None = None) -> Qwen3ForCausalLM:
        """Return a model of random weights in float32 on the device."""
        num, hidden, mlp, heads, kv_heads, vocabulary, tied = SIZES["tiny" if self.small else name]
        torch.manual_seed(0)
        with torch.device(self.device):
            return Qwen3ForCausalLM(
                Qwen3Config(
                    vocab_size=vocabulary,
                    hidden_size=hidden,
                    intermediate_size=mlp,
                    num_hidden_layers=min(num, layers or num),
                    num_attention_heads=heads,
                    num_key_value_heads=kv_heads,
                    head_dim=hidden // heads if self.small else 128,
                    tie_word_embeddings=tied,
                )
            )

    def placed(
        self, name: str, *, layers: int | None = None, bf16: bool = True, recompute: bool = True
    ) -> Placed:
        """Return a model as the training stage places it in one process."""
        return Placed(
            lambda: self.model(name, layers),
            device=self.device,
            sharding="ddp",
            bf16=bf16,
            gradient_checkpointing=recompute,
            chunk_tokens=1024,
        )

    def rows(self, num: int, *, width: int | None = None) -> Rows:
        """Return rows of one width, else of log-normal lengths (mean 480, sigma 0.5: the study's longest)."""
        random = np.random.default_rng(0)
        mean, longest, vocabulary = (40, 200, 512) if self.small else (480, 2048, 151936)
        lengths = np.clip(np.exp(random.normal(np.log(mean) - 0.125, 0.5, num)), 16, longest).astype(int)
        if width is not None:
            lengths = np.full(num, width)
        examples = [
            Example("train", str(k), int(n * 0.4), random.integers(0, vocabulary, n))
            for k, n in enumerate(lengths)
        ]
        return Rows(examples, pad_token_id=0)

    def training(self, placed: Placed, rows: Rows, micro_batch_size: int) -> Training:
        """Return the training loop over some rows."""
        return Training(
            placed,
            rows=rows,
            validation=rows,
            settings=Config({"seed": 0, "trainer": TRAINER}),
            context=Context(Path(tempfile.mkdtemp())),
            micro=MicroBatches(micro_batch_size),
            device=self.device,
        )

    def step(self, what: str, placed: Placed, rows: Rows, micro_batch_size: int) -> None:
        """Record the time, the tokens a second and the memory of one optimiser step, after a warm-up."""
        training = self.training(placed, rows, micro_batch_size)
        order = np.argsort(-rows.lengths, kind="stable")
        training._step(1, order[::4])
        took_s, tokens = self.seconds(lambda: training._step(2, order)), int(rows.lengths.sum())
        name = torch.cuda.get_device_name().lower() if self.cuda else ""
        peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
        mfu = round(6 * placed.num_parameters * tokens / took_s / peak, 3) if peak else None
        self.record(
            what,
            rows=micro_batch_size,
            step_s=round(took_s, 2),
            tokens_per_s=round(tokens / took_s),
            mfu=mfu,
            padding=round(training.batches.shares()[1], 3),
            peak_gib=self.peak_gib(),
        )
