"""The interface that every task implements, and the table of languages.

This module owns `Item`, the `Task` protocol and `LANGUAGES`. It depends on no benchmark, no tokenizer and
no model. A further task is one module and one line in `orchestrator.registry.TASKS`, or ``target:
module:object`` beside ``name`` in a file of `conf/task`. `orchestrator.tasks.files.FileTask` implements all
but what differs from task to task.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from orchestrator.errors import UserError, nearest
from orchestrator.registry import TASKS, lookup

if TYPE_CHECKING:
    from orchestrator.tasks.sources import Source, SourceTable


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An immutable struct that refuses unknown keys."""


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One example in one language.

    Attributes:
        id: the same in every language, so that all translations of an item can be found and put into the
            same split.
        language: a key of `LANGUAGES`.
        prompt: the model's input. It ends with a newline, never with a space.
        response: the text that the model is trained to write. The caller tokenises it separately from the
            prompt.
        gold: the reference that an answer is compared with.
    """

    id: str
    language: str
    prompt: str
    response: str
    gold: str


class Split(StrEnum):
    """The splits of a data set. Validation items are taken from the training data, test items never are."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Language(msgspec.Struct, frozen=True):
    """Facts about a language, as section 1 of the study gives them.

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
"""Map from language code to its facts, in the canonical order (study section 1)."""


Line = Mapping[str, str]
"""One line of a data set: the fields of an item in one language. Its ``id`` is the item's."""


class Difference(NamedTuple):
    """Ids whose lines in a language contradict those of another language.

    Attributes:
        kind: a stable identifier of the kind of problem.
        text: a description for people.
        language: the language.
        ids: the ids.
    """

    kind: str
    text: str
    language: str
    ids: Sequence[str]


