"""The api_calling task: one API request for a dialogue, scored by exact match (study section 3).

Owns its generated items and what `API_CALLING` offers. How a call is parsed and compared is
`calls`, what the generated requests say is `requests`, what its files look like is `api_files`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.tasks import api_files, files, parallel
from orchestrator.tasks.api_files import prompt
from orchestrator.tasks.base import Item, check_language, check_split
from orchestrator.tasks.calls import Call, calls_match, find_call, has_label, parse_call, serialise
from orchestrator.tasks.requests import APIS, Api, request

__all__ = ["API_CALLING", "Call", "calls_match", "parse_call", "prompt", "serialise"]

FORMAT = "Generate an API request in the format of [ApiName(key='value', ...)].\nThe current year is 2023.\n"
"""The head of a generated item's instruction: API-Bank's, shortened because tokens cost (ours)."""


class Group(NamedTuple):
    """What the items of a group have in common: the API, the value of its first parameter, the other APIs."""

    api: Api
    first: str
    others: tuple[Api, ...]


GROUPS = tuple(
    Group(api, first, tuple(other for other in APIS if other is not api))
    for api in APIS
    for first in api.first.values
)
NUM_FORMS = 2 * (len(APIS) - 1)
"""Wordings of a request: which other API is shown, and which of the two comes first."""


class ApiCallingTask:
    """See `orchestrator.tasks.base.Task`."""

    name = "api_calling"

    def generate(self, split: str, language: str, num_items: int, seed: int = 0) -> list[Item]:
        """Returns short requests with two APIs to choose from; see `Task.generate`."""
        check_language(language)
        rows = parallel.combinations(
            check_split(split),
            [len(group.api.second.values) for group in GROUPS],
            num_items=num_items,
            seed=seed,
            num_forms=NUM_FORMS,
        )
        return [_generated(GROUPS[row.group], row.variant, row.form, language) for row in rows]

    def languages_in(self, folder: Path, split: str) -> list[str]:
        """See `Task.languages_in`."""
        return files.languages_in(folder, check_split(split), api_files.names(check_split(split)))

    def read(
        self,
        folder: Path,
        split: str,
        language: str,
        *,
        languages: Sequence[str] = (),
        num_items: int | None = None,
        num_validation: int | None = 0,
        seed: int = 0,
    ) -> list[Item]:
        """Reads API-Bank's rows, or translations in its format; see `Task.read`."""
        wanted = files.Wanted(check_split(split), tuple(languages), num_items, num_validation, seed)
        return files.read(
            folder, language, names=api_files.names(wanted.split), reader=api_files.rows, wanted=wanted
        )

    def is_correct(self, text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
        """Return whether the first call of a generated text is the gold call; total.

        A call that the limit cut is none, whether or not `truncated` says so.
        """
        return calls_match(parse_call(text), parse_call(gold))

    def stop(self, text: str) -> str:
        """Cuts after the first whole labelled call: one without a label gives way to one that has it."""
        found = find_call(text) if has_label(text) else None
        return text[: found.end] if found else text


def _generated(group: Group, variant: int, form: int, language: str) -> Item:
    second = group.api.second.values[variant]
    shown = [group.api, group.others[form // 2]]
    if form % 2:
        shown.reverse()
    instruction = FORMAT + "\n".join(_description(api) for api in shown)
    dialogue = f"User: {request(group.api, group.first, second, language)}\nGenerate API Request:"
    gold = serialise(Call(group.api.name, {group.api.first.key: group.first, group.api.second.key: second}))
    return Item(
        id=f"{group.api.name}.{group.first}.{second}.{form}",
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
