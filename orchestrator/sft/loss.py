"""Cross entropy of the response tokens, computed without holding the logits of a whole batch.

Logits are the largest tensor of a training step. With a vocabulary of 262,144, the logits of 1,024 tokens and
their gradients take 3.8 GB. So the language-model head runs only at positions that predict a response
token, one chunk of them at a time. The backward pass computes each chunk's logits again.
(`torch.nn.functional.linear_cross_entropy` also works in chunks. But it returns a sum that is rounded to
bfloat16, and it skips what models do to their logits.)

No attention mask is needed. Rows are padded on the right and attention is causal, so no token that counts
ever attends to padding. In a pack `orchestrator.sft.kernels` keeps the rows apart.

Models scale, cap or shift their logits, each in its own `forward`. So this module does not call the head
directly. It runs the model's own `forward` with a decoder that returns hidden states computed earlier::

    hidden = decoder(input_ids)             # rows x tokens x width, once per batch
    hidden = hidden[positions]              # response positions only
    for chunk in hidden.split(chunk_tokens):
        logits = model.forward(...)         # here decoder(...) returns `chunk`; head and caps run as usual

The first batch verifies once that this gives the model's own logits. Auxiliary losses of a model, such as the
load balancing of expert routers, are not part of the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from orchestrator.errors import StageFailure
from orchestrator.sft import kernels
from orchestrator.sft.shards import Batch

PROBE_TOKENS = 32
"""Tokens of the first batch whose logits are compared; our choice."""
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 1e-2
"""Largest relative difference (Frobenius norm) of the logits; our choice.

With equal shapes the measured logits were bit-identical.
"""
CAUSAL_TOLERANCE, CAUSAL_TOLERANCE_16_BIT = 1e-3, 1e-1
"""Largest relative difference of the logits between rows of different length; our choice.

