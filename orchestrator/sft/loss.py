"""The loss of the response tokens, computed without holding the logits of a whole batch.

At a vocabulary of 262,144 the logits of 1,024 tokens, with what the loss makes of them, take 3.8 GB. So the
head is applied to the response positions only, a chunk at a time, and once more in the backward pass.
(`torch.nn.functional.linear_cross_entropy` chunks too, but returns a sum that is rounded to bfloat16 and
knows nothing of what models do to their logits.) No attention mask is needed: rows are padded on the right
and attention is causal, so no token that counts ever sees padding.

Models scale, cap or shift their logits, each in its own `forward`. So the head here *is* the model's own
`forward`, run with a decoder that returns hidden states computed before. Whether that gives the model's
logits is verified once, on the first batch. Auxiliary losses that a model can return beside its logits, such
as the load balancing of experts' routers, are no part of the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from orchestrator.errors import StageFailure
from orchestrator.sft.shards import Batch

PROBE_TOKENS = 32
"""Tokens of the first batch on which the logits are compared; ours."""
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 1e-2
"""Largest relative difference (Frobenius norm) of the logits; ours. The same shapes gave the same bits."""
CAUSAL_TOLERANCE, CAUSAL_TOLERANCE_16_BIT = 1e-3, 1e-1
"""The same for rows of another length; ours. In float32 3e-7 was measured, and 6e-2 to 1.2 without causality.

In 16 bits a router may choose another expert for a token whose scores are close.
"""


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
        self._is_verified = False

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the sum, in float32, of the cross entropies at `positions`; 0 where there are none.

        Raises:
            StageFailure: on the first batch, if the model's own logits are not reproduced (cause ``config``).
        """
        if not self._is_verified:
            self._verify(batch.input_ids[0])
            self._is_verified = True
        hidden = self._hidden(batch.input_ids).flatten(0, 1)[batch.positions]
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
        return functional.cross_entropy(self._logits(hidden).float(), targets, reduction="sum")

    def _hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden

    @property
    def _decoder(self) -> nn.Module:
        return decoder_of(self.model)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the model's own `forward` from the decoder's output on.

        Args:
            hidden: last hidden states, positions x width.

        Returns:
            positions x vocabulary.
        """
        output = _Output(last_hidden_state=hidden[None])
        head = _with_decoder_output(self.model, self._decoder, output)
        return head(inputs_embeds=hidden[None], use_cache=False).logits[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _verify(self, row: torch.Tensor) -> None:
        """Compare the logits of a row's first tokens with the model's own, and with those of half as many.

        The latter differ where a token sees later ones, and so would see padding, or the answer.
        """
        name = type(self.model).__name__
        ids = row[None, :PROBE_TOKENS]
        half = -(-ids.shape[1] // 2)
        with _evaluating(self.model), _full_precision(row.device):
            try:
                hidden = self._hidden(ids)
                ours = self._logits(hidden[0])
                own = self.model(input_ids=ids, use_cache=False).logits[0]
                shorter = self._logits(self._hidden(ids[:, :half])[0])
            except (torch.OutOfMemoryError, StageFailure):
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                raise StageFailure("config", f"{name} cannot be trained here: {reason}") from error
        is_16_bit = hidden.dtype.itemsize == 2
        if (difference := _distance(ours, own)) > (TOLERANCE_16_BIT if is_16_bit else TOLERANCE):
            message = f"the loss of {name} would not be that of its own logits, which differ by"
            raise StageFailure("config", f"{message} {difference:.2g}, relative")
        tolerance = CAUSAL_TOLERANCE_16_BIT if is_16_bit else CAUSAL_TOLERANCE
        if (difference := _distance(shorter, own[:half])) > tolerance:
            message = f"{name} is not causal: with later tokens the logits of earlier ones differ by"
            raise StageFailure("config", f"{message} {difference:.2g}, relative")


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the part of a causal model that makes hidden states of tokens; of a multimodal one that of text.

    It is what transformers names as the decoder, provided that the embeddings of tokens are in it; else the
    child that they are in.
    """
    embeddings = model.get_input_embeddings()
    parts: tuple[nn.Module, ...] = (model.get_decoder(), *model.children())
    for part in parts:
        if part is not model and any(module is embeddings for module in part.modules()):
            return part
    raise StageFailure("config", f"{type(model).__name__} has no decoder that could be trained here")


class _Output(BaseModelOutputWithPast):  # type: ignore[misc]  # transformers is untyped here
    """What a decoder returns, whatever else a model may look for in it being None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _with_decoder_output(model: nn.Module, decoder: nn.Module, output: _Output) -> nn.Module:
    """Return a model that shares all with another, but whose decoder returns the given output.

    So do the modules between the model and its decoder, since either may be what `forward` calls. Copies are
    shallow and made for each call: parameters are those of the model, wherever they have been moved to.
    """
    copied: nn.Module = copy.copy(model)
    copied._modules = dict(copied._modules)
    for name, child in model.named_children():
        if any(module is decoder for module in child.modules()):
            stand_in = _with_decoder_output(child, decoder, output)
            stand_in.forward = lambda *args, **kwargs: output
            copied._modules[name] = stand_in
    return copied


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Leave out what only training does, such as dropout."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, enabled=False):
        yield


def _distance(ours: torch.Tensor, own: torch.Tensor) -> float:
    """Return the relative difference of logits; what all tokens of a position share changes no loss."""
    if ours.shape != own.shape:
        return float("inf")
    ours, own = (logits.float() - logits.float().mean(-1, keepdim=True) for logits in (ours, own))
    return float((ours - own).norm() / own.norm().clamp_min(1e-30))
