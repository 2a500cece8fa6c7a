"""Extraction of the number that a generated text gives as its answer (study section 3).

Evidence is ranked: an announced number first, then a boxed one, then the last number of the text. The
phrases that announce an answer are data of `announcements`; `numbers` reads numbers. Every function accepts
any text without raising and takes time linear in its length.
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
    FINAL,
    HASHES,
    LOOSE,
    MINUS,
    OF,
    OPERATORS,
    PERCENT,
    QUESTION,
    ROLE,
    TIGHT,
    begins_list,
    is_reply,
)
from orchestrator.tasks.numbers import CURRENCY, Number, find, normalise

MAX_SENTENCE = 400
"""Maximum number of characters between a loose announcement and its number (our choice). Beyond it, the
text has moved to another topic."""

MAX_MARKS = 24
"""Maximum number of characters between a tight announcement and its number (our choice). The same limit
holds for the rest of the line after a number behind ``####``."""

MAX_HEADERS = 20
"""Maximum number of headers of each kind that `cut` examines, so that no search is long (our choice)."""

MAX_BARE = 80
"""Maximum length in characters of a text that consists of a number and its unit (our choice)."""


def cut(text: str) -> str:
    """Return the text up to the place where it continues with something other than the answer.

    After an answer, base models often continue with the next question, a next chat turn or a next exercise.
    Numbers of that part must not count as the answer. A header ends the text as follows:

    - A next question always ends the text.
    - A next speaker ends it once the text has a digit. Models also put headers such as ``### Response:``
      over their own answer. Such a header ends the text only if an answer stands before it.
    - A next exercise or example also ends it once the text has a digit. If a list may have begun (``Example
      1``), an answer must stand before it.

    The place of the cut depends only on the text before it. Therefore cutting early changes no verdict.
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
    r"""Return the answer of a generated text: the announced number, else the boxed one, else the last one.

    Later announcements win over earlier ones, because models correct themselves. A calculation counts as
    its result. For example::

        The answer is 20. Wait, the answer is 9 * 2 = 18.   -> 18
        So it is \boxed{18}, for 3 days.                    -> 18
        She sells 9 eggs and earns 18 dollars               -> 18

    Args:
        text: the text as it was generated.
        language: the language of the item. English announcements count in every language.
        truncated: whether the text ends because of the token limit. Its last number may then be incomplete.
    """
    text = normalise(cut(text))
    # A reasoning model's answer follows its thoughts. Without a number there, the thoughts are searched as
    # well.
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
    # Announcements are sorted from last to first. If the last number may be incomplete, the one before it
    # is safer. A boxed number serves as well.
    if announced and _is_doubtful(text, announced, truncated=truncated):
        announced = announced[1:] if len(announced) > 1 or boxed is not None else announced
    if announced:
        start, number, _ = announced[0]
        return (
            -number.magnitude
            if _is_negative_in_words(text, start, number, language)
            else number.value(after=start)
        )
    return (_last(text, numbers) if boxed is None else _evaluated(text, numbers, boxed)[0]).value()


def gold_number(gold: str) -> Decimal | None:
    """Return the number that a gold answer consists of, or None if it is not exactly one number."""
    numbers = find(normalise(gold), "en")
    return numbers[0].value() if len(numbers) == 1 else None


_ITEM = re.compile(r"^([^\w\n]{0,6}(?:[^\W\d_]{1,12} ?)?)(\d{1,2})([.):])(?=[\s*]|\Z)", re.MULTILINE)


def _last(text: str, numbers: list[Number]) -> Number:
    """Return the last number that does not merely count an entry of a list: ``Step 3: So it is eighteen``.

    A number counts an entry if an earlier entry has the same head and mark and the number before it.
    """
    seen, counts = set(), set()
    for item in _ITEM.finditer(text):
        head, count, mark = item[1], int(item[2]), item[3]
        if (head, count - 1, mark) in seen:
            counts.add(item.start(2))
        elif count > 1:
            continue  # without an entry 1, such as 17 and 18 on two lines, these are numbers
        seen.add((head, count, mark))
    return next((number for number in reversed(numbers) if number.start not in counts), numbers[-1])


_DIGIT = re.compile(r"\d")
_BARE = re.compile(r"[^\w\n]*\d[\d.,]*[^\d\n]{0,24}")


def _has_answer(text: str) -> bool:
    """Return whether a text announces or boxes an answer in any language, or is only a number."""
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
        start: where the announcement ends and its number may begin.
        number: the announced number, or the result of the calculation that it begins.
        end: the end of the calculation that begins with the number.
    """

    start: int
    number: Number
    end: int


