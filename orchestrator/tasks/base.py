"""What every task offers, and the languages that they speak.

Owns `Item`, the `Task` protocol and the table of languages. Knows no benchmark, no tokenizer, no model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from orchestrator.errors import UserError, nearest


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One example of one language.

    Attributes:
        id: the same in every language, so that translations of one item can be found and split together.
        language: a key of `LANGUAGES`.
        prompt: what the model is given; it ends with a newline, never with a space.
        response: what it is trained to answer; the caller tokenises it apart from the prompt.
        gold: what the answer is compared with.
    """

    id: str
    language: str
    prompt: str
    response: str
    gold: str


class Split(StrEnum):
    """The splits; validation comes from the training data, test never does."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Language(msgspec.Struct, frozen=True):
    """Facts of a language, as the study's section 1 has them.

    Attributes:
        resource: ``high`` or ``low``.
        family: the branch, as the study names it.
        script: the script, as the study names it.
    """

    resource: str
    family: str
    script: str


LANGUAGES: Mapping[str, Language] = {
    "en": Language("high", "Germanic", "Latin"),
    "es": Language("high", "Romance", "Latin"),
    "ja": Language("high", "Japonic", "Kanji+Kana"),
    "bn": Language("low", "Indic", "Bengali"),
    "sw": Language("low", "Niger-Congo", "Latin"),
    "te": Language("low", "Dravidian", "Telugu"),
    "fr": Language("high", "Romance", "Latin"),
    "de": Language("high", "Germanic", "Latin"),
    "ru": Language("high", "Slavic", "Cyrillic"),
    "zh": Language("high", "Sino-Tibetan", "Han"),
    "th": Language("low", "Kra-Dai", "Thai"),
}
"""Language code to its facts, in the canonical order (study section 1)."""


class Task(Protocol):
    """A benchmark: its data, its prompt and its scorer. All of it is pure but for reading files."""

    name: str

    def generate(self, split: str, language: str, num_items: int, seed: int = 0) -> list[Item]:
        """Returns generated items, the same ids in every language.

        Which combinations are held out never depends on the seed, so the text of a validation or test item is
        in no training set of any seed; the seed chooses among what its split may have, and the order.

        Raises:
            UserError: an unknown split or language, or more items than there are.
        """

    def languages_in(self, folder: Path, split: str) -> list[str]:
        """Returns the languages that the folder has files of, in canonical order."""

    def read(
        self,
        folder: Path,
        split: str,
        language: str,
        *,
        languages: Sequence[str] = (),
        num_items: int | None = None,
        num_validation: int | None = 0,
        seed: int = 0,
    ) -> list[Item]:
        """Reads the items of one language from a folder of real files.

        Args:
            folder: a data set (see `orchestrator.tasks.dataset`), or a folder of files: the training folder
                for the splits train and validation, the test folder for test.
            split: one of `Split`.
            language: the language wanted.
            languages: for train and validation, all languages in play: only ids that all of them have count,
                so that every language gets the same items.
            num_items: how many items, chosen by the seed and kept in file order; None for all.
            num_validation: how many ids the seed takes for validation: of a data set's own validation split
                (None for all), or set aside from the training items.
            seed: chooses ids; the same in every language.

        Raises:
            UserError: a folder, file or language is missing, or a row is not as it should be.
        """

    def is_correct(self, text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
        """Return whether generated text answers right; total: no text makes it raise.

        Args:
            text: as it was generated, cut by `stop`.
            gold: of the item.
            language: of the item.
            truncated: the text ends because of the token limit.
        """

    def stop(self, text: str) -> str:
        """Returns generated text without what it ran on with; pure, and changes no verdict."""


def check_split(split: str) -> Split:
    """Returns the split of that name.

    Raises:
        UserError: there is no such split.
    """
    try:
        return Split(split)
    except ValueError:
        raise UserError(f"unknown split {split!r}", allowed=nearest(split, list(Split))) from None


def check_language(language: str) -> str:
    """Returns the language code, if it is one.

    Raises:
        UserError: there is no such language.
    """
    if language not in LANGUAGES:
        raise UserError(f"unknown language {language!r}", allowed=nearest(language, LANGUAGES))
    return language


NUM_HELD_OUT = 2
"""Variants of each group that go to validation, and again to test (ours)."""


class Combination(NamedTuple):
    """A row to be put into words: indices of its group and variant, and the number of its wording."""

    group: int
    variant: int
    form: int


def combinations(
    split: Split, num_variants: Sequence[int], *, num_items: int, seed: int, num_forms: int = 1
) -> list[Combination]:
    """Returns `num_items` combinations of a split, every group once before any comes again.

    Args:
        split: whose combinations; the division does not depend on the seed.
        num_variants: how many variants each group has.
        num_items: how many to return.
        seed: orders the groups, and the variants within each.
        num_forms: in how many wordings a combination may come; all of them stay in its split.

    Raises:
        UserError: the split has fewer combinations than asked for.
    """
    shifts = list(range(len(num_variants)))
    random.Random("held out").shuffle(shifts)  # fixed: see Task.generate
    rng = random.Random(f"{split} {seed}")
    queues = []
    for group, (shift, num) in enumerate(zip(shifts, num_variants, strict=True)):
        variants = [(shift + slot) % num for slot in _slots(split, num)]
        rng.shuffle(variants)
        first = rng.randrange(num_forms)
        queues.append(
            [
                Combination(group, variant, (first + turn + again) % num_forms)
                for again in range(num_forms)  # every variant once before any comes in another wording
                for turn, variant in enumerate(variants)
            ]
        )
    total = sum(map(len, queues))
    if num_items > total:
        raise UserError(
            f"{num_items} generated items asked for the split {split}", allowed=f"at most {total}"
        )
    rows: list[Combination] = []
    while len(rows) < num_items:
        turn = [queue.pop(0) for queue in queues if queue]
        rng.shuffle(turn)
        rows += turn
    return rows[:num_items]


def _slots(split: Split, num: int) -> range:
    match split:
        case Split.TEST:
            return range(NUM_HELD_OUT)
        case Split.VALIDATION:
            return range(NUM_HELD_OUT, 2 * NUM_HELD_OUT)
        case Split.TRAIN:
            return range(2 * NUM_HELD_OUT, num)
