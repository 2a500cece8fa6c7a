"""What of a row stays as it is, and which values its calls and results hold. Pure.

`orchestrator.tasks.api_calling.is_protected` is the part that ``sweep data check`` requires. The other rules
are ours; they leave as little as possible that a model can break.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from orchestrator.tasks import api_calling
from orchestrator.tasks.calls import LABEL, find_call

PLACEHOLDER = re.compile(r"\[\[\d+\]\]")
"""A placeholder in a text."""

STRING = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")
"""A string in Python's or JSON's form."""


_MAX_VALUE_CHARS = 40
"""Length up to which a string of a result counts as a value, which the dialogue may repeat."""


def values_of(line: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and description of the arguments of all calls, and of short strings in results."""
    results: list[tuple[str, str, str]] = []
    for text in (line["output"], *line["input"].split("\n")):
        if not text.lstrip().startswith(LABEL) or (found := find_call(text)) is None:
            continue
        described = api_calling.descriptions(line, found.call.name)
        yield from ((key, value, described.get(key, "")) for key, value in found.call.args.items())
        pairs = strings_of(text[found.end :])
        results += [(key, value, "") for key, value in pairs if len(value) <= _MAX_VALUE_CHARS]
    # Arguments come first: where a result repeats one, the description of the parameter decides.
    yield from results


_KEY_BEFORE = re.compile(r"['\"](\w+)['\"]\s*:\s*\Z")


def strings_of(text: str) -> list[tuple[str, str]]:
    """Return key and content of the Python strings in a text that are no keys; the key may be ""."""
    pairs = []
    for match in STRING.finditer(text):
        value, after = unquoted(match[0]), text[match.end() :].lstrip()
        if value is None or after.startswith(":"):
            continue
        before = _KEY_BEFORE.search(text, 0, match.start())
        key = before[1] if before else ""
        # Something that is described is a thing, not a person: its name is translated.
        is_thing = key == "name" and re.match(r",\s*['\"]description['\"]", after)
        pairs.append(("" if is_thing else key, value))
    return pairs


def unquoted(text: str) -> str | None:
    """Return the content of a string literal, None if it is none."""
    try:
        value = ast.literal_eval(text)  # a string literal alone, by the pattern that found it
    except (SyntaxError, ValueError):
        return None
    return value if isinstance(value, str) else None


_KEPT = (
    r"\[[A-Za-z]\w+\([^\n]*?\)\]",  # a call within a sentence
    r"\[\[\d+\]\]",  # a text of the source that looks like a placeholder
    r"https?://\S+|www\.\S+",
    r"[^\s@'\"(),]+@[^\s@'\"(),]+\.\w+",
    r"\b(?:Dr|Mr|Mrs|Ms|Prof)\.? [A-Z][\w-]*(?: [A-Z][\w-]*)*",
    r"%[A-Za-z](?:[^\w\s%]?[ ]?%[A-Za-z])*",  # %Y-%m-%d %H:%M:%S
    r"\b[\w-]+\.(?:pdf|txt|docx?|xlsx?|pptx?|csv|json|png|jpe?g|gif|mp[34]|wav|zip|html?|py)\b",
    r"\b[A-Za-z]+(?:_[A-Za-z0-9]+)+\b",  # snake_case
    r"\b[A-Z]?[a-z]+(?:[A-Z][a-z0-9]+)+\b",  # CamelCase
    r"\b(?=\w*\d)(?=\w*[A-Za-z])(?!\d+(?:st|nd|rd|th|am|pm|AM|PM)\b)\w+\b",  # codes: m9n8b7
    r"\b\d+(?:[.,:/-]\d+)*(?:\s?[AaPp]\.?[Mm]\b\.?)?(?!\w)%?",  # numbers, dates, times; no ordinals
)
_NUMBER = re.compile(_KEPT[-1])


def pattern_of(values: Sequence[str]) -> re.Pattern[str]:
    """Return the pattern of all that is replaced in a free text: known values, then what is always kept."""
    # In reverse order, a value comes before those that it begins with.
    known = sorted({value for value in values if len(value) > 1}, reverse=True)
    bounded = [api_calling.word_for_word(value) for value in known]
    return re.compile("|".join([*bounded, *_KEPT]))


def without_numbers(text: str, keep: Callable[[str], str]) -> str:
    """Return a value with its numbers replaced, unless it has no other words."""
    return _NUMBER.sub(lambda match: keep(match[0]), text)


_NAME_KEY = re.compile(
    r"(?:^|_)(?:name|doctor|patient|attendee|author|artist|account|city|country|airline|hotel)s?$"
)
_CODE_KEY = re.compile(r"(?:^|_)(?:lang(?:uage)?|status|type)$")
_IDENTIFIER = re.compile(r"[A-Za-z]+(?:_[A-Za-z0-9]+)+|[A-Za-z]?[a-z]+(?:[A-Z][a-z0-9]+)+")


def is_kept(key: str, value: str, description: str = "") -> bool:
    """Return whether the value of an argument, or a string of a result, stays as it is.

    In addition to what every translation must keep, these are identifiers, and names of persons, companies
    and places, known by the key and a capital letter (our rule).

    Args:
        key: the name of the argument, "" if it has none.
        value: the English value, or a string within a list.
        description: of the parameter.
    """
    if api_calling.is_protected(key, value, description) or _IDENTIFIER.fullmatch(value.strip()):
        return True
    key = key.lower()
    if _CODE_KEY.search(key) and " " not in value.strip():
        return True
    return bool(_NAME_KEY.search(key)) and value[:1].isupper()
