"""The loss of the response tokens, made without holding the logits of a whole batch.

At a vocabulary of 262,144 the logits of 1,024 tokens and what the loss makes of them take 3.8 GB. So the
head is applied to the response positions only, a chunk at a time, and once more in the backward pass.
(`torch.nn.functional.linear_cross_entropy` chunks too, but returns a sum that is rounded to bfloat16 and
knows no softcapping.) No attention mask is needed: rows are padded on the right and attention is causal, so
no token that counts ever sees padding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from orchestrator.sft.shards import Batch


class ResponseLoss(nn.Module):
    """A causal model that returns the summed loss of a batch's response tokens.

    Args:
        model: any causal language model of transformers.
        chunk_tokens: response tokens whose logits exist at a time.
    """

    def __init__(self, model: PreTrainedModel, *, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self._chunk_tokens = chunk_tokens
        self._softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns the sum, in float32, of the cross entropies at `positions`; 0 where there are none."""
        hidden = self.model.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        hidden = hidden.flatten(0, 1)[batch.positions]
        if len(hidden) <= self._chunk_tokens:
            return self._summed(hidden, batch.targets)
        chunks = zip(
            torch.split(hidden, self._chunk_tokens),
            torch.split(batch.targets, self._chunk_tokens),
            strict=True,
        )
        losses = [checkpoint(self._summed, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.stack(losses).sum()

    def _summed(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.model.get_output_embeddings()(hidden).float()
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return functional.cross_entropy(logits, targets, reduction="sum")
