"""Verdicts on a translated row: hard checks that refuse it, and soft ones that flag it for a person. Pure.

A model's reply is a JSON object with a translation for each text of a `Template`. The same checks hold for a
reply, for a cached reply and for a correction by a person. Checks of languages compare scripts, lengths
beside English, and English words; their thresholds are ours.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from orchestrator.tasks import api_calling
from orchestrator.tasks.base import LANGUAGES
from orchestrator.tasks.calls import parse_call, serialise
from orchestrator.translation.kept import PLACEHOLDER
from orchestrator.translation.template import PROSE, Template, Text, Translations

NAMES = {
    "en": "English",
    "es": "Spanish",
    "ja": "Japanese",
    "bn": "Bengali",
    "sw": "Swahili",
    "te": "Telugu",
    "fr": "French",
    "de": "German",
    "ru": "Russian",
    "zh": "Chinese (simplified characters)",
    "th": "Thai",
}
"""Language code to the name that a model reads."""

_SCRIPTS = {
    "Latin": frozenset({"LATIN"}),
    "Cyrillic": frozenset({"CYRILLIC"}),
    "Bengali": frozenset({"BENGALI"}),
    "Telugu": frozenset({"TELUGU"}),
    "Thai": frozenset({"THAI"}),
    "Han": frozenset({"CJK"}),
    "Kanji+Kana": frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}),
}
"""The study's name of a script to the first words of its letters' Unicode names."""

_KANA = frozenset({"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"})


class LengthRange(NamedTuple):
    """Characters of a usual translation, as shares of the characters of the English text."""

    least: float
    most: float


DENSE, ALPHABETIC = LengthRange(0.2, 1.1), LengthRange(0.5, 2.2)
"""Usual lengths in Chinese and Japanese, and in all other languages."""


def usual_length(language: str) -> LengthRange:
    """Return how long a usual translation into a language is."""
    return DENSE if LANGUAGES[language].script in ("Han", "Kanji+Kana") else ALPHABETIC


@lru_cache(maxsize=20_000)
def _script(character: str) -> str:
    """Return the script of a letter, "" for any other character."""
    if not character.isalpha():
        return ""
    return unicodedata.name(character, "").partition(" ")[0]


def script_share(text: str, language: str) -> float | None:
    """Return the share of a text's letters in the script of a language, None for a text without letters.

    Japanese needs some kana and Chinese has none. So a text in Han characters alone counts as Chinese, and
    one with more than a twentieth of kana as Japanese.
    """
    counts = Counter(found for found in map(_script, text) if found)
    total = sum(counts.values())
    if not total:
        return None
    script = LANGUAGES[language].script
    own = sum(counts[name] for name in _SCRIPTS[script])
    if script in ("Han", "Kanji+Kana"):
        kana = sum(counts[name] for name in _KANA)
        if (kana > total / 20) != (script == "Kanji+Kana"):
            return 0.0
    return own / total


_ENGLISH = re.compile(
    r"the|of|and|is|are|your?|with|th(?:at|is|eir|ey|ere)|have|please|would|wh(?:at|ich|en)|for|to|my|it|were"
    r"|from|been"
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return [word.casefold() for word in _WORD.findall(text)]


def english_share(text: str) -> float:
    """Return the share of English function words that no other of the languages has; English has 0.4."""
    found = words(text)
    return sum(_ENGLISH.fullmatch(word) is not None for word in found) / len(found) if found else 0.0


def digits(text: str) -> Counter[int]:
    """Return the numbers in a text, in any script's digits."""
    ascii_digits = "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in text)
    return Counter(int(number) for number in re.findall(r"\d{1,18}", ascii_digits))


class Fault(msgspec.Struct, frozen=True):
    """A reason for refusing a translation.

    Attributes:
        kind: a stable word, by which yields are counted: a key of `KINDS`.
        text: for the model and for people.
        key: of the text that it is about, "" for the whole row.
    """

    kind: str
    text: str
    key: str = ""


KINDS: Mapping[str, str] = {
    "unanswered": "the endpoint gave no reply",
    "refused-request": "the endpoint refused this request",
    "cut-off": "the reply ended at the token limit, or a text is far too short",
    "empty": "the reply, or the translation of a text, is empty",
    "not-json": "the reply is no JSON object of texts",
    "prose-around": "there are words around the JSON object",
    "other-texts": "texts are missing, or there are more",
    "placeholder-lost": "a placeholder is missing",
    "placeholder-repeated": "a placeholder comes more often than in English",
    "placeholder-unknown": "a placeholder that the English text does not have",
    "wrong-script": "not in the script of the language",
    "not-translated": "still English",
    "number-changed": "a number, such as the day of a date, is missing or differs",
    "control-character": "control characters, or line breaks that English does not have",
    "same-as-another": "the text of another row, though the two differ in English",
    "other-call": "the call, a value or the turns differ from the English row",
}
"""Kind of a fault to its meaning."""


