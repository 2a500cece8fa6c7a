"""The math task: word problems with a worked answer, scored by the number at their end (study section 3).

This module owns the files of the task, its generated items and `MATH`. `answers` finds the answer in a
text; `phrases` holds the prompt and the answer sentences.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.tasks import answers, base, phrases
from orchestrator.tasks.answers import extract, gold_number
from orchestrator.tasks.base import LANGUAGES, Difference, Item, Line, Split, check_language, check_split
from orchestrator.tasks.files import FileTask
from orchestrator.tasks.phrases import STEP, TOTAL, answer_sentence, prompt
from orchestrator.tasks.sources import (
    JSON,
    Place,
    Raw,
    Source,
    SourceTable,
    field,
    tables_in,
    tables_of,
    text_lines,
)


def line_of(row: Mapping[str, Any], *, id_: str, language: str, where: str) -> dict[str, str]:
    """Return a row as a line of a data set.

    Published data sets store the answer in different fields. The gold is the first of these that the row
    has:

    1. `gold`, or `answer_number` of MGSM's rows on the hub, whose `answer` may be null;
    2. an `answer` that is only a number;
    3. the text after ``####`` in `answer` (GSM8K);
    4. the number that `answer` gives at its end.

    Raises:
        UserError: the row has no question, or no field for an answer.
    """
    question = field(row, "question", where=where)
    gold = next((text for key in _GOLD if (text := _number_text(row.get(key)))), "")
    answer = _number_text(row.get("answer"))
    if isinstance(row.get("answer"), str):
        answer = field(row, "answer", where=where).strip()
    elif not any(key in row for key in ("answer", *_GOLD)):
        field(row, "answer", where=where)
    if gold:
        is_response = isinstance(row.get("answer"), str) and ("gold" in row or _is_worked(answer))
        return {"id": id_, "question": question, "answer": answer if is_response else "", "gold": gold}
    if not _is_worked(answer):
        return {"id": id_, "question": question, "answer": "", "gold": answer}
    if "####" not in answer:
        number = extract(answer, language)
        gold = "" if number is None else f"{number.normalize():f}"
        return {"id": id_, "question": question, "answer": answer, "gold": gold}
    worked, _, gold = answer.partition("####")
    first_line = gold.strip().partition("\n")[0].strip().removesuffix(".")
    # GSM8K's annotations (``<<2*3=6>>``) are meant for a calculator, so the model should not learn them.
    worked = _ANNOTATION.sub("", worked).strip()
    if worked and gold:
        worked = f"{worked}\n{answer_sentence(first_line, language)}"
    return {"id": id_, "question": question, "answer": worked, "gold": first_line}


_GOLD = ("gold", "answer_number")
_BARE_NUMBER = re.compile(r"[\d.,\s'’$€£¥₹%+−-]*")


def _number_text(value: Any) -> str:
    """Return a number, or text that may be one, as a TSV file would contain it; "" for any other value."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    return str(int(value)) if value == int(value) else repr(value)


def _is_worked(answer: str) -> bool:
    """Return whether an answer is more than a number."""
    return not _BARE_NUMBER.fullmatch(answer)


MAX_LINES = 100
"""Maximum number of lines of one quoted question (our choice)."""


def _tsv(path: Path, language: str) -> Iterator[dict[str, str]]:
    """Yield the rows of MGSM: question and answer, as published or as a spreadsheet saves them.

    A spreadsheet quotes texts, may end rows with empty cells, and may put column names into the first row.
    """
    names: list[str] = []
    skipped = 0  # lines that begin no row: the column names, and the continuations of quoted texts
    for number, text, num_lines in _logical_lines(path):
        cells = [_unquoted(cell) for cell in text.rstrip("\t ").split("\t")]
        lowered = [cell.strip().lower() for cell in cells]
        if number == 1 and "question" in lowered and not {"answer", *_GOLD}.isdisjoint(lowered):
            names, skipped = lowered, skipped + 1
            continue
        id_, where = str(number - skipped), f"{path}:{number}"
        skipped += num_lines - 1
        if "\t" not in text:
            raise UserError("no tab between question and answer", where=where)
        if names:
            row = {"answer": "", **dict(zip(names, cells, strict=False))}
            yield line_of(row, id_=row.get("id") or id_, language=language, where=where)
            continue
        question, gold = (cells[0], "") if len(cells) == 1 else ("\t".join(cells[:-1]), cells[-1])
        yield {"id": id_, "question": question, "answer": "", "gold": gold.strip()}


