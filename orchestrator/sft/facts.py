"""What a plan assumes of data and speed, `costs` in a cell's config: its schema, and the tokens of items.

No stage reads any of it, so that no identity depends on a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0)]
Utilisation = Annotated[float, msgspec.Meta(gt=0, le=1)]


class TaskFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Facts of one task's items.

    Attributes:
        num_train: items a language where `items.num_train` is null.
        num_validation: likewise.
        num_test: likewise.
        generated: tokens of a generated item; None for as many as real ones have.
        tokens: family of tokenizer to language to tokens of prompt and response.
        train_length_factor: how much longer training items are.
    """

    num_train: Annotated[int, msgspec.Meta(ge=1)]
    num_validation: Annotated[int, msgspec.Meta(ge=1)]
    num_test: Annotated[int, msgspec.Meta(ge=1)]
    generated: Positive | None = None
    tokens: dict[str, dict[str, Positive]]
    train_length_factor: Positive = 1.0

    def __post_init__(self) -> None:
        if not self.tokens or not all(self.tokens.values()):
            raise ValueError("tokens are of no family, or of no language")

    def table(self, family: str | None) -> tuple[str, dict[str, float]]:
        """Returns the tokens by language of a family's tokenizer, or of the first family there is."""
        name = family if family in self.tokens else next(iter(self.tokens))
        return str(name), self.tokens[str(name)]

    def of_languages(self, languages: Sequence[str], family: str | None) -> float:
        """Returns the tokens of one item in all of the languages; the mean stands for one that is missing."""
        table = self.table(family)[1]
        mean = sum(table.values()) / len(table)
        return sum(table.get(language, mean) for language in languages)


class Guess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The utilisation of models of at least so many parameters."""

    billions: Annotated[float, msgspec.Meta(ge=0)]
    mfu: Utilisation


class CostsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`costs` of a cell's config.

    Attributes:
        tasks: name of a task to its facts.
        mfu: of training, by size.
        generation_mfu: of generating answers.
    """

    tasks: dict[str, TaskFacts]
    mfu: tuple[Guess, ...]
    generation_mfu: Utilisation

    def __post_init__(self) -> None:
        if not any(guess.billions == 0 for guess in self.mfu):
            raise ValueError("mfu has no guess for the smallest models: {billions: 0, mfu: ...}")

    def mfu_of(self, num_parameters: int) -> float:
        """Returns the guess for a model of this size."""
        fitting = [guess for guess in self.mfu if guess.billions * 1e9 <= num_parameters]
        return max(fitting, key=lambda guess: guess.billions).mfu
