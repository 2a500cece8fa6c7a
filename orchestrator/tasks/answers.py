"""Finds the number that a generated text gives as its answer (study section 3).

Owns the order in which signs of an answer are trusted: announced, boxed, last. How answers are announced is
data of `announcements`, how numbers are read is `numbers`. Every function is total and linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator
from decimal import Decimal

from orchestrator.tasks.announcements import LOOSE, QUESTION, TIGHT
from orchestrator.tasks.numbers import CURRENCY, Number, find, normalise

MAX_SENTENCE = 400
"""Characters between an announcement and its number, at most: more is another topic (ours)."""

MAX_MARKS = 24
"""Characters between a tight announcement and its number, at most (ours)."""


def cut(text: str) -> str:
    """Returns the text up to the next question header: what base models write when they run on."""
    header = QUESTION.search(text)
    return text[: header.start()] if header else text


def extract(text: str, language: str) -> Decimal | None:
    """Returns the answer of a generated text: announced, else boxed, else its last number."""
    text = normalise(cut(text))
    numbers = find(text, language)
    if not numbers:
        return None
    for start, index in _announced(text, language, numbers):
        return _evaluated(text, numbers, index).value(after=start)
    boxed = _boxed(text, numbers)
    return (numbers[-1] if boxed is None else _evaluated(text, numbers, boxed)).value()


def gold_number(gold: str) -> Decimal | None:
    """Returns the number that a gold answer consists of, or None when it is not one number."""
    numbers = find(normalise(gold), "en")
    return numbers[0].value() if len(numbers) == 1 else None


def _announced(text: str, language: str, numbers: list[Number]) -> Iterator[tuple[int, int]]:
    """Yields where an announcement ends and the index of its number, the last announcement first."""
    if language not in LOOSE:
        return
    found = [(match.end(), True) for match in LOOSE[language].finditer(text)]
    found += [(match.end(), False) for match in TIGHT[language].finditer(text)]
    for start, is_loose in sorted(found, reverse=True):
        index = bisect_left(numbers, start, key=lambda number: number.start)
        if index == len(numbers):
            continue
        between = text[start : numbers[index].start]
        if _same_sentence(between) if is_loose else _only_marks(between):
            yield start, index


_SENTENCE_END = re.compile(r"[。！？।॥]|[?!](?=\s)|[^\s.]{4}\.(?=\s)|(?<!:)\n\s*\n")
_TEX_COMMAND = re.compile(r"\\[A-Za-z]+")


def _same_sentence(between: str) -> bool:
    return len(between) <= MAX_SENTENCE and not _SENTENCE_END.search(between)


def _only_marks(between: str) -> bool:
    if len(between) > MAX_MARKS or "\n" in between:
        return False
    return not any(unicodedata.category(mark)[0] in "LM" for mark in _TEX_COMMAND.sub("", between))


def _boxed(text: str, numbers: list[Number]) -> int | None:
    r"""Returns the index of the first number in the last ``\boxed{}``, if there is one."""
    at = text.rfind("boxed{")
    if at < 0:
        return None
    start = end = at + len("boxed{")
    depth = 1
    while end < len(text) and depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    index = bisect_left(numbers, start, key=lambda number: number.start)
    return index if index < len(numbers) and numbers[index].start < end else None


_SIGNS = rf"[\s()\\{re.escape(CURRENCY)}]"
_OPERATION = re.compile(rf"{_SIGNS}{{0,4}}(?:[-+*/×÷·xX]|\\times|\\cdot|\\div){_SIGNS}{{0,4}}")
_EQUALS = re.compile(rf"{_SIGNS}{{0,4}}[=≈]{_SIGNS}{{0,4}}")


def _evaluated(text: str, numbers: list[Number], index: int) -> Number:
    """Returns the number, or, where a calculation begins with it (``9 * 2 = 18``), the result."""
    result, at = index, index
    while at + 1 < len(numbers):
        following = numbers[at + 1]
        gap = text[numbers[at].end : following.start if following.sign_at < 0 else following.sign_at]
        at += 1
        if _EQUALS.fullmatch(gap) and at - 1 > index:
            result = at
        elif not _OPERATION.fullmatch(gap):
            break
    return numbers[result]