def _is_doubtful(text: str, announced: Sequence[_Announced], *, truncated: bool) -> bool:
    """Return whether the last announced number may be incomplete.

    It may be only if it ends the text. If the token limit ended the text, any such number is doubtful.
    Otherwise it is doubtful only if an earlier announced number begins with it: ``1`` after ``18``.
    """
    if text[announced[0].end :].strip():
        return False
    written, *earlier = (text[number.start : number.end] for _, number, _ in announced)
    return truncated or any(other != written and other.startswith(written) for other in earlier)


def _is_negative_in_words(text: str, start: int, number: Number, language: str) -> bool:
    """Return whether a word for minus stands between an announcement and its number."""
    words = "|".join(dict.fromkeys((MINUS.get(language, MINUS["en"]), MINUS["en"])))
    between = text[start : number.start][:MAX_MARKS]
    return bool(re.fullmatch(rf"[\s:：*_$€£¥₹(]*(?:{words})[\s$€£¥₹(]*", between, re.IGNORECASE))


def _found(text: str, language: str, numbers: list[Number]) -> Iterator[tuple[int, int]]:
    """Yield the end of each announcement and the index of its number, the last announcement first."""
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
            # In "the answer is not 20 but 18" the next number is the announced one, if it is in the same
            # sentence.
            index += 1
            if index == len(numbers) or _is_denied(text, numbers[index]):
                continue
            if not _same_sentence(text[numbers[index - 1].end : numbers[index].start]):
                continue
        # ``####`` is also a heading's mark in Markdown, so its number must end the line.
        if kind != "hashes" or _ends_line(text, _evaluated(text, numbers, index)[0].end):
            yield start, index


_LIST_MARK = re.compile(r"[.)]\s*[^\s\W]")


def _ends_line(text: str, end: int) -> bool:
    """Return whether at most a unit follows on the line: ``#### 1. First step`` is a heading."""
    rest = text[end : end + MAX_MARKS + 1].partition("\n")[0]
    return len(rest) <= MAX_MARKS and not _DIGIT.search(rest) and not _LIST_MARK.match(rest)


_SENTENCE_END = re.compile(r"[。！？।॥]|[?!](?=\s)|[^\s.]{4}\.(?=\s)|(?<!:)\n\s*\n")
_TEX_COMMAND = re.compile(r"\\[A-Za-z]+")


def _same_sentence(between: str) -> bool:
    """Return whether a text is short and contains no end of a sentence."""
    return len(between) <= MAX_SENTENCE and not _SENTENCE_END.search(between)


MAX_HEADING_WORDS = 3
_ANNOUNCES = frozenset(":=→⇒>]")
_ALONE = re.compile(r"[^\w\n]{0,8}(?:\n|\Z)")
_ALONE_WITH_UNIT = re.compile(r"[^\d\n.!?]{0,24}[^\w\n]{0,8}(?:\n\s{0,9}\n|\Z)")


def _follows(text: str, start: int, number: Number) -> bool:
    """Return whether only marks stand between an announcement and its number.

    The number may also stand on a later line. Then it must have that line to itself, and the announcement
    must look like a heading.
    """
    between = text[start : number.start]
    if "\n" in between:
        line = text[max(0, start - MAX_BARE) : start].rpartition("\n")[2].rstrip()
        is_heading = line[-1:] in _ANNOUNCES or len(line.strip("#*_ ").split()) <= MAX_HEADING_WORDS
        alone = _ALONE_WITH_UNIT if FINAL.search(line) else _ALONE
        if not is_heading or not (alone.match(text, number.end) or _ALONE.match(text, number.end)):
            return False
    return _only_marks(between.replace("\n", " "))


def _is_denied(text: str, number: Number) -> bool:
    """Return whether the words around a number deny that it is the answer."""
    before = text[max(0, number.start - MAX_MARKS) : number.start]
    return DENIED_BEFORE.search(before) is not None or DENIED_AFTER.match(text, number.end) is not None


def _only_marks(between: str) -> bool:
    """Return whether a text is short, on one line, and without letters. TeX commands are no letters."""
    if len(between) > MAX_MARKS or "\n" in between:
        return False
    return not any(unicodedata.category(mark)[0] in "LM" for mark in _TEX_COMMAND.sub("", between))


def _boxed(text: str, numbers: list[Number]) -> int | None:
    r"""Return the index of the first number in the last ``\boxed{}`` or after ``\boxed``, or None."""
    boxes = [match.end() for match in _BOX.finditer(text)]
    if not boxes:
        return None
    start = boxes[-1]
    if len(boxes) > 1 and "{" in text[start:] and "}" not in text[start:]:
        start = boxes[-2]  # the token limit cut off the last box
    opening = _OPENING.match(text, start)
    if opening is None:
        end = start + (0 if text[start : start + 1] != " " else MAX_MARKS)
    else:
        start = end = opening.end()
        depth, begin = 1, opening[0][-1]
        while end < len(text) and depth:
            depth += {begin: 1, _CLOSING[begin]: -1}.get(text[end], 0)
            end += 1
    index = bisect_left(numbers, start, key=lambda number: number.start)
    if index == len(numbers) or numbers[index].start >= end:
        return None
    return index if opening or _only_marks(text[start : numbers[index].start]) else None


