"""Checks parallel task data: what is wrong, what would be left out, how long items are. Changes nothing.

It works on a data set and on anything that can be imported. Tokenizers come in as functions.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from orchestrator.errors import UserError
from orchestrator.tasks import dataset, translation
from orchestrator.tasks.answers import gold_number
from orchestrator.tasks.base import LANGUAGES, Item, Split
from orchestrator.tasks.importing import FILES
from orchestrator.tasks.sources import Raw, Source, open_source

NUM_EXAMPLES = 3
CHARACTERS = "characters"
Measure = Callable[[Sequence[Item]], list[int]]
"""From items to the tokens of prompt, response and end, as `prepare` counts them."""


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Problem(_Frozen, frozen=True, kw_only=True):
    """Something wrong, with how often and where.

    Attributes:
        kind: of the problem, stable.
        text: for people.
        split: "" for all.
        language: "" for all.
        num: how often.
        examples: a few ids.
    """

    kind: str
    text: str
    split: str = ""
    language: str = ""
    num: int = 1
    examples: tuple[str, ...] = ()


class Length(_Frozen, frozen=True, kw_only=True):
    """How long the items of a split and language are."""

    tokenizer: str
    split: str
    language: str
    mean: float
    p95: int
    longest: int
    num_over_long: int


class SplitReport(_Frozen, frozen=True, kw_only=True):
    """How many rows there are, and how many ids every language can use."""

    split: str
    num_rows: dict[str, int]
    num_parallel: int


class Report(_Frozen, frozen=True, kw_only=True):
    """What a check found; `problems` empty means that all is well."""

    path: str
    task: str
    form: str
    max_length_tokens: int
    splits: tuple[SplitReport, ...]
    problems: tuple[Problem, ...]
    lengths: tuple[Length, ...]
    notes: tuple[str, ...] = ()


class Row(msgspec.Struct, frozen=True):
    """A line, its item if it can be used, and what is wrong with its characters."""

    line: Mapping[str, str]
    item: Item | None
    flaws: tuple[str, ...]


Table = dict[str, dict[str, list[Row]]]
"""Split to language to rows."""


def check(
    path: Path,
    *,
    task: str | None = None,
    languages: Sequence[str] = (),
    measures: Mapping[str, Measure] | None = None,
    max_length_tokens: int = 2048,
) -> Report:
    """Checks a data set, or a file or folder that could be imported.

    Args:
        path: of it.
        task: the benchmark; None for what the data set says, or the files look like.
        languages: that must be in every split.
        measures: name to tokenizer; None or empty for characters.
        max_length_tokens: beyond which `prepare` leaves an item out.

    Raises:
        UserError: it cannot be read.
    """
    path = path.expanduser()
    info = dataset.load(path) if dataset.is_dataset(path) else None
    name = info.task if info else (task or guess_task(path))
    source = open_source(path, name)
    table = _read(source, name)
    found = [*_of_description(path, info), *_languages(table, languages, info)]
    for split, rows in table.items():
        found += [*_rows(split, rows, is_dataset=info is not None), *_parallel(split, rows)]
        found += _golds(split, rows) if name == "math" else _translations(split, rows)
    found += _overlaps(table)
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
    return Report(
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
    """Returns the task whose sources a file or folder looks like.

    Raises:
        UserError: it is not there, or of no task.
    """
    for name in ("math", "api_calling"):
        try:
            first = next(open_source(path, name).rows(), None)
        except UserError:
            if not path.exists():
                raise
            continue
        if first is not None and ("question" in first.row) == (name == "math"):
            return name
    raise UserError(f"{path} looks like the data of no task", fix="--task math or --task api_calling")


def _read(source: Source, task: str) -> Table:
    table: Table = {}
    for raw in source.rows():
        if raw.language:
            line = source.line(raw)
            row = Row(line, _item(line, raw.language, task), tuple(_flaws(raw)))
            table.setdefault(raw.split or "rows", {}).setdefault(raw.language, []).append(row)
    order = [*Split, "rows"]
    return {
        split: {language: table[split][language] for language in LANGUAGES if language in table[split]}
        for split in sorted(table, key=order.index)
    }


def _item(line: Mapping[str, str], language: str, task: str) -> Item | None:
    item: Item | None = None if FILES[task].problem_of(line) else FILES[task].item_of(line, language)
    return item


def _flaws(raw: Raw) -> Iterator[str]:
    for value in raw.row.values():
        if isinstance(value, str):
            if not unicodedata.is_normalized("NFC", value):
                yield "not-nfc"
            if any(
                unicodedata.category(mark) == "Cc" for mark in value if mark < " " or "\x7f" <= mark < "\xa0"
            ):
                if any(mark not in "\n\r\t" for mark in value if unicodedata.category(mark) == "Cc"):
                    yield "control-character"
            if "\ufffd" in value:
                yield "control-character"


def _of_description(path: Path, info: dataset.DatasetInfo | None) -> Iterator[Problem]:
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


def _languages(table: Table, wanted: Sequence[str], info: dataset.DatasetInfo | None) -> Iterator[Problem]:
    trained = set(table.get(Split.TRAIN, {}))
    for split, rows in table.items():
        needed = set(wanted) | (trained if split == Split.VALIDATION else set())
        if info and split in info.splits:
            needed |= set(info.splits[split].languages)
        for language in LANGUAGES:
            if language in needed and language not in rows:
                yield Problem(kind="missing-language", text="no items", split=split, language=language)


def _rows(split: str, rows: Mapping[str, Sequence[Row]], *, is_dataset: bool) -> Iterator[Problem]:
    for language, here in rows.items():
        ids = [row.line["id"] for row in here]
        twice = [id_ for id_, number in Counter(ids).items() if number > 1]
        texts: dict[str, list[str]] = defaultdict(list)
        for row in here:
            if row.item:
                texts[row.item.prompt].append(row.line["id"])
        again = [id_ for same in texts.values() for id_ in same[1:]]
        unusable = [row.line["id"] for row in here if row.item is None]
        for kind, text, which in (
            ("duplicate-id", "ids that come twice", twice),
            ("duplicate-text", "items with the same text as another", again),
            ("unusable", "the gold does not parse, or there is no question: left out everywhere", unusable),
            ("not-nfc", "not in NFC", _with(here, "not-nfc") if is_dataset else []),
            ("control-character", "control or replacement characters", _with(here, "control-character")),
        ):
            if which:
                yield _problem(kind, text, split, language, which)


def _with(rows: Sequence[Row], flaw: str) -> list[str]:
    return [row.line["id"] for row in rows if flaw in row.flaws]


def _problem(kind: str, text: str, split: str, language: str, ids: Sequence[str]) -> Problem:
    shown = tuple(ids[:NUM_EXAMPLES])
    return Problem(kind=kind, text=text, split=split, language=language, num=len(ids), examples=shown)


def _parallel(split: str, rows: Mapping[str, Sequence[Row]]) -> Iterator[Problem]:
    ids = {language: dict.fromkeys(row.line["id"] for row in here) for language, here in rows.items()}
    everywhere: dict[str, None] = {}
    for some in ids.values():
        everywhere.update(some)
    for language, have in ids.items():
        if missing := [id_ for id_ in everywhere if id_ not in have]:
            yield _problem("misaligned", "ids of other languages that are not here", split, language, missing)


def _golds(split: str, rows: Mapping[str, Sequence[Row]]) -> Iterator[Problem]:
    golds = {
        language: {row.item.id: gold_number(row.item.gold) for row in here if row.item}
        for language, here in rows.items()
    }
    reference = golds.get("en") or next(iter(golds.values()), {})
    for language, here in golds.items():
        if differing := [id_ for id_, gold in here.items() if gold != reference.get(id_, gold)]:
            yield _problem("gold-differs", "another answer than in English", split, language, differing)


def _translations(split: str, rows: Mapping[str, Sequence[Row]]) -> Iterator[Problem]:
    english = {row.line["id"]: row.line for row in rows.get("en", ())}
    for language, here in rows.items():
        found: dict[str, list[str]] = defaultdict(list)
        for row in here if language != "en" else ():
            if original := english.get(row.line["id"]):
                for text in translation.problems(original, row.line):
                    found[text].append(row.line["id"])
        for text, ids in found.items():
            yield _problem("translation", text, split, language, ids)


_SAID = re.compile(r"[\W_]+")


def normal_text(text: str) -> str:
    """Returns a text without case, spaces and punctuation, to find it again elsewhere."""
    return _SAID.sub("", unicodedata.normalize("NFKC", text).casefold())


def _overlaps(table: Table) -> Iterator[Problem]:
    splits = [split for split in table if split != "rows"]
    for place, first in enumerate(splits):
        for second in splits[place + 1 :]:
            pair = f"{first}+{second}"
            ids = [
                {row.line["id"] for rows in table[split].values() for row in rows}
                for split in (first, second)
            ]
            if both := sorted(ids[0] & ids[1]):
                yield _problem("overlap-id", f"ids of both {first} and {second}", pair, "", both)
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
                        num_over_long=sum(x > limit for x in lengths) if name != CHARACTERS else 0,
                    )


def _split_report(split: str, rows: Mapping[str, Sequence[Row]]) -> SplitReport:
    usable = [{row.item.id for row in here if row.item} for here in rows.values()]
    return SplitReport(
        split=split,
        num_rows={language: len(here) for language, here in rows.items()},
        num_parallel=len(set.intersection(*usable)) if usable else 0,
    )


def _notes(table: Table, info: dataset.DatasetInfo | None) -> Iterator[str]:
    trained, tested = table.get(Split.TRAIN, {}), table.get(Split.TEST, {})
    if trained and tested and (untested := [code for code in trained if code not in tested]):
        yield f"no test items in {', '.join(untested)}: these languages can be trained on, not tested"
    if info is not None:
        for reason, number in info.left_out.items():
            yield f"left out at the import, {reason}: {number:,} ids"
    else:
        flawed = sum(
            "not-nfc" in row.flaws for rows in table.values() for here in rows.values() for row in here
        )
        if flawed:
            yield f"{flawed:,} rows are not in NFC; they are normalised when they are read"
