"""Check parallel task data: report what is wrong, what would be left out, and how long the items are.

The check works on a data set and on everything that can be imported. It changes nothing. Tokenizers are
passed in as functions. Each single check compares rows of all languages and yields problems.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.errors import UserError, counted, home_expanded
from orchestrator.registry import TASKS, known, lookup
from orchestrator.tasks import dataset
from orchestrator.tasks.base import LANGUAGES, Item, Split, Strict, Task
from orchestrator.tasks.sources import Source, open_source

NUM_EXAMPLES = 3
ROWS = "rows"
"""Stands for the split of rows whose source names none."""


class Problem(Strict, frozen=True, kw_only=True):
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

CHARACTERS = "characters"
Measure = Callable[[Sequence[Item]], list[int]]
"""A function from items to the token counts of prompt, response and end, as `prepare` counts them."""


class Length(Strict, frozen=True, kw_only=True):
    """The lengths of the items of a split and language, in tokens of `tokenizer` or in characters.

    Attributes:
        tokenizer: the name of the tokenizer, or `CHARACTERS`.
        split: the split.
        language: the language.
        mean: the mean length.
        p95: the 95th percentile.
        longest: the greatest length.
        num_over_long: the number of items above the limit; 0 if characters are counted.
    """

    tokenizer: str
    split: str
    language: str
    mean: float
    p95: int
    longest: int
    num_over_long: int


class SplitReport(Strict, frozen=True, kw_only=True):
    """The number of rows by language, and the number of ids that are usable in every language."""

    split: str
    num_rows: dict[str, int]
    num_parallel: int


class CheckReport(Strict, frozen=True, kw_only=True):
    """The result of a check. Without `problems`, the data is in order."""

    path: str
    task: str
    form: str
    max_length_tokens: int
    splits: tuple[SplitReport, ...]
    problems: tuple[Problem, ...]
    lengths: tuple[Length, ...]
    notes: tuple[str, ...] = ()


def check(
    path: Path,
    *,
    task: str | None = None,
    languages: Sequence[str] = (),
    measures: Mapping[str, Measure] | None = None,
    max_length_tokens: int = 2048,
) -> CheckReport:
    """Check a data set, or a file or folder that could be imported.

    Args:
        path: the data set, file or folder.
        task: the benchmark. None for the one that the data set names, or that the files look like.
        languages: languages that must be in every split.
        measures: map from name to tokenizer; None or empty to count characters.
        max_length_tokens: length above which `prepare` leaves an item out.

    Returns:
        The report.

    Raises:
        UserError: the data cannot be read.
    """
    path = home_expanded(path)
    info = dataset.load(path) if dataset.is_dataset(path) else None
    name = info.task if info else (task or guess_task(path))
    benchmark: Task = lookup(TASKS, name, kind="task")
    source = open_source(path, name)
    table = _read(source, benchmark)
    found = [*changed_files(path, info), *missing_languages(table, languages, info)]
    for split, rows in table.items():
        found += [*single_rows(split, rows, is_dataset=info is not None), *missing_ids(split, rows)]
        lines = {language: [row.line for row in here] for language, here in rows.items()}
        found += (
            _problem(one.kind, one.text, split, one.language, one.ids) for one in benchmark.differences(lines)
        )
    found += overlaps(table)
    lengths = list(_lengths(table, measures or {CHARACTERS: _characters}, max_length_tokens))
    found += [
        Problem(
            kind="over-long",
            text=f"longer than {max_length_tokens} tokens of {one.tokenizer}: would be left out",
            split=one.split,
            language=one.language,
            num=one.num_over_long,
        )
        for one in lengths
        if one.num_over_long
    ]
    return CheckReport(
        path=str(path),
        task=name,
        form="data set" if info else source.form,
        max_length_tokens=max_length_tokens,
        splits=tuple(_split_report(split, rows) for split, rows in table.items()),
        problems=tuple(found),
        lengths=tuple(lengths),
        notes=tuple(_notes(table, info)),
    )


def guess_task(path: Path) -> str:
    """Return the task whose sources a file or folder resembles.

    Raises:
        UserError: it does not exist, or it resembles no task.
    """
    for name in known(TASKS):
        task: Task = lookup(TASKS, name, kind="task")
        try:
            first = next(open_source(path, name).rows(), None)
        except UserError:
            if not path.exists():
                raise
            continue
        if first is not None and task.looks_like(first.row):
            return name
    options = " or ".join(f"--task {name}" for name in known(TASKS))
    raise UserError(f"{path} looks like the data of no task", fix=options)


def _read(source: Source, task: Task) -> Table:
    table: Table = {}
    for raw in source.rows():
        # mCoT-MATH also has languages that the study does not use.
        if raw.language:
            line = source.line(raw)
            item = None if task.problem_of(line) else task.item_of(line, raw.language)
            row = CheckedRow(line, item, tuple(flaws(raw.row)))
            table.setdefault(raw.split or ROWS, {}).setdefault(raw.language, []).append(row)
    order = [*Split, ROWS]
    return {
        split: {language: table[split][language] for language in LANGUAGES if language in table[split]}
        for split in sorted(table, key=order.index)
    }


def _characters(items: Sequence[Item]) -> list[int]:
    return [len(item.prompt) + len(item.response) for item in items]


def _lengths(table: Table, measures: Mapping[str, Measure], limit: int) -> Iterator[Length]:
    for name, measure in measures.items():
        for split, rows in table.items():
            for language, here in rows.items():
                if lengths := sorted(measure([row.item for row in here if row.item])):
                    yield Length(
                        tokenizer=name,
                        split=split,
                        language=language,
                        mean=round(sum(lengths) / len(lengths), 1),
                        p95=lengths[math.ceil(0.95 * len(lengths)) - 1],
                        longest=lengths[-1],
                        # The limit counts tokens, so it cannot be compared with characters.
                        num_over_long=sum(x > limit for x in lengths) if name != CHARACTERS else 0,
                    )


def _split_report(split: str, rows: Mapping[str, Sequence[CheckedRow]]) -> SplitReport:
    usable = [{row.item.id for row in here if row.item} for here in rows.values()]
    return SplitReport(
        split=split,
        num_rows={language: len(here) for language, here in rows.items()},
        num_parallel=len(set.intersection(*usable)) if usable else 0,
    )


def _notes(table: Table, info: dataset.DatasetInfo | None) -> Iterator[str]:
    """Yield remarks that are no problems, such as languages that have no test items."""
    trained, tested = table.get(Split.TRAIN, {}), table.get(Split.TEST, {})
    if trained and tested and (untested := [code for code in trained if code not in tested]):
        yield f"no test items in {', '.join(untested)}: these languages can be trained on, not tested"
    for split, rows in table.items():
        yield from dataset.copies_of_english(split, {code: [row.line for row in rows[code]] for code in rows})
    if info is not None:
        for reason, number in info.left_out.items():
            yield f"left out at the import, {reason}: {counted(number, 'id')}"
        for split, rows in table.items():
            if again := repeats(rows):
                yield f"{len(again)} {split} items repeat another in full in every language, as in the source"
    else:
        flawed = sum(
            "not-nfc" in row.flaws for rows in table.values() for here in rows.values() for row in here
        )
        if flawed:
            yield f"{counted(flawed, 'row')} not in NFC, to be normalised when read"


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")


def flaws(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the kinds of bad characters in a row."""
    for value in row.values():
        if isinstance(value, str):
            if not unicodedata.is_normalized("NFC", value):
                yield "not-nfc"
            if _CONTROL.search(value):
                yield "control-character"


