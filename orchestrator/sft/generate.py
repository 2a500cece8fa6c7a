"""Greedy generation in batches: prompts padded on the left, longest first, until all rows have ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from orchestrator.sft.prepare import encode_prompt

CHECK_EVERY_TOKENS = 16
"""How often a row's text is looked at for where it should stop."""


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """Ends a row whose text already goes on beyond its answer, as untrained models do."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, num_prompt_tokens: int, stop: Callable[[str], str]
    ) -> None:
        self._tokenizer, self._num_prompt_tokens, self._stop = tokenizer, num_prompt_tokens, stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        generated = input_ids[:, self._num_prompt_tokens :]
        if generated.shape[1] % CHECK_EVERY_TOKENS:
            ended = [False] * len(input_ids)
        else:
            texts = self._tokenizer.batch_decode(generated, skip_special_tokens=True)
            ended = [self._stop(text) != text for text in texts]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    stop: Callable[[str], str],
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """Returns the model's continuation of each prompt, cut where `stop` says, in the order given."""
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    texts = [""] * len(rows)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = [rows[index] for index in indices]
        for index, text in zip(indices, _batch(model, tokenizer, batch, stop, max_new_tokens), strict=True):
            texts[index] = stop(text)
    return texts


@torch.inference_mode()
def _batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    stop: Callable[[str], str],
    max_new_tokens: int,
) -> list[str]:
    width = max(len(row) for row in rows)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
        stopping_criteria=StoppingCriteriaList([_Stop(tokenizer, width, stop)]),
    )
    decoded: list[str] = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    return decoded
