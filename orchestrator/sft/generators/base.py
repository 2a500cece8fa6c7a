"""The interface of an engine: greedy tokens for rows of tokens, from one set of weights after another.

An engine handles tokens only. `orchestrator.sft.generate` encodes prompts, and decodes and cuts texts, in the
same way for all engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

IsOver = Callable[[int, Sequence[int]], bool]
"""Callback with a row's index and all its new tokens so far; returns whether more tokens cannot matter.

Engines call it now and then, so a row may get some tokens more.
"""


class GeneratorSettings(NamedTuple):
    """Settings of every engine.

    Attributes:
        device: where to compute.
        precision: of weights and activations: ``fp32`` or ``bf16``.
        eos_token_id: ends an answer.
        pad_token_id: fills short rows.
    """

    device: torch.device
    precision: str
    eos_token_id: int
    pad_token_id: int


class Engine(Protocol):
    """A generator made from `GeneratorSettings`. It is greedy, whatever defaults a model's files contain."""

    def load(self, folder: Path) -> None:
        """Load the weights of a folder in place of the previous ones. All have the same architecture.

        Raises:
            StageFailure: the folder holds no model that can be loaded (cause ``data``).
        """

    def generate(
        self, rows: Sequence[Sequence[int]], *, max_new_tokens: int, is_over: IsOver
    ) -> list[list[int]]:
        """Return the new tokens of each row, in the order of the rows, the end token included.

        A row ends with the end token, at `max_new_tokens`, or some time after `is_over` is true for it.

        Raises:
            StageFailure: memory does not suffice for the rows of one batch (cause ``oom_gpu``).
        """

    @property
    def is_batched(self) -> bool:
        """Whether all rows of a call are computed together, so that rows may influence each other's texts.

        Otherwise a row's tokens do not depend on other rows, and a call may have any number of rows.
        """


def through_end(tokens: Sequence[int], eos_token_id: int) -> list[int]:
    """Return the tokens up to and including the first end token."""
    end = next((n for n, token in enumerate(tokens, start=1) if token == eos_token_id), len(tokens))
    return list(tokens[:end])


def in_rounds(
    extend: Callable[[Sequence[Sequence[int]], int], Sequence[Sequence[int]]],
    rows: Sequence[Sequence[int]],
    *,
    eos_token_id: int,
    max_new_tokens: int,
    round_tokens: int,
    is_over: IsOver,
) -> list[list[int]]:
    """Generate a few tokens per round, until all rows have ended.

    This is for engines that cannot be observed while they generate. After each round, rows that are over
    leave.

    Args:
        extend: returns up to the given number of new tokens for each row.
        rows: the prompts.
        eos_token_id, max_new_tokens, is_over: as for `Engine.generate`.
        round_tokens: tokens between two calls of `is_over`.
    """
    new: list[list[int]] = [[] for _ in rows]
    live = list(range(len(rows)))
    for done in range(0, max_new_tokens, round_tokens):
        num_tokens = min(round_tokens, max_new_tokens - done)
        found = extend([[*rows[index], *new[index]] for index in live], num_tokens)
        still = []
        for index, tokens in zip(live, found, strict=True):
            more = through_end(tokens, eos_token_id)
            new[index] += more
            # A row with fewer tokens than it could have has ended, whatever ended it.
            whole = len(more) == num_tokens and more[-1] != eos_token_id
            if whole and not is_over(index, new[index]):
                still.append(index)
        live = still
        if not live:
            break
    return new