In float32 the measured difference was 3e-7 for causal models, and 6e-2 to 1.2 for models that are not causal.
In 16 bits a router may choose another expert for a token whose scores are close.
"""


class ResponseLoss(nn.Module):
    """Wrapper around a causal model that returns the summed loss of a batch's response tokens.

    The loss is a sum, not a mean. The caller divides by the number of response tokens of the whole optimiser
    step. A mean over each micro-batch would weight tokens by how the rows happen to be divided.

    Args:
        model: any causal language model of transformers.
        chunk_tokens: number of response tokens whose logits exist at a time.
    """

    def __init__(self, model: PreTrainedModel, *, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self._chunk_tokens = chunk_tokens
        self._is_verified = False
        self._compiled: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def compile_loss(self, *, backend: str = "inductor") -> None:
        """Compile the cross entropy of a whole chunk: one pass over the logits instead of four in 32 bits."""
        self._compiled = torch.compile(_cross_entropy, dynamic=False, backend=backend)

    def forward(self, batch: Batch, *, alone: Sequence[Batch] = ()) -> torch.Tensor:
        """Return the sum, in float32, of the cross entropies at `batch.positions`; 0 if there are none.

        Args:
            batch: rows side by side, or a pack.
            alone: the rows of the pack, each on its own. If they are given, the result is how much the
                rows depend on being packed; see `_packing_differences`.

        Raises:
            StageFailure: on the first batch, if the model's own logits are not reproduced (cause ``config``).
        """
        if alone:
            return self._packing_differences(batch, alone)
        if not self._is_verified:
            # Compiling for a few tokens would take seconds.
            with torch.compiler.set_stance("force_eager") if self._compiled else nullcontext():
                self._verify(batch.input_ids[0])
            self._is_verified = True
        hidden = self._hidden(**batch.inputs).flatten(0, 1)[batch.positions]
        if len(hidden) <= self._chunk_tokens:
            return self._summed(hidden, batch.targets)
        chunks = zip(
            torch.split(hidden, self._chunk_tokens),
            torch.split(batch.targets, self._chunk_tokens),
            strict=True,
        )
        # Checkpointing drops each chunk's logits after the forward pass, so only one chunk's exist at a time.
        losses = [checkpoint(self._summed, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.stack(losses).sum()

    def _summed(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # Chunks that are not whole have too many shapes to compile each.
        is_whole = len(hidden) == self._chunk_tokens
        cross_entropy = (is_whole and self._compiled) or _cross_entropy
        return cross_entropy(self._logits(hidden), targets)

    def _hidden(self, **inputs: Any) -> torch.Tensor:
        hidden: torch.Tensor = self._decoder(**inputs, use_cache=False).last_hidden_state
        return hidden

    @property
    def _decoder(self) -> nn.Module:
        return decoder_of(self.model)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the model's own `forward`, starting from the decoder's output.

        Args:
            hidden: last hidden states, positions x width.

        Returns:
            Logits, positions x vocabulary.
        """
        output = _Output(last_hidden_state=hidden[None])
        head = _with_decoder_output(self.model, self._decoder, output)
        return head(inputs_embeds=hidden[None], use_cache=False).logits[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _verify(self, row: torch.Tensor) -> None:
        """Compare the logits of a row's first tokens with the model's own and with those of a shorter row.

        The first comparison shows that the substituted decoder changes nothing. The second shows that the
        model is causal. If the first tokens' logits change when later tokens are removed, a token sees later
        tokens. Then it would also see padding, or the answer that it should predict.

        Raises:
            StageFailure: a comparison exceeds its tolerance, or the model fails (cause ``config``).
        """
        name = type(self.model).__name__
        ids = row[None, :PROBE_TOKENS]
        half = -(-ids.shape[1] // 2)
        # Dropout and autocast would make two correct computations differ.
        with _evaluating(self.model), _full_precision(row.device):
            try:
                hidden = self._hidden(input_ids=ids)
                ours = self._logits(hidden[0])
                own = self.model(input_ids=ids, use_cache=False).logits[0]
                shorter = self._logits(self._hidden(input_ids=ids[:, :half])[0])
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

    def _packing_differences(self, pack: Batch, alone: Sequence[Batch]) -> torch.Tensor:
        """Return two largest relative differences of the hidden states of a row; infinity if a pack fails.

        - Between the row in the pack and on its own, by the model's own attention. It is large for models
          whose positions are not given by `position_ids`, or whose attention has more than scores.
        - Between the row in the pack and in a pack whose first row has other tokens. It is 0 if no row sees
          another, in 16 bits too, because all shapes are equal. It is not for models with state (Mamba).
        """
        first = alone[0].input_ids.shape[1]
        other = pack.input_ids.clone()
        other[:, :first] = other[:, :first].flip(1)
        with _evaluating(self.model):
            own = [self._hidden(**row.inputs)[0] for row in alone]
            try:
                with kernels.enabled(self._decoder):
                    packed, changed = (
                        self._hidden(**batch.inputs)[0] for batch in (pack, pack._replace(input_ids=other))
                    )
            except (torch.OutOfMemoryError, StageFailure):
                raise
            except Exception as error:  # each architecture refuses arguments in its own way
                if kernels.lacks_deterministic(error):
                    raise
                return torch.full((2,), float("inf"), device=pack.input_ids.device)
        lengths = [len(row) for row in own]
        rows, others = (torch.split(hidden[: sum(lengths)], lengths) for hidden in (packed, changed))
        pairs = (zip(rows, own, strict=True), zip(rows[1:], others[1:], strict=True))
        return torch.stack([torch.stack([_relative(*pair) for pair in both]).max() for both in pairs])


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the sum in float32: a sum of thousands of terms loses its small ones in 16 bits."""
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def _relative(ours: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return the relative difference of two tensors (Frobenius norm)."""
    relative: torch.Tensor = (ours.float() - own.float()).norm() / own.float().norm()
    return relative


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the module of a causal model that maps tokens to hidden states.

    This is the decoder that transformers names, if the token embeddings are inside it. Otherwise it is the
    child module that contains them. In a multimodal model it is the text decoder.

    Raises:
        StageFailure: no such module exists (cause ``config``).
    """
    embeddings = model.get_input_embeddings()
    parts: tuple[nn.Module, ...] = (model.get_decoder(), *model.children())
    for part in parts:
        if part is not model and any(module is embeddings for module in part.modules()):
            return part
    raise StageFailure("config", f"{type(model).__name__} has no decoder that could be trained here")


class _Output(BaseModelOutputWithPast):  # type: ignore[misc]  # transformers is untyped here
    """Decoder output in which every field that was not set is None, because models may read any of them."""

    def __getattr__(self, name: str) -> None:
        # Python looks up its own protocols, such as `__deepcopy__`. None would be taken for a method.
        if name.startswith("__"):
            raise AttributeError(name)


def _with_decoder_output(model: nn.Module, decoder: nn.Module, output: _Output) -> nn.Module:
    """Return a copy of a model that shares its parameters, but whose decoder returns the given output.

    For example, ``forward`` of a causal model calls ``self.model(...)`` and then ``self.lm_head(hidden)``. In
    the copy the first call returns `output` at once, and the second runs the real head. Modules between the
    model and its decoder return `output` too, because `forward` may call any of them.

    Copies are shallow and made for each call. So parameters are always the model's current ones, even after
    it was moved to another device or sharded.
    """
    copied: nn.Module = copy.copy(model)
    # The shallow copy shares this dictionary. Without its own, the original model would get the stand-in.
    copied._modules = dict(copied._modules)
    for name, child in model.named_children():
        if any(module is decoder for module in child.modules()):
            stand_in = _with_decoder_output(child, decoder, output)
            stand_in.forward = lambda *args, **kwargs: output
            copied._modules[name] = stand_in
    return copied


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch all modules to evaluation mode, which turns off dropout; restore the mode of each on exit."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Turn autocast off."""
    with torch.autocast(device.type, enabled=False):
        yield


def _distance(ours: torch.Tensor, own: torch.Tensor) -> float:
    """Return the relative difference of two tensors of logits; infinity if their shapes differ.

    The mean over the vocabulary is subtracted first. A constant added to all logits of a position changes
    neither the softmax nor the loss.
    """
    if ours.shape != own.shape:
        return float("inf")
    ours, own = (logits.float() - logits.float().mean(-1, keepdim=True) for logits in (ours, own))
    return float((ours - own).norm() / own.norm().clamp_min(1e-30))
