"""The single checks of parallel task data. Each one compares rows of all languages and yields problems.

`checking` decides which checks run, in which order, and how they are reported.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.tasks import api_calling, dataset
from orchestrator.tasks.answers import gold_number
from orchestrator.tasks.base import LANGUAGES, Item, Split
from orchestrator.tasks.importing import FILES

NUM_EXAMPLES = 3
ROWS = "rows"
"""Stands for the split of rows whose source names none."""


class Problem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A problem with its frequency and place.

    Attributes:
        kind: a stable identifier of the kind of problem.
        text: a description for people.
        split: the split, or "" for all.
        language: the language, or "" for all.
        num: how often the problem occurs.
        examples: a few ids.
    """

    kind: str
    text: str
    split: str = ""
    language: str = ""
    num: int = 1
    examples: tuple[str, ...] = ()


class CheckedRow(msgspec.Struct, frozen=True):
    """A row of a source.

    Attributes:
        line: the row as a line of a data set.
        item: the item, or None if the line cannot be used.
        flaws: the kinds of bad characters in the row.
    """

    line: Mapping[str, str]
    item: Item | None
    flaws: tuple[str, ...]


Table = dict[str, dict[str, list[CheckedRow]]]
"""Map from split to language to rows."""


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")


def flaws(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the kinds of bad characters in a row."""
    for value in row.values():
        if isinstance(value, str):
            if not unicodedata.is_normalized("NFC", value):
                yield "not-nfc"
            if _CONTROL.search(value):
                yield "control-character"


def description(path: Path, info: dataset.DatasetInfo | None) -> Iterator[Problem]:
    """Yield differences between a data set's files and its description."""
    if info is None:
        return
    if what := dataset.changes(path, info):
        yield Problem(kind="changed", text=f"{what}: changed since it was imported")
    for name, split in info.splits.items():
        for language in split.languages:
            file = dataset.path_of(path, name, language)
            if file.is_file():
                ids = tuple(line["id"] for line in FILES[info.task].lines(file, language))
                if ids != split.ids:
                    text = f"the ids are not those of {dataset.FILE}"
                    odd = tuple(sorted(set(ids) ^ set(split.ids))[:NUM_EXAMPLES])
                    yield Problem(kind="other-ids", text=text, split=name, language=language, examples=odd)


def languages(table: Table, wanted: Sequence[str], info: dataset.DatasetInfo | None) -> Iterator[Problem]:
    """Yield splits that lack a language which they should have."""
    trained = set(table.get(Split.TRAIN, {}))
    for split, rows in table.items():
        # Checkpoints are selected on validation items, so every language that is trained on needs some.
        needed = set(wanted) | (trained if split == Split.VALIDATION else set())
        if info and split in info.splits:
            needed |= set(info.splits[split].languages)
        for language in LANGUAGES:
            if language in needed and language not in rows:
                yield Problem(kind="missing-language", text="no items", split=split, language=language)


def single_rows(
    split: str, rows: Mapping[str, Sequence[CheckedRow]], *, is_dataset: bool
) -> Iterator[Problem]:
    """Yield rows that cannot be used, that repeat another, or that have bad characters."""
    known = repeats(rows) if is_dataset else frozenset()
    for language, here in rows.items():
        ids = [row.line["id"] for row in here]
        twice = [id_ for id_, number in Counter(ids).items() if number > 1]
        texts: dict[str, list[str]] = defaultdict(list)
        for row in here:
            if row.item:
                texts[row.item.prompt].append(row.line["id"])
        again = [id_ for same in texts.values() for id_ in same[1:] if id_ not in known]
        unusable = [row.line["id"] for row in here if row.item is None]
        for kind, text, which in (
            ("duplicate-id", "ids that come twice", twice),
            ("duplicate-text", "items with the same text as another", again),
            ("unusable", "the gold does not parse, or there is no question: left out everywhere", unusable),
            # An import normalises texts. Only in a finished data set is another form a problem.
            ("not-nfc", "not in NFC", _with(here, "not-nfc") if is_dataset else []),
            ("control-character", "control or replacement characters", _with(here, "control-character")),
        ):
            if which:
                yield _problem(kind, text, split, language, which)


def repeats(rows: Mapping[str, Sequence[CheckedRow]]) -> frozenset[str]:
    """Return ids of items that repeat another one in full, in every language.

    API-Bank's own test rows hold ten of them. A data set keeps them, since the published numbers count them.
    """
    found: list[set[str]] = []
    for here in rows.values():
        first: dict[tuple[str, str], str] = {}
        for row in here:
            if row.item:
                first.setdefault((row.item.prompt, row.item.response), row.line["id"])
        found.append({row.line["id"] for row in here if row.item} - {*first.values()})
    return frozenset(set.intersection(*found)) if found else frozenset()


def _with(rows: Sequence[CheckedRow], flaw: str) -> list[str]:
    return [row.line["id"] for row in rows if flaw in row.flaws]


def _problem(kind: str, text: str, split: str, language: str, ids: Sequence[str]) -> Problem:
    shown = tuple(ids[:NUM_EXAMPLES])
    return Problem(kind=kind, text=text, split=split, language=language, num=len(ids), examples=shown)


def parallel(split: str, rows: Mapping[str, Sequence[CheckedRow]]) -> Iterator[Problem]:
    """Yield ids that some languages lack."""
    ids = {language: dict.fromkeys(row.line["id"] for row in here) for language, here in rows.items()}
    everywhere: dict[str, None] = {}
    for some in ids.values():
        everywhere.update(some)
    for language, have in ids.items():
        if missing := [id_ for id_ in everywhere if id_ not in have]:
            yield _problem("misaligned", "ids of other languages that are not here", split, language, missing)


def golds(split: str, rows: Mapping[str, Sequence[CheckedRow]]) -> Iterator[Problem]:
    """Yield math items whose answer depends on the language."""
    golds = {
        language: {row.item.id: gold_number(row.item.gold) for row in here if row.item}
        for language, here in rows.items()
    }
    reference = golds.get("en") or next(iter(golds.values()), {})
    for language, here in golds.items():
        if differing := [id_ for id_, gold in here.items() if gold != reference.get(id_, gold)]:
            yield _problem("gold-differs", "another answer than in English", split, language, differing)


def translations(split: str, rows: Mapping[str, Sequence[CheckedRow]]) -> Iterator[Problem]:
    """Yield API calls that a translation changed in a way it must not."""
    english = {row.line["id"]: row.line for row in rows.get("en", ())}
    for language, here in rows.items():
        found: dict[str, list[str]] = defaultdict(list)
        for row in here if language != "en" else ():
            if original := english.get(row.line["id"]):
                for text in api_calling.problems(original, row.line):
                    found[text].append(row.line["id"])
        for text, ids in found.items():
            yield _problem("translation", text, split, language, ids)


_SAID = re.compile(r"[\W_]+")


def normal_text(text: str) -> str:
    """Return a text without case, spaces and punctuation, to find the same text elsewhere."""
    return _SAID.sub("", unicodedata.normalize("NFKC", text).casefold())


def overlaps(table: Table) -> Iterator[Problem]:
    """Yield ids and texts that are in two splits."""
    splits = [split for split in table if split != ROWS]
    for place, first in enumerate(splits):
        for second in splits[place + 1 :]:
            pair = f"{first}+{second}"
            ids = [
                {row.line["id"] for rows in table[split].values() for row in rows}
                for split in (first, second)
            ]
            if both := sorted(ids[0] & ids[1]):
                yield _problem("overlap-id", f"ids of both {first} and {second}", pair, "", both)
            # Two sources may number the same items differently, so ids alone do not reveal an overlap.
            for language in table[first].keys() & table[second].keys():
                texts = {normal_text(row.item.prompt) for row in table[first][language] if row.item}
                same = [
                    row.line["id"]
                    for row in table[second][language]
                    if row.item and normal_text(row.item.prompt) in texts
                ]
                if same:
                    text = f"items of {second} with the text of one of {first}"
                    yield _problem("overlap-text", text, pair, language, same)
