"""The api_calling task: one API request for a dialogue, scored by exact match (study section 3).

Owns its prompt, its generated items and what `API_CALLING` offers. How a call is parsed and compared is
`calls`, what the generated requests say is `requests`, how files are read is `files`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.tasks import files, parallel
from orchestrator.tasks.base import Item, check_language, check_split
from orchestrator.tasks.calls import Call, calls_match, parse_call, serialise
from orchestrator.tasks.requests import APIS, Api, request

__all__ = ["API_CALLING", "Call", "calls_match", "parse_call", "prompt", "serialise"]

FORMAT = "Generate an API request in the format of [ApiName(key='value', ...)].\nThe current year is 2023.\n"
"""The head of a generated item's instruction: API-Bank's, shortened because tokens cost (ours)."""


def prompt(instruction: str, dialogue: str) -> str:
    """Returns an API-Bank row's prompt; it ends in the line that asks for the request."""
    text = f"{instruction.strip()}\n{dialogue.strip()}\n"
    return unicodedata.normalize("NFC", text)


class Row(NamedTuple):
    """What a generated item is about: the API wanted and the other one shown."""

    api: Api
    first: str
    others: tuple[Api, ...]


GROUPS = tuple(
    Row(api, first, tuple(other for other in APIS if other is not api))
    for api in APIS
    for first in api.first.values
)
NUM_FORMS = 2 * (len(APIS) - 1)
"""Wordings of a row: which other API is shown, and which of the two comes first."""


class ApiCallingTask:
    """See `orchestrator.tasks.base.Task`."""

    name = "api_calling"

    def generate(self, split: str, language: str, num_items: int, seed: int = 0) -> list[Item]:
        """Returns short requests with two APIs to choose from; see `Task.generate`."""
        check_language(language)
        rows = parallel.combinations(
            check_split(split),
            [len(row.api.second.values) for row in GROUPS],
            num_items=num_items,
            seed=seed,
            num_forms=NUM_FORMS,
        )
        return [_generated(GROUPS[row.group], row.variant, row.form, language) for row in rows]


def _generated(row: Row, variant: int, form: int, language: str) -> Item:
    second = row.api.second.values[variant]
    shown = [row.api, row.others[form // 2]]
    if form % 2:
        shown.reverse()
    instruction = FORMAT + "\n".join(_description(api) for api in shown)
    dialogue = f"User: {request(row.api, row.first, second, language)}\nGenerate API Request:"
    gold = serialise(Call(row.api.name, {row.api.first.key: row.first, row.api.second.key: second}))
    return Item(
        id=f"{row.api.name}.{row.first}.{second}.{form}",
        language=language,
        prompt=prompt(instruction, dialogue),
        response=gold,
        gold=gold,
    )


def _description(api: Api) -> str:
    parameters = {parameter.key: parameter.description for parameter in (api.first, api.second)}
    return json.dumps({"name": api.name, **parameters})


API_CALLING = ApiCallingTask()
"""The api_calling task."""