# A calculation may carry units (9 eggs * 2 dollars/egg = 18 dollars), currency signs and TeX commands. The
# patterns below match what stands between two of its numbers.
_BOX = re.compile(r"\\boxed|(?<!\w)boxed(?= ?\{)")  # with TeX's backslash, or at least its brace
_OPENING = re.compile(r" ?[{(\[]")
_CLOSING = {"{": "}", "(": ")", "[": "]"}
_SIGNS = rf"[\s()%\\{re.escape(CURRENCY)}]"
_UNITS = (
    r"(?:/ ?[^\W\d_]{1,15})?(?:[^\d\s=≈+*/×÷·(),.;:!?。，、；：।-]{1,20}\.? ?){0,3}(?:/ ?[^\W\d_]{1,15} ?)?"
)
_OPERATION = re.compile(
    rf"{_SIGNS}{{0,4}}{_UNITS}{_SIGNS}{{0,4}}(?:[-+*/×÷·xX]|\\times|\\cdot|\\div){_SIGNS}{{0,4}}|\)?\^[{{(]?|\)?\(|\}}\{{"
)
_IN_WORDS = re.compile(
    rf"{_SIGNS}{{0,4}}{_UNITS}{_SIGNS}{{0,4}}(?:{OPERATORS}){_SIGNS}{{0,4}}", re.IGNORECASE
)
# What is applied to a single number: 3! = 6, 5 squared = 25, √16 = 4, |-5| = 5.
_APPLIED_AFTER = re.compile(
    r" ?(?:!|squared|cubed|al cuadrado|au carré|zum Quadrat|в квадрате|的平方|の2乗)", re.IGNORECASE
)
_APPLIED_BEFORE = re.compile(r"(?:√|sqrt(?:\[\d\])? ?[({]?|square root of|\|) ?-?\Z")
_SHARE = re.compile(
    rf"{_SIGNS}{{0,4}}(?:{PERCENT})?{_SIGNS}{{0,4}}(?:{OF}) ?"
    rf"(?:(?:the|den|dem|les?|l[ao]s?|el)\b)?{_SIGNS}{{0,4}}",
    re.IGNORECASE,
)
_EQUALS = re.compile(rf"{_SIGNS}{{0,4}}{_UNITS}{_SIGNS}{{0,4}}[=≈]{_SIGNS}{{0,4}}")
_EQUALS_ALONE = re.compile(rf"[|}}]?{_SIGNS}{{0,4}}[=≈]{_SIGNS}{{0,4}}")
_EQUALS_IN_WORDS = re.compile(
    rf"{_SIGNS}{{0,4}}(?:{PERCENT})?\s{{0,2}}(?:{EQUALS}){_SIGNS}{{0,4}}", re.IGNORECASE
)
_MAX_GAP = 90


def _evaluated(text: str, numbers: list[Number], index: int) -> tuple[Number, int]:
    """Return a number, or the result of the calculation that begins with it (``20% of 90 = 18``).

    The second value is the end of that calculation. The gaps between successive numbers decide how far it
    goes. An operation or a share continues it, and an equals sign makes the next number the result. Any
    other gap ends it.
    """
    result, at = index, index
    is_share = False  # whether words may stand for the equals sign
    applied = _APPLIED_AFTER.match(text, numbers[index].end)
    is_applied = _APPLIED_BEFORE.search(text, max(0, numbers[index].start - 20), numbers[index].start)
    while at + 1 < len(numbers):
        following = numbers[at + 1]
        end = applied.end() if applied and at == index else numbers[at].end
        gap = text[end : following.start if following.sign_at < 0 else following.sign_at]
        at += 1
        if len(gap) > _MAX_GAP:
            at -= 1
            break
        is_single = at - 1 == index and (applied or is_applied)
        is_result = at - 1 > index and (
            _EQUALS.fullmatch(gap) or (is_share and _EQUALS_IN_WORDS.fullmatch(gap))
        )
        if is_result or (is_single and _EQUALS_ALONE.fullmatch(gap)):
            result, is_share = at, False
        elif _SHARE.fullmatch(gap) or _IN_WORDS.fullmatch(gap):
            is_share = True
        elif not _OPERATION.fullmatch(gap):
            at -= 1
            break
    return numbers[result], numbers[at].end
