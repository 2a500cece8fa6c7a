"""The api_calling task: one API request for a dialogue, scored by exact match (study section 3).

This module owns the files of the task, its generated items and `API_CALLING`. It also compares translated
rows with the English ones. `calls` parses and compares calls; `phrases` words the generated requests.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.tasks import base
from orchestrator.tasks.base import LANGUAGES, Difference, Item, Line, Split, check_language, check_split
from orchestrator.tasks.calls import Call, calls_match, find_call, has_label, parse_call, serialise
from orchestrator.tasks.files import FileTask
from orchestrator.tasks.phrases import APIS, ApiTemplate, request
from orchestrator.tasks.sources import field


def prompt(instruction: str, dialogue: str) -> str:
    """Return the prompt of an API-Bank row. It ends with the line that requests the API call."""
    text = f"{instruction.strip()}\n{dialogue.strip()}\n"
    return unicodedata.normalize("NFC", text)


FORMAT = "Generate an API request in the format of [ApiName(key='value', ...)].\nThe current year is 2023.\n"
"""The head of a generated item's instruction. It is API-Bank's, shortened to save tokens (our choice)."""


class ItemGroup(NamedTuple):
    """The common part of a group of items.

    Attributes:
        api: the API to call.
        first: the value of its first parameter.
        others: the other APIs, one of which is shown beside it.
    """

    api: ApiTemplate
    first: str
    others: tuple[ApiTemplate, ...]


GROUPS = tuple(
    ItemGroup(api, first, tuple(other for other in APIS if other is not api))
    for api in APIS
    for first in api.first.values
)
NUM_FORMS = 2 * (len(APIS) - 1)
"""Number of wordings of a request: the choice of the other API that is shown, times the order of the two."""


def _generated(group: ItemGroup, variant: int, form: int, language: str) -> Item:
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


def _description(api: ApiTemplate) -> str:
    parameters = {parameter.key: parameter.description for parameter in (api.first, api.second)}
    return json.dumps({"name": api.name, **parameters})


_TURN = re.compile(r"^\s*(User|AI|API-Request|Generate API Request|TIME)\s*:", re.MULTILINE)
_TRANSLATED_KEYS = ("description",)


def problems(english: Mapping[str, str], other: Mapping[str, str]) -> Iterator[str]:
    """Yield each property of the English line that the translated line does not keep."""
    if _turns(english["input"]) != _turns(other["input"]):
        yield "other turns or speakers than in English"
    if _apis(english) != _apis(other):
        yield "the API descriptions differ in more than their texts"
    call, translated = parse_call(english["output"]), parse_call(other["output"])
    if call is None or translated is None:
        if translated is None:
            yield "the gold is no call"
        return
    if parse_call(serialise(translated)) != translated:
        yield "the gold does not survive being written and read again"
    if call.name != translated.name:
        yield f"the gold calls {translated.name}, in English {call.name}"
    elif list(call.args) != list(translated.args):
        yield "the gold's keys, or their order, differ from English"
    else:
        yield from _values(call, translated, english, other)


def _values(
    call: Call, translated: Call, english: Mapping[str, str], other: Mapping[str, str]
) -> Iterator[str]:
    described = descriptions(english, call.name)
    for key, value in call.args.items():
        found = translated.args[key]
        if found != value and is_protected(key, value, described.get(key, "")):
            yield f"the protected value of {key} was changed"
        if shape(value) != shape(found):
            yield f"the list or dict in {key} has another shape"
        # If the English user names a value word for word, a model can copy it. A translation must allow the
        # same.
        named = value and re.search(word_for_word(value), english["input"])
        if named and found not in other["input"]:
            yield f"the value of {key} is in the dialogue word for word in English only"


def word_for_word(value: str) -> str:
    """Return the pattern of a value that stands in a text as words of its own: no "Don" in "Don't"."""
    return rf"(?<!\w){re.escape(value)}(?!\w|['’]t\b)"


def _turns(dialogue: str) -> list[str]:
    return _TURN.findall(dialogue)


def _apis(line: Mapping[str, str]) -> list[Any]:
    """Return the API descriptions, one JSON object a line, without their translatable texts."""
    return [_without_texts(api) for api in _objects(line)]


def _objects(line: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for text in f"{line['instruction']}\n{line['input']}".split("\n"):
        if text.lstrip().startswith("{"):
            try:
                value = json.loads(text)
            except (json.JSONDecodeError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def _without_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: "" if k in _TRANSLATED_KEYS else _without_texts(v) for k, v in value.items()}
    return [_without_texts(item) for item in value] if isinstance(value, list) else value


def descriptions(line: Mapping[str, str], name: str) -> dict[str, str]:
    """Map each parameter of an API to its description, as far as a line describes that API."""
    for api in _objects(line):
        if name in (api.get("name"), api.get("apiCode")):
            inputs = api.get("input_parameters", api.get("parameters"))
            if isinstance(inputs, dict):
                pairs = ((key, value) for key, value in inputs.items() if isinstance(value, dict))
                return {key: str(value.get("description", "")) for key, value in pairs}
    return {}


_PROTECTED_KEY = re.compile(
    r"(?:^|_)(?:id|token|password|username|email|url|file(?:name|_path)?|code|formula)s?$"
)
_PROTECTED_VALUE = re.compile(
    r"[^\s@]+@[^\s@]+\.\w+"  # e-mail
    r"|\w+://\S+|www\.\S+"
    r"|\S*\d\S*"  # one word with a digit: ids, codes, dates, amounts
    r"|\S+\.[A-Za-z]{2,5}"  # a file
    r"|true|false|none|null|yes|no",
    re.IGNORECASE,
)


def is_protected(key: str, value: str, description: str = "") -> bool:
    """Return whether a value must stay untranslated. In doubt the answer is no.

    Args:
        key: the name of the argument.
        value: the English value.
        description: the description of the parameter. A value that it lists in quotes or brackets is one of
            a fixed set.
    """
    value = value.strip()
    if not any(character.isalpha() for character in value):
        return True  # numbers, dates and times
    if _PROTECTED_KEY.search(key.lower()) or _PROTECTED_VALUE.fullmatch(value):
        return True
    return any(value == word.strip() for word in re.findall(r"[^'\"\[\](),|]+", _listed(description)))


def _listed(description: str) -> str:
    """Return the parts of a description that are in quotes or brackets."""
    parts: list[str] = re.findall(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)", description)
    return ",".join(parts)


def shape(value: str) -> str:
    """Return the brackets, colons and commas of a list or dict, or "" for any other value."""
    value = value.strip()
    if value[:1] not in ("[", "{"):
        return ""
    without_texts = re.sub(r"'(?:[^'\\]|\\.)*'(?=\s*[,:\]}])|\"(?:[^\"\\]|\\.)*\"(?=\s*[,:\]}])", "", value)
    return re.sub(r"[^\[\]{}:,]", "", without_texts)


TRAIN_ROWS = "lv3-api-train.json"
PUBLISHED = {
    TRAIN_ROWS: Split.TRAIN,
    "level-1-api.json": Split.TEST,
    "level-2-api.json": Split.TEST,
}
"""API-Bank's published files, all English, and their splits."""


