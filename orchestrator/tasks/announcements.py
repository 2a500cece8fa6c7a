"""How outputs in each language announce an answer, and how a next question begins. Data only.

The first form of each language is the study's (section 3) and MGSM's; the others are ours. A *loose*
announcement is followed by its number somewhere in the sentence (``the answer is Janet's 18``), a *tight*
one, which also heads whole solutions (``Answer: Janet has 16 eggs``), by nothing but marks before it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(unicodedata.normalize("NFC", pattern), re.IGNORECASE | re.MULTILINE)


_WORDS = r"(?:\s+[\w'’()]+)"  # always with an upper bound, so that no search is long
_COLON = r"[*_\s]*[:=]"

LOOSE: Mapping[str, re.Pattern[str]] = {
    language: _compile(pattern)
    for language, pattern in {
        "en": r"\banswer(?:,?\s+(?:to|for|of|in|here|then|therefore|thus|we)\b" + _WORDS + r"{0,6}?,?)?[*_]*"
        r"\s+(?:is|was|becomes|equals|(?:would|should|will|must)\s+be)\b",
        "es": r"\brespuesta" + _WORDS + r"{0,5}?\s+(?:es|son|sería|será|fue)\b",
        "ja": r"(?:答え|解答|回答|正解|答)は",
        "bn": r"উত্তর(?:টি|টা)?(?:\s+[^\s\d।:]{1,20}){0,3}?\s*(?:হল|হলো|হ['’]ল|হচ্ছে|হবে|হয়)"
        r"(?![\u0980-\u0982\u0984-\u09ff])",
        "sw": r"\bjibu" + _WORDS + r"{0,4}?\s+(?:ni|litakuwa|itakuwa|lingekuwa)\b",
        "te": r"(?:సమాధానం|సమాధానము|జవాబు)(?![\u0c00-\u0c7f])(?![*_\s]*:)",
        "fr": r"\br[ée]ponse"
        + _WORDS
        + r"{0,5}?\s+(?:(?:est|sera|serait|était|vaut)\b|(?:s['’]élève|correspond)\s+à\b)",
        "de": r"\bantwort" + _WORDS + r"{0,5}?\s+(?:ist|lautet|beträgt|heißt|wäre|wird|war)\b"
        r"|\b(?:ist|lautet|beträgt|wäre)\s+(?:die|meine|unsere)\s+(?:\w+\s+)?antwort\b",
        "ru": r"\bответ(?:ом)?"
        + _WORDS
        + r"{0,3}?(?:[*_\s]*[:=–—-]|\s+(?:равен|составляет|будет|является|таков|это)\b)",
        "zh": r"答案(?:就|应该|應該|应|應|将|將)?\s*(?:是(?!否)|为|為|等于|等於)",
        "th": r"คำตอบ(?:ของ[^\s\d]{1,40}?|สุดท้าย|ที่ถูกต้อง|ที่ได้)?\s*(?:ก็|จึง)?(?:คือ|เป็น|เท่ากับ)",
    }.items()
}
"""Language to announcements whose number follows in the same sentence."""

TIGHT: Mapping[str, re.Pattern[str]] = {
    language: _compile(pattern)
    for language, pattern in {
        "en": r"\banswer" + _COLON,
        "es": r"\brespuesta(?:\s+(?:final|correcta))?" + _COLON,
        "ja": r"(?:答え|解答|回答|答)" + _COLON,
        "bn": r"উত্তর(?:টি|টা)?ঃ?",
        "sw": r"\bjibu(?:\s+(?:la\s+mwisho|sahihi))?(?:" + _COLON + r"|\b)",
        "te": r"(?:సమాధానం|సమాధానము|జవాబు)",
        "fr": r"\br[ée]ponse(?:\s+(?:finale|correcte))?" + _COLON,
        "de": r"\bantwort" + _COLON,
        "ru": r"\bответ\b",
        "zh": r"答案?" + _COLON,
        "th": r"ตอบ",
    }.items()
}
"""Language to announcements whose number follows at once."""

_HEADERS = (
    "Question|Q|Problem|Pregunta|Frage|Aufgabe|Задача|Вопрос|Swali|问题|問題|问|問|題目|题目|質問"
    "|প্রশ্ন|ప్రశ్న|โจทย์|คำถาม"
)

QUESTION = _compile(
    rf"^[ \t>*_#`-]*(?:{_HEADERS})(?:[ \t]*\#?\d+)?[ \t\u00a0\u202f*_]*[:：ঃ]"
    rf"|(?<=\n)[ \t]*(?:#{{1,6}}|\*\*)[ \t*_]*(?:{_HEADERS})(?:[ \t]*\#?\d+)?[ \t*_]*$"
    rf"|(?<=\n)[ \t]*(?:{_HEADERS})[ \t]*\#?\d+[ \t]*[.)]?[ \t]*$"
    r"|\bQuestion:[ \t*_]*$"
)
"""The header of a next question: MGSM's in any language at the start of a line, as a heading of its own later
on, the prompt's own anywhere."""
