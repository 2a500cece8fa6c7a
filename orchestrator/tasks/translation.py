"""What a translated row of API-Bank must keep of its English original (study section 3, hard checks).

Pure: two lines of a data set in, what is wrong out. Fluency, and what a translator may choose, is not judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.tasks.calls import Call, parse_call, serialise

_TURN = re.compile(r"^\s*(User|AI|API-Request|Generate API Request|TIME)\s*:", re.MULTILINE)
_TRANSLATED_KEYS = ("description",)


def problems(english: Mapping[str, str], other: Mapping[str, str]) -> Iterator[str]:
    """Yields what a translated line does not keep of the English one."""
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
    described = _descriptions(english, call.name)
    for key, value in call.args.items():
        found = translated.args[key]
        if found != value and is_protected(key, value, described.get(key, "")):
            yield f"the protected value of {key} was changed"
        if shape(value) != shape(found):
            yield f"the list or dict in {key} has another shape"
        if value and value in english["input"] and found not in other["input"]:
            yield f"the value of {key} is in the dialogue word for word in English only"


def _turns(dialogue: str) -> list[str]:
    return _TURN.findall(dialogue)


def _apis(line: Mapping[str, str]) -> list[Any]:
    """Returns the API descriptions, a JSON object a line, without what may be translated."""
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


def _descriptions(line: Mapping[str, str], name: str) -> dict[str, str]:
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
    """Tells whether a value must not be translated; in doubt it says no.

    Args:
        key: of the argument.
        value: in English.
        description: of the parameter; a value that it names in quotes or brackets is one of a fixed set.
    """
    value = value.strip()
    if not any(character.isalpha() for character in value):
        return True  # numbers, dates, times
    if _PROTECTED_KEY.search(key.lower()) or _PROTECTED_VALUE.fullmatch(value):
        return True
    return any(value == word.strip() for word in re.findall(r"[^'\"\[\](),|]+", _listed(description)))


def _listed(description: str) -> str:
    """Returns the parts of a description that are in quotes or brackets."""
    parts: list[str] = re.findall(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)", description)
    return ",".join(parts)


def shape(value: str) -> str:
    """Returns the brackets and commas of a list or dict, "" for anything else."""
    value = value.strip()
    if value[:1] not in ("[", "{"):
        return ""
    without_texts = re.sub(r"'(?:[^'\\]|\\.)*'(?=\s*[,:\]}])|\"(?:[^\"\\]|\\.)*\"(?=\s*[,:\]}])", "", value)
    return re.sub(r"[^\[\]{}:,]", "", without_texts)
