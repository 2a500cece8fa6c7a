"""The math task's files: lines of a data set, worked word problems (GSM8K, gsm-symbolic), and MGSM as TSV.

A line of a data set has a `gold`, and its `answer` is what a model learns to write, word for word; an empty
one stands for the answer sentence alone. Without `gold` a line is GSM8K's, whose answer ends in ``#### 18``,
or MGSM's of the hub; see `line_of`.
Owns their names and how a row becomes an item. Which ids a split takes is `files`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.tasks.answers import extract, gold_number
from orchestrator.tasks.base import LANGUAGES, Item, Split
from orchestrator.tasks.files import Row, field, json_lines, text_lines
from orchestrator.tasks.phrases import answer_sentence, prompt


def names(split: Split) -> Mapping[str, Sequence[str]]:
    """Returns language to the names that its file may have, the preferred first."""
    files = {language: [f"{language}.jsonl"] for language in LANGUAGES}
    if split is Split.TEST:
        files = {language: [f"mgsm_{language}.tsv", *files[language]] for language in LANGUAGES}
    files["en"].append("test.jsonl" if split is Split.TEST else "train.jsonl")  # GSM8K as it is published
    return files


def rows(path: Path, language: str) -> list[Row]:
    """Returns the rows of a file, those that cannot be used with the reason.

    Raises:
        UserError: a row has not the form of such a file.
    """
    return [_row(line, language) for line in lines(path, language)]


def _row(line: Mapping[str, str], language: str) -> Row:
    problem = problem_of(line)
    return Row(None if problem else item_of(line, language), line["id"], problem)


def line_of(row: Mapping[str, Any], *, id_: str, language: str, where: str) -> dict[str, str]:
    """Return a row as a line of a data set.

    The gold is what `gold` says, or `answer_number` (MGSM's rows on the hub, whose `answer` may be null), or
    an `answer` that is a number, or what stands after ``####`` (GSM8K), or the number that an answer ends in.

    Raises:
        UserError: the row has no question, or nothing that could be an answer.
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
    worked = _ANNOTATION.sub("", worked).strip()
    if worked and gold:
        worked = f"{worked}\n{answer_sentence(first_line, language)}"
    return {"id": id_, "question": question, "answer": worked, "gold": first_line}


_GOLD = ("gold", "answer_number")
_BARE_NUMBER = re.compile(r"[\d.,\s'’$€£¥₹%+−-]*")


def _number_text(value: Any) -> str:
    """Return a number, or a text that may be one, as it would stand in a TSV; "" for anything else."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    return str(int(value)) if value == int(value) else repr(value)


def id_of(row: Mapping[str, Any], place: str) -> str:
    """Return the id that a row has, the same for 1, 1.0 and ``"1"``, or its place where it has none."""
    return _number_text(row.get("id")) or place


def _is_worked(answer: str) -> bool:
    return not _BARE_NUMBER.fullmatch(answer)


def item_of(line: Mapping[str, str], language: str) -> Item:
    """Returns a line of a data set as an item."""
    return Item(
        id=line["id"],
        language=language,
        prompt=prompt(line["question"], language),
        response=line["answer"] or answer_sentence(line["gold"], language),
        gold=line["gold"],
    )


def lines(path: Path, language: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a file as lines of a data set, usable or not.

    Raises:
        UserError: a row has not the form of such a file.
    """
    if path.suffix == ".tsv":
        yield from _tsv(path, language)
    else:
        for number, row in json_lines(path):
            id_ = id_of(row, str(number))
            yield line_of(row, id_=id_, language=language, where=f"{path}:{number}")


MAX_LINES = 100
"""Lines of one quoted question, at most (ours)."""


def _tsv(path: Path, language: str) -> Iterator[dict[str, str]]:
    """Yield the rows of MGSM: question and answer, as published or as a spreadsheet writes them.

    A spreadsheet quotes texts, ends rows in empty cells, and may put names into the first row.
    """
    names: list[str] = []
    skipped = 0  # lines that are no row: names, and those that a quoted text goes on in
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
    """Yield number, text and number of lines of each row: a quoted text may hold line breaks."""
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
    """Return a cell without the quotes of a spreadsheet, in which its own quotes are doubled."""
    bare = cell.strip()
    inner = bare[1:-1]
    is_quoted = len(bare) > 1 and bare[0] == bare[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else cell


_ANNOTATION = re.compile(r"<<[^<>]*>>")


def problem_of(line: Mapping[str, str]) -> str:
    """Say why a line cannot be used, or ""."""
    if not line["gold"]:
        return "there is no answer"
    if gold_number(line["gold"]) is None:
        return f"the answer {line['gold']!r} is not one number"
    return "" if line["question"].strip() else "the question is empty"