def _logical_lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yield the number, the text and the number of lines of each row.

    A quoted text may contain line breaks. An odd number of quotes shows that the row continues.
    """
    lines = list(text_lines(path))
    at = 0
    while at < len(lines):
        number, text = lines[at]
        num_lines = 1
        if text.startswith('"') and text.count('"') % 2:
            for more in range(at + 1, min(at + MAX_LINES, len(lines))):
                whole = "\n".join(line for _, line in lines[at : more + 1])
                if whole.count('"') % 2 == 0 and '"\t' in whole:
                    text, num_lines = whole, more + 1 - at
                    break
        yield number, text, num_lines
        at += num_lines


def _unquoted(cell: str) -> str:
    """Return a cell without the quotes of a spreadsheet, which doubles the quotes within."""
    bare = cell.strip()
    inner = bare[1:-1]
    is_quoted = len(bare) > 1 and bare[0] == bare[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else cell


_ANNOTATION = re.compile(r"<<[^<>]*>>")


UNITS = (
    "duration-second",
    "duration-minute",
    "duration-hour",
    "duration-day",
    "duration-week",
    "duration-month",
    "duration-year",
    "length-centimeter",
    "length-meter",
    "length-kilometer",
    "length-mile",
    "length-inch",
    "mass-gram",
    "mass-kilogram",
    "volume-liter",
    "digital-megabyte",
)
"""CLDR units of the generated items. Every language has a distinct name for each."""

PAIRS = tuple((a, b) for a in range(1, 10) for b in range(1, 10))
"""The summands of the generated items, small enough for a tiny model to learn (our choice)."""


extract_answer = extract
"""The number that a generated text gives as its answer; see `answers.extract`."""


def _generated(a: int, b: int, unit: str, language: str) -> Item:
    first, second = (phrases.unit(number, unit, language) for number in (a, b))
    question = TOTAL[language].format(phrases.both(first, second, language))
    step = STEP.get(language, "{}. ").format(f"{a} + {b} = {a + b}")
    return Item(
        id=f"{unit}.{a}.{b}",
        language=language,
        prompt=prompt(question, language),
        response=step + answer_sentence(str(a + b), language),
        gold=str(a + b),
    )


HUB_ID = "laihuiyuan/mCoT-MATH"

_LANGUAGE = ("lang", "language")
_ID = ("id", "idx", "item_id")
_BOTH = ("lang-id", "lang_id")
_QUESTION = ("question", "query", "instruction")
_ANSWER = ("answer", "response", "output")


def is_row(row: Mapping[str, Any]) -> bool:
    """Return whether a row has the fields of mCoT-MATH."""
    has_language = any(key in row for key in (*_LANGUAGE, *_BOTH))
    return has_language and any(key in row for key in _QUESTION) and any(key in row for key in _ANSWER)


def place_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the language of a row, "" if it is not one of ours, and the id of its item, "" for none."""
    for key in _BOTH:
        if isinstance(row.get(key), str):
            # Both orders occur: ``en-17`` and ``17-en``.
            first, _, second = row[key].partition("-")
            language, id_ = (first, second) if first in LANGUAGES else (second, first)
            if language in LANGUAGES:
                return language, id_
    language = next((str(row[key]) for key in _LANGUAGE if key in row), "").lower()
    id_ = next((str(row[key]) for key in _ID if row.get(key) is not None), "")
    return language if language in LANGUAGES else "", id_


def mcot_line_of(row: Mapping[str, Any], *, id_: str, language: str, where: str) -> dict[str, str]:
    """Return a row of mCoT-MATH as a line of a data set. Its gold is the number that the answer gives.

    Raises:
        UserError: the row has no question or no answer.
    """
    question = field(row, *_QUESTION, where=where)
    answer = field(row, *_ANSWER, where=where).strip()
    number = extract(answer, language)
    gold = "" if number is None else f"{number.normalize():f}"
    return {"id": id_, "question": _bare(question), "answer": answer, "gold": gold}


def _bare(question: str) -> str:
    """Return a question without the prompt that may already surround it."""
    question = question.strip()
    if question.startswith("Question:\n"):
        question = question.removeprefix("Question:\n").rpartition("\nAnswer:")[0] or question
    return question.strip()


def mcot_source(tables: Sequence[SourceTable], name: str, paths: Sequence[Path] = ()) -> Source | None:
    """Return tables of rows in mCoT-MATH's form, or of one language each; None if rows have another form."""
    first = next((row for table in tables for _, row in table.rows()), None)
    if not first or not (tables[0].language or is_row(first)):
        return None

    def place(table: SourceTable, row: Mapping[str, Any]) -> tuple[str, str]:
        return (table.language, MATH.id_of(row, "")) if table.language else place_of(row)

    def rows() -> Iterator[Raw]:
        for table in tables:
            for number, row in table.rows():
                language, id_ = place(table, row)
                yield Raw(table.split, language, id_, row, f"{table.name}, row {number}")

    def line(raw: Raw) -> dict[str, str]:
        convert = mcot_line_of if is_row(raw.row) else line_of
        return convert(raw.row, id_=raw.id, language=raw.language, where=raw.where)

    by_place, note = not place(tables[0], first)[1], "aligned by id"
    if by_place:
        note = "aligned by place within each language and checked by equal answers"
    return Source("mcot", name, tuple(paths), rows, line, note, answer=gold_of, by_place=by_place)


def gold_of(line: Line) -> Decimal | None:
    """Return the gold number of a line, which must be the same in every language."""
    return gold_number(line["gold"])


