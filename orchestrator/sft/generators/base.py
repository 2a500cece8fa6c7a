"""The interface of an engine, and the way from prompts to answers, which is the same for all engines.

An engine returns greedy tokens for rows of tokens, from one set of weights after another. It handles tokens
only. `generate` gives it prompts, which are encoded without an answer, as in training, and decodes its
tokens. A text is cut where the task's `stop` cuts it, whatever made the engine end.

*Batch invariance.* In reduced precision, the prompts that are computed together influence the texts. Kernels
add the same numbers in another order when the batch has another shape. The sum may round to another value,
and a token with almost the same score may win. So batches depend on the items and on hashed settings alone.
Processes take whole batches, and all processes receive all answers::

    batches   0   1   2   3   4          the same for 1, 2 or 3 processes
    rank 0    0       2       4
    rank 1        1       3
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


T = TypeVar("T")


class GeneratedText(NamedTuple):
    """The text generated for one prompt.

    Attributes:
        text: cut by the task's `stop`.
        num_tokens: generated tokens, with the end token and what was cut.
        truncated: whether the token limit ended it, before an end token and before a cut.
    """

    text: str
    num_tokens: int
    truncated: bool


class Share(NamedTuple):
    """This process's share of the work: its rank, and the number of processes."""

    rank: int
    size: int


ALONE = Share(0, 1)


def blocks(num_items: Mapping[str, int], batch_size: int) -> list[tuple[str, ...]]:
    """Divide languages into blocks whose items may share a batch.

    Languages are added to a block as long as their items fit into one batch together. Real test sets are
    larger than a batch, so each language is a block. Small ones share a batch, which is much faster::

        num_items={"de": 5, "en": 5, "fr": 20}, batch_size=16  ->  [("de", "en"), ("fr",)]

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

    The result depends on the arguments alone: not on what was generated before, nor on the process.

    Args:
        items: language to its items, in order.
        batch_size: items in a batch.
        length: returns the length of an item's prompt, in tokens.
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
    """Return the answers to batches of encoded prompts. All processes call this with the same batches.

    Args:
        engine: with its weights loaded.
        tokenizer: decodes the tokens.
        prompts: batches of prompts, as tokens.
        stop: cuts a text after the answer.
        max_new_tokens: limit of an answer.
        share: of this process.

    Returns:
        Answers in the order of `prompts`, in every process.
    """
    reader = _TextReader(tokenizer, stop, max_new_tokens)
    answers: dict[int, list[GeneratedText]] = {}
    mine = range(share.rank, len(prompts), share.size)
    # A batched engine gets one batch per call. The other kind schedules its own, and runs best with all at
    # once.
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
    """Decoder of tokens to text, which also cuts the text after the answer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Callable[[str], str], max_new_tokens: int
    ) -> None:
        self._tokenizer, self._stop, self._max_new_tokens = tokenizer, stop, max_new_tokens
        self._special = special_tokens(tokenizer)

    def is_over(self, row: int, tokens: Sequence[int]) -> bool:
        """Return whether a text goes on beyond its answer, so that more tokens cannot change what is kept.

        The line after the cut must be complete. Before that the cut may still move: a call that seems whole
        may turn out to be part of a value.
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
        """Return the text before its first special token, and whether that token begins another turn.

        A chat-template token such as Qwen's ``<|im_end|>`` begins another turn. Decoding drops the token
        itself, so the next turn would look like part of the answer. The end token begins none. Special tokens
        before any text are skipped.
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
    """Return the ids of tokens that are not text: end, padding and chat-template tokens."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({*added, *tokenizer.all_special_ids} - {tokenizer.unk_token_id})
