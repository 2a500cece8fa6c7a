"""The api_calling task's files: lines of a data set, and API-Bank's JSON arrays or translations of them.

Owns its prompt, the files' names and how a row becomes an item. Which ids a split takes is `files`, what a
call is, is `calls`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.tasks.base import LANGUAGES, Item, Split
from orchestrator.tasks.calls import parse_call
from orchestrator.tasks.files import Row, field, json_array, json_lines


def prompt(instruction: str, dialogue: str) -> str:
    """Returns an API-Bank row's prompt; it ends in the line that asks for the request."""
    text = f"{instruction.strip()}\n{dialogue.strip()}\n"
    return unicodedata.normalize("NFC", text)


def names(split: Split) -> Mapping[str, Sequence[str]]:
    """Returns language to the names that its file may have, the preferred first."""
    found = {language: [f"{language}.json"] for language in LANGUAGES}
    if split is Split.TEST:
        found["en"].append("level-1-api.json")  # API-Bank as it is published
    return found


def line_of(row: Mapping[str, Any], *, id_: str, where: str) -> dict[str, str]:
    """Returns a row as a line of a data set.

    Raises:
        UserError: the row has no instruction, input or output.
    """
    return {
        "id": id_,
        "instruction": field(row, "instruction", where=where),
        "input": field(row, "input", where=where),
        "output": field(row, "expected_output", "output", where=where).strip(),
    }


def item_of(line: Mapping[str, str], language: str) -> Item:
    """Returns a line of a data set as an item."""
    text = prompt(line["instruction"], line["input"])
    return Item(id=line["id"], language=language, prompt=text, response=line["output"], gold=line["output"])


def lines(path: Path, language: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a file as lines of a data set, usable or not.

    Raises:
        UserError: a row has not the form of such a file.
    """
    numbered = json_lines(path) if path.suffix == ".jsonl" else enumerate(json_array(path))
    for number, row in numbered:
        # API-Bank's ids count within a dialogue's file; without them the place in the file must do.
        parts = [str(row[key]) for key in ("file", "id") if key in row]
        id_ = "#".join(parts) if "id" in row else str(number)
        yield line_of(row, id_=id_, where=f"{path}, row {number}")


def problem_of(line: Mapping[str, str]) -> str:
    """Says why a line cannot be used, or ""."""
    return f"the gold {line['output']!r} is no call" if parse_call(line["output"]) is None else ""


def rows(path: Path, language: str) -> list[Row]:
    """Returns the rows of a file, those that cannot be used with the reason.

    Raises:
        UserError: a row has not the form of such a file.
    """
    return [_row(line, language) for line in lines(path, language)]


def _row(line: Mapping[str, str], language: str) -> Row:
    problem = problem_of(line)
    return Row(None if problem else item_of(line, language), line["id"], problem)