class ModelReply(msgspec.Struct, frozen=True, kw_only=True):
    """A model's reply to one request.

    Attributes:
        text: as generated.
        finish: ``stop``, or ``length`` at the token limit.
        prompt_tokens: of the request, 0 if unknown.
        completion_tokens: of the reply, 0 if unknown.
    """

    text: str
    finish: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0


class TextVerdict(NamedTuple):
    """The result of all checks of a row.

    Attributes:
        translations: by key of the text; empty if the reply could not be read.
        line: the translated line; None if a hard check failed.
        faults: why it was refused; empty if it was accepted.
        flags: what a person should look at.
    """

    translations: Translations
    line: dict[str, str] | None
    faults: tuple[Fault, ...]
    flags: tuple[str, ...] = ()


def judge_reply(
    template: Template, english: Mapping[str, str], reply: ModelReply, language: str
) -> TextVerdict:
    """Return the verdict on a model's reply."""
    if reply.finish == "length":
        return TextVerdict({}, None, (Fault("cut-off", "your reply was cut off at the token limit"),))
    translations, fault = _read(reply.text)
    if fault is not None:
        return TextVerdict(translations, None, (fault,))
    return judge(template, english, translations, language)


def judge(
    template: Template, english: Mapping[str, str], translations: Translations, language: str
) -> TextVerdict:
    """Return the verdict on translations, by all hard checks and then all soft ones.

    Args:
        template: of the English row.
        english: the English row, as a line of a data set.
        translations: by key, with placeholders.
        language: that they should be in.
    """
    wanted = {text.key for text in template.texts}
    if translations.keys() != wanted:
        missing, more = sorted(wanted - translations.keys()), sorted(translations.keys() - wanted)
        what = f"texts missing: {', '.join(missing[:5]) or 'none'}; unknown: {', '.join(more[:5]) or 'none'}"
        return TextVerdict(translations, None, (Fault("other-texts", what),))
    translations = {key: unicodedata.normalize("NFC", text).strip() for key, text in translations.items()}
    faults = [fault for text in template.texts for fault in _of_text(text, translations[text.key], language)]
    faults += _of_all(template, translations, language)
    if faults:
        return TextVerdict(translations, None, tuple(faults))
    line = template.line(english["id"], translations)
    faults = list(_of_line(english, line))
    if faults:
        return TextVerdict(translations, None, tuple(faults))
    return TextVerdict(translations, line, (), tuple(_flags(template, translations, language)))


_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL)


def _read(text: str) -> tuple[dict[str, str], Fault | None]:
    """Return the translations in a reply, and what is wrong with its form. A code fence around is allowed."""
    text = text.strip()
    if not text:
        return {}, Fault("empty", "your reply was empty")
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1].strip()
    tree = _tree(text)
    if tree is None:
        inner = text[text.find("{") : text.rfind("}") + 1]
        if inner and inner != text and (found := _tree(inner)) is not None:
            return found, Fault("prose-around", "return the JSON object alone, without words around it")
        return {}, Fault("not-json", "your reply was no JSON object that maps each number to a text")
    return tree, None


def _tree(text: str) -> dict[str, str] | None:
    def pairs(items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) < len(items):
            raise ValueError("a key comes twice")
        return dict(items)

    try:
        tree = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return None
    is_flat = isinstance(tree, dict) and all(isinstance(value, str) for value in tree.values())
    return tree if is_flat else None


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ufffd\u2028\u2029\ud800-\udfff]")
_CALL = re.compile(r"API-Request|\w\(\s*\w+\s*=|['\"]\s*,\s*\w+\s*=")
"""What is part of a call, and of no other text."""
_MIN_WORDS, _MIN_LETTERS, _LONG_CHARS = 4, 15, 40
"""Sizes of texts from which words, scripts and lengths are compared."""
_MIN_SHARE_OF_TEXT, _MIN_SHARE_OF_ROW, _USUAL_SHARE = 0.3, 0.6, 0.85
"""Shares of letters in the language's script: least of a text, least of a row, and below which to flag."""
_MAX_ENGLISH, _FAR_TOO_SHORT = 0.12, 0.4
"""Most share of English function words in a row, and least part of the shortest usual length."""