class MathTask(FileTask):
    """The math task; see `orchestrator.tasks.base.Task`."""

    name = "math"
    in_tiny_models = True
    names = {
        code: (f"mgsm_{code}.tsv", f"{code}.jsonl", *(("train.jsonl", "test.jsonl") if code == "en" else ()))
        for code in LANGUAGES
    }
    published = {
        "train.jsonl": Split.TRAIN,
        "test.jsonl": Split.TEST,
        **{f"mgsm_{code}.tsv": Split.TEST for code in LANGUAGES},
    }
    releases = {HUB_ID: (10_000, 200), "juletxara/mgsm": (None, 0)}
    reasons = {
        "there is no answer": "no answer in a language",
        "the question is empty": "no question in a language",
    }
    description = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")

    def generate(self, split: str, language: str, num_items: int, seed: int = 0) -> list[Item]:
        """Return sums of two numbers from 1 to 9 in units: ``3 hours and 4 hours``; see `Task.generate`."""
        check_language(language)
        rows = base.combinations(
            check_split(split), [len(UNITS)] * len(PAIRS), num_items=num_items, seed=seed
        )
        return [_generated(*PAIRS[row.group], UNITS[row.variant], language) for row in rows]

    def is_correct(self, text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
        """Return whether the number of a generated text equals the gold number; see `Task.is_correct`."""
        wanted = gold_number(gold)
        return wanted is not None and extract(text, language, truncated=truncated) == wanted

    def stop(self, text: str) -> str:
        """Return the text up to the end of its answer; see `answers.cut`."""
        return answers.cut(text)

    def line_of(self, row: Mapping[str, Any], *, id_: str, language: str, where: str) -> dict[str, str]:
        """Return a row of GSM8K, MGSM or mCoT-MATH as a line of a data set; see `Task.line_of`."""
        read = mcot_line_of if is_row(row) and "question" not in row else line_of
        return read(row, id_=id_, language=language, where=where)

    def item_of(self, line: Line, language: str) -> Item:
        """Return a line with the study's prompt around its question; see `Task.item_of`."""
        return Item(
            id=line["id"],
            language=language,
            prompt=prompt(line["question"], language),
            response=line["answer"] or answer_sentence(line["gold"], language),
            gold=line["gold"],
        )

    def problem_of(self, line: Line) -> str:
        """Return why a line cannot be used; see `Task.problem_of`."""
        if not line["gold"]:
            return "there is no answer"
        if gold_number(line["gold"]) is None:
            return f"the answer {line['gold']!r} is not one number"
        return "" if line["question"].strip() else "the question is empty"

    def id_of(self, row: Mapping[str, Any], place: str) -> str:
        """Return the id of a row, the same for 1, 1.0 and ``"1"``, or its place if it has none."""
        return _number_text(row.get("id")) or place

    def lines(self, path: Path, language: str) -> Iterator[dict[str, str]]:
        """Yield the rows of MGSM's files, or of JSON lines; see `Task.lines`."""
        return _tsv(path, language) if path.suffix == ".tsv" else super().lines(path, language)

    def raws(self, place: Place) -> Iterator[Raw]:
        """Yield the rows of a file as they are, with MGSM's ids apart from those that also count from 1."""
        if place.path.suffix != ".tsv":
            yield from super().raws(place)
            return
        for line in _tsv(place.path, place.language):
            yield Raw(place.split, place.language, f"mgsm-{line['id']}", line, f"{place.path}:{line['id']}")

    def source(self, path: Path) -> Source | None:
        """Return files with known names as a source, or else files with the rows of mCoT-MATH."""
        if path.is_file():
            return self.release([path], path.name, tables_in(path))
        files = [file for file in sorted(path.rglob("*.*")) if file.suffix in (*JSON, ".parquet")]
        return super().source(path) or mcot_source(tables_in(path), path.name, files)

    def source_of(self, found: Sequence[Place], name: str) -> Source:
        """Return files with known splits and languages as a source."""
        is_mgsm = all(place.path.suffix == ".tsv" for place in found)
        return super().source_of(found, name)._replace(form="mgsm" if is_mgsm else "worked")

    def release(self, paths: Sequence[Path], name: str, tables: Sequence[SourceTable] = ()) -> Source | None:
        """Return files with known names as a source, or else files or tables with the rows of mCoT-MATH."""
        found = [
            Place(path, self.published.get(known), language)
            for language, names in self.names.items()
            for known in names
            for path in paths
            if path.name == known
        ]
        return self.source_of(found, name) if found else mcot_source(tables or tables_of(paths), name, paths)

    def looks_like(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row has a question."""
        return "question" in row

    def differences(self, lines: Mapping[str, Sequence[Line]]) -> Iterator[Difference]:
        """Yield items whose answer depends on the language."""
        golds = {
            language: {line["id"]: gold_of(line) for line in here if not self.problem_of(line)}
            for language, here in lines.items()
        }
        reference = golds.get("en") or next(iter(golds.values()), {})
        for language, here in golds.items():
            if differing := [id_ for id_, gold in here.items() if gold != reference.get(id_, gold)]:
                yield Difference("gold-differs", "another answer than in English", language, differing)


MATH = MathTask()
"""The math task."""

is_correct = MATH.is_correct
