"""The math task's files: lines of a data set, worked word problems (GSM8K, gsm-symbolic), and MGSM as TSV.

A line of a data set has a `gold`, and its `answer` is what a model learns to write, word for word; an empty
one stands for the answer sentence alone. Without `gold` a line is GSM8K's: the answer ends in ``#### 18``.
Owns their names and how a row becomes an item. Which ids a split takes is `files`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.tasks.answers import gold_number
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
    """Returns a row as a line of a data set.

    Raises:
        UserError: the row has no question or answer.
    """
    question, answer = (field(row, key, where=where) for key in ("question", "answer"))
    if "gold" in row:
        gold = field(row, "gold", where=where).strip()
        return {"id": id_, "question": question, "answer": answer.strip(), "gold": gold}
    worked, _, gold = answer.partition("####")
    first_line = gold.strip().partition("\n")[0].strip()
    worked = _ANNOTATION.sub("", worked).strip()
    if worked and gold:
        worked = f"{worked}\n{answer_sentence(first_line, language)}"
    return {"id": id_, "question": question, "answer": worked, "gold": first_line}


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
        for number, text in text_lines(path):
            question, tab, gold = text.rpartition("\t")
            if not tab:
                raise UserError("no tab between question and answer", where=f"{path}:{number}")
            yield {"id": str(number), "question": question, "answer": "", "gold": gold.strip()}
    else:
        for number, row in json_lines(path):
            id_ = str(row.get("id", number))
            yield line_of(row, id_=id_, language=language, where=f"{path}:{number}")


_ANNOTATION = re.compile(r"<<[^<>]*>>")


def problem_of(line: Mapping[str, str]) -> str:
    """Says why a line cannot be used, or ""."""
    if gold_number(line["gold"]) is None:
        return f"the answer {line['gold']!r} is not one number"
    return "" if line["question"].strip() else "the question is empty"
