"""Check parallel task data: report what is wrong, what would be left out, and how long the items are.

The check works on a data set and on everything that can be imported. It changes nothing. Tokenizers are
passed in as functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.tasks import checks, dataset
from orchestrator.tasks.base import LANGUAGES, Item, Split, Strict
from orchestrator.tasks.checks import ROWS, CheckedRow, Problem, Table
from orchestrator.tasks.importing import FILES
from orchestrator.tasks.sources import Source, open_source

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
    path = path.expanduser()
    info = dataset.load(path) if dataset.is_dataset(path) else None
    name = info.task if info else (task or guess_task(path))
    source = open_source(path, name)
    table = _read(source, name)
    found = [*checks.description(path, info), *checks.languages(table, languages, info)]
    for split, rows in table.items():
        found += [
            *checks.single_rows(split, rows, is_dataset=info is not None),
            *checks.parallel(split, rows),
        ]
        found += checks.golds(split, rows) if name == "math" else checks.translations(split, rows)
    found += checks.overlaps(table)
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
    # The first row decides. Both tasks open JSON files, but only rows of math have a question.
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
        # mCoT-MATH also has languages that the study does not use.
        if raw.language:
            line = source.line(raw)
            row = CheckedRow(line, _item(line, raw.language, task), tuple(checks.flaws(raw.row)))
            table.setdefault(raw.split or ROWS, {}).setdefault(raw.language, []).append(row)
    order = [*Split, ROWS]
    return {
        split: {language: table[split][language] for language in LANGUAGES if language in table[split]}
        for split in sorted(table, key=order.index)
    }


def _item(line: Mapping[str, str], language: str, task: str) -> Item | None:
    item: Item | None = None if FILES[task].problem_of(line) else FILES[task].item_of(line, language)
    return item


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
    if info is not None:
        for reason, number in info.left_out.items():
            yield f"left out at the import, {reason}: {number:,} ids"
        for split, rows in table.items():
            if again := checks.repeats(rows):
                yield f"{len(again)} {split} items repeat another in full in every language, as in the source"
    else:
        flawed = sum(
            "not-nfc" in row.flaws for rows in table.values() for here in rows.values() for row in here
        )
        if flawed:
            yield f"{flawed:,} rows are not in NFC; they are normalised when they are read"
