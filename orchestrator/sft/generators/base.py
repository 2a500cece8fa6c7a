"""What an engine is: greedy tokens for rows of tokens, from one set of weights after another.

An engine knows no text, no task and no item. Prompts are encoded, and texts decoded and cut, by
`orchestrator.sft.generate`, the same way for all engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

IsOver = Callable[[int, Sequence[int]], bool]
"""Told a row and all its new tokens so far, says whether more cannot matter; asked now and then."""


class GeneratorSettings(NamedTuple):
    """What every engine is made from.

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
    """Made from `EngineSettings`; generates greedily, whatever defaults come with a model."""

    def load(self, folder: Path) -> None:
        """Take the weights of a folder, in the place of any before; all have the same architecture.

        Raises:
            StageFailure: with cause ``data`` when the folder holds no model that can be loaded.
        """

    def generate(
        self, rows: Sequence[Sequence[int]], *, max_new_tokens: int, is_over: IsOver
    ) -> list[list[int]]:
        """Return the new tokens of each row, in the order of the rows, the end token included.

        A row ends with the end token, at `max_new_tokens`, or some time after `is_over` holds.

        Raises:
            StageFailure: with cause ``oom_gpu`` when memory does not suffice for the rows of one batch.
        """

    @property
    def is_batched(self) -> bool:
        """Whether all rows of a call are computed together, so that what they are may change each text.

        Otherwise a row's tokens do not depend on others, and a call may bring any number of rows.
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
    """Generate a few tokens a round for engines that cannot be watched, until all rows have ended.

    Args:
        extend: returns up to the given number of new tokens for each row.
        rows: the prompts.
        eos_token_id, max_new_tokens, is_over: as for `Engine.generate`.
        round_tokens: tokens between two questions to `is_over`.
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
            whole = len(more) == num_tokens and more[-1] != eos_token_id
            if whole and not is_over(index, new[index]):
                still.append(index)
        live = still
        if not live:
            break
    return new