def _of_text(text: Text, translated: str, language: str) -> Iterator[Fault]:
    """Yield the faults of one translation."""
    if not translated:
        yield Fault("empty", f"text {text.key} has no translation", text.key)
        return
    if _CONTROL.search(translated):
        yield Fault("control-character", f"text {text.key} has a line break or control character", text.key)
    yield from _of_placeholders(text, translated)
    if _CALL.search(translated) and not _CALL.search(text.text):
        yield Fault("other-call", f"text {text.key} holds a call, which English does not", text.key)
    if text.kind != PROSE:
        return
    source = PLACEHOLDER.sub(" ", text.text)
    target = PLACEHOLDER.sub(" ", translated)
    if missing := digits(source) - digits(target):
        numbers = ", ".join(map(str, missing))
        yield Fault("number-changed", f"text {text.key} lacks the number {numbers}", text.key)
    least = usual_length(language).least * _FAR_TOO_SHORT
    if len(source) >= _LONG_CHARS and len(target) < least * len(source):
        yield Fault("cut-off", f"text {text.key} is far too short", text.key)
    if len(words(source)) >= _MIN_WORDS and words(source) == words(target):
        yield Fault("not-translated", f"text {text.key} is still English", text.key)
        return
    share = script_share(target, language)
    if sum(map(str.isalpha, target)) >= _MIN_LETTERS and share is not None and share < _MIN_SHARE_OF_TEXT:
        name = NAMES[language]
        yield Fault("wrong-script", f"text {text.key} is not written in the script of {name}", text.key)


def _of_placeholders(text: Text, translated: str) -> Iterator[Fault]:
    wanted = Counter(PLACEHOLDER.findall(text.text))
    found = Counter(PLACEHOLDER.findall(translated))
    for placeholder in wanted | found:
        if not found[placeholder]:
            what = f"text {text.key} lacks {placeholder}: write it once, as it is"
            yield Fault("placeholder-lost", what, text.key)
        elif not wanted[placeholder]:
            yield Fault("placeholder-unknown", f"text {text.key} has no {placeholder} in English", text.key)
        elif found[placeholder] > wanted[placeholder]:
            what = f"text {text.key} has {placeholder} {found[placeholder]} times: write it once"
            yield Fault("placeholder-repeated", what, text.key)
        elif found[placeholder] < wanted[placeholder]:
            what = f"text {text.key} has {placeholder} too seldom: {wanted[placeholder]} times in English"
            yield Fault("placeholder-lost", what, text.key)


def _of_all(template: Template, translations: Translations, language: str) -> Iterator[Fault]:
    """Yield the faults that only all free texts of a row together show."""
    prose = _prose(template, translations)
    name = NAMES[language]
    share = script_share(prose, language)
    if sum(map(str.isalpha, prose)) >= _MIN_LETTERS and share is not None and share < _MIN_SHARE_OF_ROW:
        yield Fault("wrong-script", f"the texts are not written in the script of {name}")
    elif len(words(prose)) >= 2 * _MIN_WORDS and english_share(prose) > _MAX_ENGLISH:
        yield Fault("not-translated", f"the texts are still English: translate them into {name}")


def _prose(template: Template, translations: Translations) -> str:
    texts = [translations[text.key] for text in template.texts if text.kind == PROSE]
    return PLACEHOLDER.sub(" ", "\n".join(texts))


def _of_line(english: Mapping[str, str], line: Mapping[str, str]) -> Iterator[Fault]:
    """Yield the faults of a whole row: what ``sweep data check`` compares, and the form of the gold."""
    for problem in api_calling.problems(english, line):
        yield Fault("other-call", problem)
    call = parse_call(line["output"])
    if call is not None and line["output"] != english["output"] and serialise(call) != line["output"]:
        yield Fault("other-call", "the gold is written in another form when it is read and written again")
    wanted = [parse_call(text) for text in english["input"].split("\n")]
    found = [parse_call(text) for text in line["input"].split("\n")]
    for before, after in zip(wanted, found, strict=False):
        same = before is after or (
            before is not None
            and after is not None
            and (before.name, list(before.args)) == (after.name, list(after.args))
        )
        if not same:
            yield Fault("other-call", "an earlier call has another name or other keys than in English")


def _flags(template: Template, translations: Translations, language: str) -> Iterator[str]:
    """Yield what a person should look at, though no rule is broken."""
    prose = _prose(template, translations)
    source = _prose(template, template.originals)
    usual = usual_length(language)
    ratio = len(prose) / max(1, len(source))
    if not usual.least <= ratio <= usual.most:
        yield f"length {ratio:.2f} of English, usual {usual.least:g} to {usual.most:g}"
    share = script_share(prose, language)
    if share is not None and share < _USUAL_SHARE:
        yield f"{share:.0%} of the letters are in the script"
    english = {word for word in words(source) if len(word) > 3}
    copied = [word for word in words(prose) if word in english]
    if len(copied) > 0.25 * max(1, len(words(prose))):
        yield f"{len(copied)} words are copied from English"
    for text in template.texts:
        more = digits(PLACEHOLDER.sub(" ", translations[text.key])) - digits(PLACEHOLDER.sub(" ", text.text))
        if more:
            yield f"text {text.key} has a number that English writes as a word: {', '.join(map(str, more))}"