class ApiCallingTask(FileTask):
    """The api_calling task; see `orchestrator.tasks.base.Task`."""

    name = "api_calling"
    in_tiny_models = True
    form = "api-bank"
    published = PUBLISHED
    # Level 2 is imported only by its own path: the study tests level 1.
    names = {
        code: (f"{code}.json", f"{code}.jsonl", *(tuple(PUBLISHED)[:2] if code == "en" else ()))
        for code in LANGUAGES
    }
    description = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")

    def generate(self, split: str, language: str, num_items: int, seed: int = 0) -> list[Item]:
        """Return short requests with two APIs to choose from; see `Task.generate`."""
        check_language(language)
        rows = base.combinations(
            check_split(split),
            [len(group.api.second.values) for group in GROUPS],
            num_items=num_items,
            seed=seed,
            num_forms=NUM_FORMS,
        )
        return [_generated(GROUPS[row.group], row.variant, row.form, language) for row in rows]

    def file_names(self, split: Split) -> dict[str, list[str]]:
        """Map each language to the names that its file of a split may have, other than the training rows'."""
        # API-Bank's training rows have no ids and no translation, so they are imported, never read in place.
        found = super().file_names(split)
        return {language: [name for name in found[language] if name != TRAIN_ROWS] for language in found}

    def is_correct(self, text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
        """Return whether the first call of a generated text is the gold call.

        No text makes this method raise. A call that the token limit cut off does not parse, so `truncated`
        changes nothing.
        """
        return calls_match(parse_call(text), parse_call(gold))

    def stop(self, text: str) -> str:
        """Return the text up to the end of the first whole call behind a label.

        A text without a label is not cut. The model may still write a labelled call, which takes
        precedence.
        """
        found = find_call(text) if has_label(text) else None
        return text[: found.end] if found else text

    def line_of(self, row: Mapping[str, Any], *, id_: str, language: str, where: str) -> dict[str, str]:
        """Return a row of API-Bank as a line of a data set; see `Task.line_of`."""
        return {
            "id": id_,
            "instruction": field(row, "instruction", where=where),
            "input": field(row, "input", where=where),
            "output": field(row, "expected_output", "output", where=where).strip(),
        }

    def item_of(self, line: Line, language: str) -> Item:
        """Return a line with its instruction and dialogue as the prompt; see `Task.item_of`."""
        text = prompt(line["instruction"], line["input"])
        return Item(
            id=line["id"], language=language, prompt=text, response=line["output"], gold=line["output"]
        )

    def problem_of(self, line: Line) -> str:
        """Return why a line cannot be used; see `Task.problem_of`."""
        return f"the gold {line['output']!r} is no call" if parse_call(line["output"]) is None else ""

    def id_of(self, row: Mapping[str, Any], place: str) -> str:
        """Return the id of a row, or its place if it has none.

        API-Bank's ids count within the file of one dialogue, so they need that file's name.
        """
        return "#".join(str(row[key]) for key in ("file", "id") if key in row) if "id" in row else place

    def looks_like(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row has an instruction and no question."""
        return "question" not in row and "instruction" in row

    def differences(self, lines: Mapping[str, Sequence[Line]]) -> Iterator[Difference]:
        """Yield calls that a translation changed in a way it must not."""
        english = {line["id"]: line for line in lines.get("en", ())}
        for language, here in lines.items():
            found: dict[str, list[str]] = defaultdict(list)
            for line in here if language != "en" else ():
                if original := english.get(line["id"]):
                    for text in problems(original, line):
                        found[text].append(line["id"])
            for text, ids in found.items():
                yield Difference("translation", text, language, ids)


API_CALLING = ApiCallingTask()
"""The api_calling task."""