def changed_files(path: Path, info: dataset.DatasetInfo | None) -> Iterator[Problem]:
    """Yield differences between a data set's files and its description."""
    if info is None:
        return
    task: Task = lookup(TASKS, info.task, kind="task")
    if what := dataset.changes(path, info):
        yield Problem(kind="changed", text=f"{what}: changed since it was imported")
    for name, split in info.splits.items():
        for language in split.languages:
            file = dataset.path_of(path, name, language)
            if file.is_file():
                ids = tuple(line["id"] for line in task.lines(file, language))
                if ids != split.ids:
                    text = f"the ids are not those of {dataset.FILE}"
                    odd = tuple(sorted(set(ids) ^ set(split.ids))[:NUM_EXAMPLES])
                    yield Problem(kind="other-ids", text=text, split=name, language=language, examples=odd)


def missing_languages(
    table: Table, wanted: Sequence[str], info: dataset.DatasetInfo | None
) -> Iterator[Problem]:
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


def missing_ids(split: str, rows: Mapping[str, Sequence[CheckedRow]]) -> Iterator[Problem]:
    """Yield ids that some languages lack."""
    ids = {language: dict.fromkeys(row.line["id"] for row in here) for language, here in rows.items()}
    everywhere: dict[str, None] = {}
    for some in ids.values():
        everywhere.update(some)
    for language, have in ids.items():
        if missing := [id_ for id_ in everywhere if id_ not in have]:
            yield _problem("misaligned", "ids of other languages that are not here", split, language, missing)


_NOT_LETTERS = re.compile(r"[\W_]+")


def normal_text(text: str) -> str:
    """Return a text without case, spaces and punctuation, to find the same text elsewhere."""
    return _NOT_LETTERS.sub("", unicodedata.normalize("NFKC", text).casefold())


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