class Task(Protocol):
    """A benchmark: its data, its prompt and its scorer. Apart from reading files, all methods are pure.

    The stages use the methods up to `stop`. `sweep data` uses the others, on data sets and what becomes one.

    Attributes:
        name: as in the config and the rows.
        in_tiny_models: whether the tokenizers and base models of tiny models are made of its generated items.
            This is fixed for a task: the digests of these stages do not depend on the set of tasks.
        description: the task's part of ``sweep data describe``.
        releases: map from hub id to the numbers of training and validation items to import by default.
        reasons: map from a result of `problem_of` to the reason under which an import counts it.
    """

    name: str
    in_tiny_models: bool
    description: str
    releases: Mapping[str, tuple[int | None, int]]
    reasons: Mapping[str, str]

    def generate(self, split: str, language: str, num_items: int, seed: int = 0) -> list[Item]:
        """Return generated items, with the same ids in every language.

        The combinations that are held out never depend on the seed. Therefore the text of a validation or
        test item is in no training set, whatever the seed. The seed chooses among the combinations of the
        split, and it decides their order.

        Raises:
            UserError: the split or language is unknown, or there are too few items.
        """

    def languages_in(self, folder: Path, split: str) -> list[str]:
        """Return the languages for which the folder has files, in canonical order."""

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
        """Read the items of one language from a folder of real files.

        Args:
            folder: a data set (see `orchestrator.tasks.dataset`), or a folder of files: the training folder
                for the splits train and validation, the test folder for test.
            split: one of `Split`.
            language: the language to return.
            languages: for train and validation, all languages in use. Only ids that all of them have are
                used, so that every language gets the same items.
            num_items: the number of items, chosen by the seed and kept in file order; None for all.
            num_validation: the number of ids that the seed takes for validation. They come from the data
                set's own validation split (None for all of it), or are set aside from the training items.
            seed: chooses ids; the same in every language.

        Raises:
            UserError: a folder, file or language is missing, or a row is malformed.
        """

    def is_correct(self, text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
        """Return whether a generated text gives the right answer. No text makes this method raise.

        Args:
            text: the generated text, already cut by `stop`.
            gold: the reference of the item.
            language: the language of the item.
            truncated: whether the text ends because of the token limit.
        """

    def stop(self, text: str) -> str:
        """Return the generated text up to its answer's end. Pure; the cut changes no verdict."""

    def line_of(self, row: Mapping[str, Any], *, id_: str, language: str, where: str) -> dict[str, str]:
        """Return a row of a file, in any of the task's forms, as a line of a data set.

        Args:
            row: the fields.
            id_: the id of the item.
            language: the language of the row.
            where: file and number, for error messages.

        Raises:
            UserError: a field is missing.
        """

    def item_of(self, line: Line, language: str) -> Item:
        """Return a line of a data set, which can be used, as an item."""

    def problem_of(self, line: Line) -> str:
        """Return why a line cannot be used, or "". Its id is then left out in every language."""

    def lines(self, path: Path, language: str) -> Iterator[dict[str, str]]:
        """Yield the rows of a file as lines of a data set, whether or not they can be used.

        Raises:
            UserError: a row does not have the form of such a file.
        """

    def source(self, path: Path) -> Source | None:
        """Return an existing file or folder as a source of rows, or None if nothing in it is recognised."""

    def release(self, paths: Sequence[Path], name: str, tables: Sequence[SourceTable] = ()) -> Source | None:
        """Return the files or Parquet tables of a release as a source, or None if their form is unknown."""

    def looks_like(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of an unknown file is of this task."""

    def differences(self, lines: Mapping[str, Sequence[Line]]) -> Iterator[Difference]:
        """Yield what a translation changed although it must not, given the lines of a split by language."""


def load_task(section: Mapping[str, Any]) -> Task:
    """Return the task that the section `task` of a cell's config names.

    Raises:
        UserError: there is no such task, or it has another name.
    """
    # Sealed configs from before there was a target have none.
    target = dict(section).get("target")
    task: Task = lookup(TASKS, target or section["name"], kind="task")
    if task.name != section["name"]:
        what = f"the task {target or section['name']} has the name {task.name!r}"
        raise UserError(what, where="task.name", allowed=f"equal names; the config has {section['name']!r}")
    return task


def check_split(split: str) -> Split:
    """Return the split of that name.

    Raises:
        UserError: there is no such split.
    """
    try:
        return Split(split)
    except ValueError:
        raise UserError(f"unknown split {split!r}", allowed=nearest(split, list(Split))) from None


def check_language(language: str) -> str:
    """Return the language code unchanged if it is known.

    Raises:
        UserError: there is no such language.
    """
    if language not in LANGUAGES:
        raise UserError(f"unknown language {language!r}", allowed=nearest(language, LANGUAGES))
    return language


NUM_HELD_OUT = 2
"""Number of variants of each group that go to validation, and again to test (our choice)."""


class Combination(NamedTuple):
    """The indices of a group and of its variant, and the number of the wording to use."""

    group: int
    variant: int
    form: int


def combinations(
    split: Split, num_variants: Sequence[int], *, num_items: int, seed: int, num_forms: int = 1
) -> list[Combination]:
    """Return `num_items` combinations of a split, taking every group once before any group repeats.

    A group is for example a pair of summands, and a variant is the unit in which they are counted. Every
    group gives variants to every split, so each split covers all groups. The first variant that is held out
    differs from group to group. Otherwise the same units would be held out everywhere and never be trained
    on. For 16 variants a group::

        shift 0: test 0, 1    validation 2, 3    train 4 to 15
        shift 5: test 5, 6    validation 7, 8    train 9 to 15, then 0 to 4

    Args:
        split: the split to draw from. The division into splits does not depend on the seed.
        num_variants: the number of variants of each group.
        num_items: the number of combinations to return.
        seed: orders the groups, and the variants within each.
        num_forms: the number of wordings of a combination. All wordings stay in the combination's split.

    Raises:
        UserError: the split has fewer than `num_items` combinations.
    """
    shifts = list(range(len(num_variants)))
    random.Random("held out").shuffle(shifts)  # a constant seed: see Task.generate
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
        # Each round takes one combination of every group, in a new random order.
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
