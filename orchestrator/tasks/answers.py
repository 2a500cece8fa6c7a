"""Finds the number that a generated text gives as its answer (study section 3).

Owns the order in which signs of an answer are trusted: announced, boxed, last. How answers are announced is
data of `announcements`, how numbers are read is `numbers`. Every function is total and linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import islice
from typing import NamedTuple

from orchestrator.tasks.announcements import (
    DENIED_AFTER,
    DENIED_BEFORE,
    EQUALS,
    EXAMPLE,
    HASHES,
    LOOSE,
    MINUS,
    OF,
    PERCENT,
    QUESTION,
    ROLE,
    TIGHT,
    begins_list,
    is_reply,
)
from orchestrator.tasks.numbers import CURRENCY, Number, find, normalise

MAX_SENTENCE = 400
"""Characters between an announcement and its number, at most: more is another topic (ours)."""

MAX_MARKS = 24
"""Characters between a tight announcement and its number, or after it on GSM8K's line, at most (ours)."""

MAX_HEADERS = 20
"""Headers of exercises or examples that are looked at, so that no search is long (ours)."""

MAX_BARE = 80
"""Characters of a text that consists of a number and its unit, at most (ours)."""


def cut(text: str) -> str:
    """Return the text up to where it runs on: what base models write after an answer; see `run_ons`.

    Where a text is cut depends only on what stands before that place, so looking early changes nothing.
    """
    header = QUESTION.search(text)
    text = text[: header.start()] if header else text
    if number := _DIGIT.search(text):
        for role in islice(ROLE.finditer(text, number.end()), MAX_HEADERS):
            if not is_reply(role) or _has_answer(text[: role.start()]):
                text = text[: role.start()]
                break
        is_list = False
        for example in islice(EXAMPLE.finditer(text), MAX_HEADERS):
            is_list |= begins_list(example)
            is_after = example.start() >= number.end()
            if is_after and (not is_list or _has_answer(text[: example.start()])):
                return text[: example.start()]
    return text


def extract(text: str, language: str, *, truncated: bool = False) -> Decimal | None:
    """Return the answer of a generated text: announced, else boxed, else its last number.

    Args:
        text: as it was generated.
        language: of the item; English announcements count in every language.
        truncated: the text ends because of the token limit, so its last number may be a part of one.
    """
    text = normalise(cut(text))
    _, thought, rest = text.rpartition("</think>")
    text = rest if thought and _DIGIT.search(rest) else text
    numbers = find(text, language)
    if not numbers:
        return None
    announced = [
        _Announced(start, *_evaluated(text, numbers, index))
        for start, index in _found(text, language, numbers)
    ]
    boxed = _boxed(text, numbers)
    if announced and _is_doubtful(text, announced, truncated=truncated):
        announced = announced[1:] if len(announced) > 1 or boxed is not None else announced
    if announced:
        start, number, _ = announced[0]
        return (
            -number.magnitude
            if _is_said_negative(text, start, number, language)
            else number.value(after=start)
        )
    return (_last(text, numbers) if boxed is None else _evaluated(text, numbers, boxed)[0]).value()


def gold_number(gold: str) -> Decimal | None:
    """Return the number that a gold answer consists of, or None when it is not one number."""
    numbers = find(normalise(gold), "en")
    return numbers[0].value() if len(numbers) == 1 else None


_ITEM = re.compile(r"^([^\w\n]{0,6}(?:[^\W\d_]{1,12} ?)?)(\d{1,2})([.):])(?=[\s*]|\Z)", re.MULTILINE)


def _last(text: str, numbers: list[Number]) -> Number:
    """Return the last number that does not merely count items of a list: ``Step 3: So it is eighteen``."""
    seen, counts = set(), set()
    for item in _ITEM.finditer(text):
        head, count, mark = item[1], int(item[2]), item[3]
        if (head, count - 1, mark) in seen:
            counts.add(item.start(2))
        elif count > 1:
            continue  # 18 below 17 on lines of their own are numbers
        seen.add((head, count, mark))
    return next((number for number in reversed(numbers) if number.start not in counts), numbers[-1])


