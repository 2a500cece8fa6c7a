"""Languages as the checks see them: scripts, usual lengths beside English, and a few English words.

The thresholds are ours. A hard check refuses a translation; a soft one only flags it for the review.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from orchestrator.tasks.base import LANGUAGES

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

TOKENS_PER_ENGLISH = {
    "es": 1.2,
    "fr": 1.21,
    "de": 1.27,
    "ru": 1.38,
    "zh": 1.07,
    "ja": 1.34,
    "th": 1.89,
    "sw": 1.54,
    "bn": 3.22,
    "te": 4.91,
}
"""Tokens of a text beside those of its English original, as Qwen3's tokenizer counts MGSM (measured)."""


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
