"""The form of mCoT-MATH's rows: a question and a worked answer in one of eleven languages.

The release's `mcot_math.json` has ``{lang, question, answer}``; since revision 722a05f (April 2025) a file in
`lang-id/` has ``{lang-id: "en-17", question, answer}``, which says which item a row translates. (So public
code reads them; the other field names below are guesses, to be kind.) Answers end in the answer sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestrator.tasks.answers import extract
from orchestrator.tasks.base import LANGUAGES
from orchestrator.tasks.files import field

HUB_ID = "laihuiyuan/mCoT-MATH"

_LANGUAGE = ("lang", "language")
_ID = ("id", "idx", "item_id")
_BOTH = ("lang-id", "lang_id")
_QUESTION = ("question", "query", "instruction")
_ANSWER = ("answer", "response", "output")


class Place(NamedTuple):
    """The language of a row, "" when it is none of ours, and its item's id, "" when it has none."""

    language: str
    id: str


def is_row(row: Mapping[str, Any]) -> bool:
    """Tells whether a row has the fields of this form."""
    has_language = any(key in row for key in (*_LANGUAGE, *_BOTH))
    return has_language and any(key in row for key in _QUESTION) and any(key in row for key in _ANSWER)


def place_of(row: Mapping[str, Any]) -> Place:
    """Returns a row's language and item."""
    for key in _BOTH:
        if isinstance(row.get(key), str):
            first, _, second = row[key].partition("-")
            language, id_ = (first, second) if first in LANGUAGES else (second, first)
            if language in LANGUAGES:
                return Place(language, id_)
    language = next((str(row[key]) for key in _LANGUAGE if key in row), "").lower()
    id_ = next((str(row[key]) for key in _ID if row.get(key) is not None), "")
    return Place(language if language in LANGUAGES else "", id_)


def line_of(row: Mapping[str, Any], *, id_: str, language: str, where: str) -> dict[str, str]:
    """Returns a row as a line of a data set; its gold is the number that the answer ends in.

    Raises:
        UserError: the row has no question or answer.
    """
    question = field(row, *_QUESTION, where=where)
    answer = field(row, *_ANSWER, where=where).strip()
    number = extract(answer, language)
    gold = "" if number is None else f"{number.normalize():f}"
    return {"id": id_, "question": _bare(question), "answer": answer, "gold": gold}


def _bare(question: str) -> str:
    """Takes the prompt off a question that comes within it."""
    question = question.strip()
    if question.startswith("Question:\n"):
        question = question.removeprefix("Question:\n").rpartition("\nAnswer:")[0] or question
    return question.strip()
