"""The engine for CPUs, small models and any GPU: `generate` of transformers, one call per batch.

A loop that removes ended rows from the batch was measured against it on the tiny models. Texts were the same.
It was 1.0 to 1.3 times as fast with trained weights. Where a few rows of math were long, it was up to 3 times
as fast. Neither is worth its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from orchestrator.errors import StageFailure
from orchestrator.sft import runtime
from orchestrator.sft.generators.base import GeneratorSettings, IsOver, through_end

CHECK_EVERY_TOKENS = 16
"""Number of new tokens between two checks whether a row is over."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TransformersEngine:
    """See `orchestrator.sft.generators.base.Engine`."""

    is_batched = True

    def __init__(self, settings: GeneratorSettings) -> None:
        self._settings = settings
        if settings.device.type == "cuda":
            # With each new token, keys have a new length, for which cuDNN would first build a plan: that
            # took most of the time (docs/gpu.md).
            torch.backends.cuda.enable_cudnn_sdp(False)
        self._model: PreTrainedModel | None = None

    def load(self, folder: Path) -> None:
        """Load the weights. The previous ones are freed first, because two models may not fit."""
        self._model = None
        model = runtime.load_model(folder, dtype=_DTYPES[self._settings.precision])
        model.generation_config = GenerationConfig()  # a model's own may hold penalties or sampling
        self._model = model.to(self._settings.device).eval()

    def generate(
        self, rows: Sequence[Sequence[int]], *, max_new_tokens: int, is_over: IsOver
    ) -> list[list[int]]:
        """Generate in one batch; see `Engine.generate`.

        A batch that does not fit is tried once more after cached memory is freed, and then fails. It is never
        divided: smaller batches would fit more often, but they would change texts.
        """
        try:
            return self._batch(rows, max_new_tokens, is_over)
        except torch.OutOfMemoryError:
            pass
        if self._settings.device.type == "cuda":  # not within `except`: the traceback holds the tensors
            torch.cuda.empty_cache()
        try:
            return self._batch(rows, max_new_tokens, is_over)
        except torch.OutOfMemoryError as error:
            raise StageFailure(
                "oom_gpu",
                f"memory does not suffice for a batch of {len(rows)} prompts: evaluation.batch_size, which is"
                f" a part of the identity, must be smaller for this device ({error})",
            ) from error

    @torch.inference_mode()
    def _batch(self, rows: Sequence[Sequence[int]], max_new_tokens: int, is_over: IsOver) -> list[list[int]]:
        assert self._model is not None, "load() comes first"
        width, pad, device = max(map(len, rows)), self._settings.pad_token_id, self._settings.device
        watch = _Watch(len(rows), width, self._settings, is_over)
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        # Prompts are padded on the left, so that all rows' new tokens begin in the same column.
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=self._settings.eos_token_id,
            stopping_criteria=StoppingCriteriaList([watch]),
        )
        new: list[list[int]] = output[:, width:].tolist()
        eos = self._settings.eos_token_id
        return [through_end(tokens[:end], eos) for end, tokens in zip(watch.ends, new, strict=True)]


class _Watch(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Stopping criterion that ends rows which are over and notes where. `generate` only pads them after that.

    Attributes:
        ends: for each row of the batch, its number of new tokens when it was over, or None.
    """

    def __init__(
        self, num_rows: int, num_prompt_tokens: int, settings: GeneratorSettings, is_over: IsOver
    ) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self.ends: list[int | None] = [None] * num_rows
        self._eos, self._is_over = settings.eos_token_id, is_over

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        num_new = input_ids.shape[1] - self.num_prompt_tokens
        if num_new % CHECK_EVERY_TOKENS == 0:
            for row, tokens in enumerate(input_ids[:, self.num_prompt_tokens :].tolist()):
                live = self.ends[row] is None and self._eos not in tokens
                if live and self._is_over(row, tokens):
                    self.ends[row] = num_new
        return torch.tensor([end is not None for end in self.ends], device=input_ids.device)