_DIGIT = re.compile(r"\d")
_BARE = re.compile(r"[^\w\n]*\d[\d.,]*[^\d\n]{0,24}")


def _has_answer(text: str) -> bool:
    """Whether an answer in any language is announced or boxed in a text, or the text is but a number."""
    bare = text.strip()
    if len(bare) <= MAX_BARE and _BARE.fullmatch(bare):
        return True
    text = normalise(text)
    numbers = find(text, "en")
    return _boxed(text, numbers) is not None or any(
        next(_found(text, language, numbers), None) is not None for language in LOOSE
    )


class _Announced(NamedTuple):
    """An announcement.

    Attributes:
        start: where it ends, and its number may begin.
        number: what it announces.
        end: where the calculation ends that begins with the number.
    """

    start: int
    number: Number
    end: int


def _is_doubtful(text: str, announced: Sequence[_Announced], *, truncated: bool) -> bool:
    """Whether the last announced number may have been cut off: it ends the text and others outvote it.

    Without knowing whether the text was cut, only the beginning of a number announced before is doubtful.
    """
    if text[announced[0].end :].strip():
        return False
    written, *earlier = (text[number.start : number.end] for _, number, _ in announced)
    return truncated or any(other != written and other.startswith(written) for other in earlier)


def _is_said_negative(text: str, start: int, number: Number, language: str) -> bool:
    words = "|".join(dict.fromkeys((MINUS.get(language, MINUS["en"]), MINUS["en"])))
    between = text[start : number.start][:MAX_MARKS]
    return bool(re.fullmatch(rf"[\s:：*_$€£¥₹(]*(?:{words})[\s$€£¥₹(]*", between, re.IGNORECASE))


def _found(text: str, language: str, numbers: list[Number]) -> Iterator[tuple[int, int]]:
    """Yield where an announcement ends and the index of its number, the last announcement first."""
    found = [(match.end(), "hashes") for match in HASHES.finditer(text)]
    for code in dict.fromkeys((language, "en")):
        if code in LOOSE:
            found += [(match.end(), "loose") for match in LOOSE[code].finditer(text)]
            found += [(match.end(), "tight") for match in TIGHT[code].finditer(text)]
    for start, kind in sorted(found, reverse=True):
        index = bisect_left(numbers, start, key=lambda number: number.start)
        if index == len(numbers):
            continue
        between = text[start : numbers[index].start]
        if not (_same_sentence(between) if kind == "loose" else _follows(text, start, numbers[index])):
            continue
        if _is_denied(text, numbers[index]):
            index += 1
            if index == len(numbers) or _is_denied(text, numbers[index]):
                continue
            if not _same_sentence(text[numbers[index - 1].end : numbers[index].start]):
                continue
        if kind != "hashes" or _ends_line(text, _evaluated(text, numbers, index)[0].end):
            yield start, index


_LIST_MARK = re.compile(r"[.)]\s*[^\s\W]")


def _ends_line(text: str, end: int) -> bool:
    """Whether hardly more than a unit follows on the line: ``#### 1. First step`` is a heading."""
    rest = text[end : end + MAX_MARKS + 1].partition("\n")[0]
    return len(rest) <= MAX_MARKS and not _DIGIT.search(rest) and not _LIST_MARK.match(rest)


_SENTENCE_END = re.compile(r"[。！？।॥]|[?!](?=\s)|[^\s.]{4}\.(?=\s)|(?<!:)\n\s*\n")
_TEX_COMMAND = re.compile(r"\\[A-Za-z]+")


def _same_sentence(between: str) -> bool:
    return len(between) <= MAX_SENTENCE and not _SENTENCE_END.search(between)


MAX_HEADING_WORDS = 3
_ANNOUNCES = frozenset(":=→⇒>]")
_ALONE = re.compile(r"[^\w\n]{0,8}(?:\n|\Z)")


