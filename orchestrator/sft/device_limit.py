"""A limit on the memory of a CPU, by which tiny models run out of memory as large ones do on a GPU.

`trainer.cpu_limit_tokens` rehearses what happens then: remedies, the breaker, reports. The first forward pass
that is too wide raises torch's own error, so with most data that is the step with the longest batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

RECOMPUTED_SHARE = 0.25
"""Ours: what a token takes if the backward pass computes layers again, as a share of the rest."""


class DeviceLimit(NamedTuple):
    """The most tokens whose activations fit, padding included; None for no limit."""

    tokens: int | None = None

    def check(self, num_tokens: int, *, recomputes: bool) -> None:
        """Return if a micro-batch fits.

        Args:
            num_tokens: of the micro-batch, padding included.
            recomputes: whether only the inputs of layers are kept, and the rest is computed again.

        Raises:
            torch.OutOfMemoryError: it does not, with the message of a GPU.
        """
        if self.tokens is None:
            return
        estimate = num_tokens * (RECOMPUTED_SHARE if recomputes else 1.0)
        if estimate > self.tokens:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory, as pretended on a CPU: a micro-batch of {num_tokens} tokens takes the"
                f" memory of {estimate:.0f}, and trainer.cpu_limit_tokens={self.tokens}"
            )
