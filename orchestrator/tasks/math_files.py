"""The math task's files: worked word problems as JSON lines (GSM8K, gsm-symbolic), and MGSM as TSV.

Owns their names and how a row becomes an item. Which ids a split takes is `files`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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
    return list(_mgsm(path, language) if path.suffix == ".tsv" else _worked(path, language))


def _mgsm(path: Path, language: str) -> Iterator[Row]:
    for number, line in text_lines(path):
        question, tab, gold = line.rpartition("\t")
        if not tab:
            raise UserError("no tab between question and answer", where=f"{path}:{number}")
        yield _row(str(number), language, question, "", gold.strip())


_ANNOTATION = re.compile(r"<<[^<>]*>>")


def _worked(path: Path, language: str) -> Iterator[Row]:
    for number, row in json_lines(path):
        where = f"{path}:{number}"
        worked, _, gold = field(row, "answer", where=where).partition("####")
        first_line = gold.strip().partition("\n")[0].strip()
        worked = _ANNOTATION.sub("", worked).strip()
        question = field(row, "question", where=where)
        yield _row(str(row.get("id", number)), language, question, worked, first_line)


def _row(id_: str, language: str, question: str, worked: str, gold: str) -> Row:
    if gold_number(gold) is None:
        return Row(None, id_, f"the answer {gold!r} is not one number")
    sentence = answer_sentence(gold, language)
    item = Item(
        id=id_,
        language=language,
        prompt=prompt(question, language),
        response=f"{worked}\n{sentence}" if worked else sentence,
        gold=gold,
    )
    return Row(item, id_)
