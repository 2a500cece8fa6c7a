"""From prompts to answers: what is the same for every engine and every number of processes.

Prompts are encoded apart from any answer, as for training; a text is cut where the task's `stop` says,
whatever made the engine end. Which prompts are computed together decides, in reduced precision, about texts:
a sum of the same numbers in another order may round to another value. So batches are made of the items and
of hashed settings alone. Of several processes each takes whole batches, and all get all answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from orchestrator.sft.generators.base import Engine

T = TypeVar("T")


class GeneratedText(NamedTuple):
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


def blocks(num_items: Mapping[str, int], batch_size: int) -> list[tuple[str, ...]]:
    """Divide languages into blocks, whose items may share a batch: as many as fit in one, or one language.

    Real sizes make a block of each language; small ones share a batch, which is much quicker.

    Args:
        num_items: language to its number of items, in order.
        batch_size: items in a batch.
    """
    found: list[list[str]] = []
    room = 0
    for language, number in num_items.items():
        if number > room:
            found.append([])
            room = batch_size
        found[-1].append(language)
        room -= number
    return [tuple(block) for block in found]


def batches(items: Mapping[str, Sequence[T]], batch_size: int, length: Callable[[T], int]) -> list[list[T]]:
    """Divide the items of several languages into batches of similar length, the longest of a block first.

    The result depends on the arguments alone: not on what was done before, nor on who does it.

    Args:
        items: language to its items, in order.
        batch_size: items in a batch.
        length: of an item's prompt, in tokens.
    """
    found = []
    for block in blocks({language: len(each) for language, each in items.items()}, batch_size):
        rows = sorted(
            chain.from_iterable(items[language] for language in block), key=lambda row: -length(row)
        )
        found += [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return found


def generate(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Sequence[int]]],
    *,
    stop: Callable[[str], str],
    max_new_tokens: int,
    share: Share = ALONE,
) -> list[list[GeneratedText]]:
    """Return the answers to batches of encoded prompts; all processes call it with the same batches.

    Args:
        engine: with the weights loaded.
        tokenizer: reads the tokens.
        prompts: batches of prompts, as tokens.
        stop: cuts a text.
        max_new_tokens: the limit of an answer.
        share: this process's.
    """
    reader = _TextReader(tokenizer, stop, max_new_tokens)
    answers: dict[int, list[GeneratedText]] = {}
    mine = range(share.rank, len(prompts), share.size)
    for group in [[index] for index in mine] if engine.is_batched else [[*mine]]:
        rows = [row for index in group for row in prompts[index]]
        new = engine.generate(rows, max_new_tokens=max_new_tokens, is_over=reader.is_over) if rows else []
        read = iter([reader.answer(tokens) for tokens in new])
        for index in group:
            answers[index] = [next(read) for _ in prompts[index]]
    if share.size > 1:
        parts: list[dict[int, list[GeneratedText]]] = [{}] * share.size
        dist.all_gather_object(parts, answers)
        answers = {index: answer for part in parts for index, answer in part.items()}
    return [answers[index] for index in range(len(prompts))]


class _TextReader:
    """Reads tokens as text and cuts it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Callable[[str], str], max_new_tokens: int
    ) -> None:
        self._tokenizer, self._stop, self._max_new_tokens = tokenizer, stop, max_new_tokens
        self._special = special_tokens(tokenizer)

    def is_over(self, row: int, tokens: Sequence[int]) -> bool:
        """Whether a text runs on beyond its answer, and the line where it would be cut is complete.

        Before that the place may still change: a call that seems whole may turn out to be a part of a value.
        """
        text, is_cut = self._text(tokens)
        return is_cut or "\n" in text[len(self._stop(text)) :]

    def answer(self, tokens: Sequence[int]) -> GeneratedText:
        """Return the answer that all tokens of a row make."""
        text, is_cut = self._text(tokens)
        cut = self._stop(text)
        ended = bool(tokens) and tokens[-1] == self._tokenizer.eos_token_id
        truncated = len(tokens) >= self._max_new_tokens and not (ended or is_cut) and cut == text
        return GeneratedText(cut, len(tokens), truncated)

    def _text(self, tokens: Sequence[int]) -> tuple[str, bool]:
        """Return the text up to the first special token after it, and whether there is one before the end.

        A mark of a chat template such as Qwen's ``<|im_end|>`` begins a turn that nobody asked for; decoding
        leaves it out, so its turn would look like a part of the answer.
        """
        start = 0
        for end, token in enumerate(tokens):
            if token in self._special:
                text = self._decoded(tokens[start:end])
                if text.strip():
                    return text, token != self._tokenizer.eos_token_id
                start = end + 1
        return self._decoded(tokens[start:]), False

    def _decoded(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of tokens that are no text: ends, paddings and marks of chat templates."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({*added, *tokenizer.all_special_ids} - {tokenizer.unk_token_id})