def _follows(text: str, start: int, number: Number) -> bool:
    """Whether nothing but marks stand before a number: on the line, or on a later one that it has alone."""
    between = text[start : number.start]
    if "\n" in between:
        line = text[max(0, start - MAX_BARE) : start].rpartition("\n")[2].rstrip()
        is_heading = line[-1:] in _ANNOUNCES or len(line.split()) <= MAX_HEADING_WORDS
        if not is_heading or not _ALONE.match(text, number.end):
            return False
    return _only_marks(between.replace("\n", " "))


def _is_denied(text: str, number: Number) -> bool:
    before = text[max(0, number.start - MAX_MARKS) : number.start]
    return DENIED_BEFORE.search(before) is not None or DENIED_AFTER.match(text, number.end) is not None


def _only_marks(between: str) -> bool:
    if len(between) > MAX_MARKS or "\n" in between:
        return False
    return not any(unicodedata.category(mark)[0] in "LM" for mark in _TEX_COMMAND.sub("", between))


def _boxed(text: str, numbers: list[Number]) -> int | None:
    r"""Return the index of the first number in the last ``\boxed{}`` or after ``\boxed``, if there is one."""
    at = text.rfind("boxed")
    before = text.rfind("boxed", 0, max(at, 0))
    if before >= 0 and "{" in text[at:] and "}" not in text[at:]:
        at = before  # the last one was cut off
    if at < 0:
        return None
    start = at + len("boxed")
    opening = _OPENING.match(text, start)
    if opening is None:
        end = start + (0 if text[start : start + 1] != " " else MAX_MARKS)
    else:
        start = end = opening.end()
        depth = 1
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
    index = bisect_left(numbers, start, key=lambda number: number.start)
    if index == len(numbers) or numbers[index].start >= end:
        return None
    return index if opening or _only_marks(text[start : numbers[index].start]) else None


_OPENING = re.compile(r" ?\{")
_SIGNS = rf"[\s()%\\{re.escape(CURRENCY)}]"
_UNITS = (  # 9 eggs * 2 dollars/egg = 18 dollars
    r"(?:/ ?[^\W\d_]{1,15})?(?:[^\d\s=≈+*/×÷·(),.;:!?。，、；：।-]{1,20}\.? ?){0,3}"
)
_OPERATION = re.compile(
    rf"{_SIGNS}{{0,4}}{_UNITS}{_SIGNS}{{0,4}}(?:[-+*/×÷·xX]|\\times|\\cdot|\\div){_SIGNS}{{0,4}}|\)?\^[{{(]?|\)?\("
)
_SHARE = re.compile(
    rf"{_SIGNS}{{0,4}}(?:{PERCENT})?{_SIGNS}{{0,4}}(?:{OF}) ?"
    rf"(?:(?:the|den|dem|les?|l[ao]s?|el)\b)?{_SIGNS}{{0,4}}",
    re.IGNORECASE,
)
_EQUALS = re.compile(rf"{_SIGNS}{{0,4}}{_UNITS}{_SIGNS}{{0,4}}[=≈]{_SIGNS}{{0,4}}")
_SAID_EQUALS = re.compile(
    rf"{_SIGNS}{{0,4}}(?:{PERCENT})?\s{{0,2}}(?:{EQUALS}){_SIGNS}{{0,4}}", re.IGNORECASE
)
_MAX_GAP = 90


def _evaluated(text: str, numbers: list[Number], index: int) -> tuple[Number, int]:
    """Return the number, or, where a calculation begins with it (``20% of 90 = 18``), the result.

    The second value is where the calculation ends.
    """
    result, at = index, index
    is_share = False
    while at + 1 < len(numbers):
        following = numbers[at + 1]
        gap = text[numbers[at].end : following.start if following.sign_at < 0 else following.sign_at]
        at += 1
        if len(gap) > _MAX_GAP:
            at -= 1
            break
        if at - 1 > index and (_EQUALS.fullmatch(gap) or (is_share and _SAID_EQUALS.fullmatch(gap))):
            result, is_share = at, False
        elif _SHARE.fullmatch(gap):
            is_share = True
        elif not _OPERATION.fullmatch(gap):
            at -= 1
            break
    return numbers[result], numbers[at].end
