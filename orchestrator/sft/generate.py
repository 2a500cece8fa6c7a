"""From prompts to answers: what is the same for every engine and every number of processes.

Prompts are encoded apart from any answer, as for training; a text is cut where the task's `stop` says,
whatever made the engine end. Of several processes each takes its share, and all get all answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from orchestrator.sft.engines.base import Engine
from orchestrator.sft.prepare import encode_prompt


class Answer(NamedTuple):
    """What was generated for one prompt.

    Attributes:
        text: cut where the task says.
        num_tokens: generated, the end token and what was cut included.
        truncated: it was still going on when the limit came: neither ended nor cut.
    """

    text: str
    num_tokens: int
    truncated: bool


class Share(NamedTuple):
    """Which of how many processes this is."""

    rank: int
    size: int


ALONE = Share(0, 1)


def generate(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    stop: Callable[[str], str],
    max_new_tokens: int,
    share: Share = ALONE,
) -> list[Answer]:
    """Returns the answer to each prompt, in the order given; all processes call it with the same prompts."""
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    mine = divided([len(row) for row in rows], share)
    reader = _Reader(tokenizer, stop, max_new_tokens)
    new = engine.generate(
        [rows[index] for index in mine], max_new_tokens=max_new_tokens, is_over=reader.is_over
    )
    answers = dict(zip(mine, map(reader.answer, new), strict=True))
    if share.size > 1:
        parts: list[dict[int, Answer]] = [{}] * share.size
        dist.all_gather_object(parts, answers)
        answers = {index: answer for part in parts for index, answer in part.items()}
    return [answers[index] for index in range(len(prompts))]


def divided(lengths: Sequence[int], share: Share) -> list[int]:
    """Returns the indices that a process takes: every n-th by length, so that all have as much to do."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return order[share.rank :: share.size]


class _Reader:
    """Reads tokens as text and cuts it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Callable[[str], str], max_new_tokens: int
    ) -> None:
        self._tokenizer, self._stop, self._max_new_tokens = tokenizer, stop, max_new_tokens

    def is_over(self, row: int, tokens: Sequence[int]) -> bool:
        """Tells whether a text runs on beyond its answer, and the line where it would be cut is complete.

        Before that the place may still change: a call that seems whole may turn out to be a part of a value.
        """
        text = self._text(tokens)
        return "\n" in text[len(self._stop(text)) :]

    def answer(self, tokens: Sequence[int]) -> Answer:
        """Returns the answer that all tokens of a row make."""
        text = self._text(tokens)
        cut = self._stop(text)
        ended = bool(tokens) and tokens[-1] == self._tokenizer.eos_token_id
        truncated = len(tokens) >= self._max_new_tokens and not ended and cut == text
        return Answer(cut, len(tokens), truncated)

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text
