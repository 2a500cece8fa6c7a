"""Words of magnitude beside a number, such as ``70 mil``, ``7万`` or ``elfu 70``, as patterns.

The words are those of the study's eleven languages. The words of English and Russian count in all
languages, and so do those of the other scripts. A word may depend on the language: ``billion`` is 10^9 in
English and 10^12 in French and German. Words that count the items themselves (``dozen``, ``pair``) are left
out, because then the count is often the answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal

_END = r"(?![A-Za-z0-9_\u00c0-\u024f\u0400-\u04ff])(?!-[^\W\d])"
"""The end of a word in Latin or Cyrillic script. In ``5 hundred-dollar bills`` the number is 5, not 500."""

_LATIN: Mapping[str, Mapping[str, int]] = {
    "en": {
        r"hundreds?": 2,
        r"thousands?": 3,
        r"lakhs?|lacs?": 5,
        r"millions?|ml?n\.?": 6,
        r"crores?": 7,
        r"billions?|bn": 9,
        r"trillions?|tn": 12,
    },
    "es": {
        r"cientos|centenares|centenas": 2,
        r"mil|miles|millares": 3,
        r"mill[oó]n(?:es)?": 6,
        r"millardos?": 9,
        r"bill[oó]n(?:es)?": 12,
    },
    "fr": {
        r"centaines?": 2,
        r"mille|milliers?": 3,
        r"millions?": 6,
        r"milliards?|mds?": 9,
        r"billions?": 12,
    },
    "de": {
        r"hundert": 2,
        r"tausend|tsd\.?": 3,
        r"million(?:en)?|mio\.?": 6,
        r"milliarden?|mrd\.?": 9,
        r"billion(?:en)?": 12,
        r"hunderttausend": 5,
    },
    "ru": {
        r"сот(?:ня|ни|ню|ен)": 2,
        r"тысяч(?:а|и|у|е|ей|ам|ами|ах)?|тыс\.?": 3,
        r"миллион(?:а|у|ом|е|ы|ов|ам|ами|ах)?|млн\.?": 6,
        r"миллиард(?:а|у|ом|е|ы|ов|ам|ами|ах)?|млрд\.?": 9,
        r"триллион(?:а|у|ом|е|ы|ов|ам|ами|ах)?|трлн\.?": 12,
    },
    "sw": {r"mia": 2, r"elfu|maelfu": 3, r"laki": 5, r"milioni": 6, r"bilioni": 9, r"trilioni": 12},
}
"""Map from language to patterns of whole words, in any case, with their powers of ten."""

_OTHER: Mapping[str, Mapping[str, int]] = {
    "zh": {
        r"十(?![一二三四五六七八九分])": 1,
        r"百(?![分货貨合])": 2,
        r"千(?![克米瓦卡赫帕字焦伏])": 3,  # 3千克 is three kilograms
        r"[万萬](?!一)": 4,
        r"[亿億]": 8,
        r"兆(?![字赫瓦比位帕欧歐焦牛])": 12,
    },
    "ja": {
        r"十(?![一二三四五六七八九分])": 1,
        r"百(?![分貨合])": 2,
        r"千": 3,
        r"[万萬](?!一)": 4,
        r"[億亿]": 8,
        r"兆": 12,
    },
    "th": {
        r"ร้อย(?!ละ|เอก|ตรี|โท)": 2,
        r"พัน(?!ธ|เอก|ตรี|โท)": 3,  # พันธุ์ is a breed
        r"หมื่น": 4,
        r"แสน": 5,
        r"ล้าน": 6,
    },
    "bn": {
        r"শত(?:টি|টা)?(?![\u0980-\u09ff])|শ['’ো]?(?![\u0980-\u09ff])": 2,
        r"হাজার(?!্)": 3,
        r"লাখ(?!্)|লক্ষ(?!্)": 5,  # লক্ষ্য is a goal
        r"মিলিয়ন|নিযুত": 6,
        r"কোটি": 7,
        r"বিলিয়ন": 9,
        r"ট্রিলিয়ন": 12,
    },
    "te": {
        r"వంద(?:లు|ల)?(?!న)": 2,
        r"వేలు|వేల(?!ం)|వేయి|వెయ్యి": 3,
        r"లక్ష(?:లు|ల)?(?![్ణ])": 5,  # లక్ష్యం is a goal, లక్షణం a feature
        r"మిలియన్(?:లు|ల)?": 6,
        r"కోటి|కోట్లు|కోట్ల": 7,
        r"బిలియన్(?:లు|ల)?": 9,
        r"ట్రిలియన్(?:లు|ల)?": 12,
    },
}
"""The same for scripts in which suffixes, counters or the next word follow without a space."""

_GLUED = {r"[kKкК]": 3, r"M": 6}
"""Letters directly after the digits: ``70k`` and ``3M``, but neither ``70 km`` nor ``3 m``."""

_PAID = {r"[mM]": 6, r"[bB]": 9, r"[tT]": 12}
"""Letters directly after the digits of an amount that follows a currency sign: ``$3m``."""

_EUROS = {r"[kK]": 3, r"M": 6, r"Md": 9}
"""Letters between a number and a currency sign: ``70 k€``."""

_SPACE = r"[ \u00a0\u202f\u2009\n]"
_SIGN = r"[$€£¥₹₽]"


def _entries(language: str) -> list[tuple[str, int]]:
    """Return the patterns of words that count in a language, and their powers of ten."""
    words = [(rf"(?i:{word}){_END}", power) for word, power in _LATIN.get(language, {}).items()]
    words += [(word, power) for word, power in _OTHER.get(language, {}).items()]
    # The language's own words come first, so that a word of two languages has the meaning of the text's
    # language. Words in a script of their own cannot be confused with others.
    others = [_LATIN[code] for code in ("en", "ru") if code != language]
    words += [(rf"(?i:{word}){_END}", power) for other in others for word, power in other.items()]
    # Chinese and Japanese share their script. Its words count as Japanese in Japanese texts only.
    left_out = {language, "ja"} | ({"zh"} if language == "ja" else set())
    scripts = [_OTHER[code] for code in _OTHER if code not in left_out]
    return [*words, *((word, power) for other in scripts for word, power in other.items())]


def _compile(entries: list[tuple[str, int]], before: str = "") -> tuple[re.Pattern[str], tuple[int, ...]]:
    """Return one pattern for all words, and their powers in the order of its groups."""
    text = "|".join(f"({unicodedata.normalize('NFC', word)})" for word, _ in entries)
    return re.compile(f"{before}(?:{text})"), tuple(power for _, power in entries)


_GAP = r"(?:[ \u00a0\u202f\u2009]{0,2}|-)"
_LANGUAGES = ("en", *(language for language in (*_LATIN, *_OTHER) if language != "en"))
_WORDS = {language: _compile(_entries(language), _GAP) for language in _LANGUAGES}
_LETTERS = _compile([(rf"{letter}{_END}", power) for letter, power in _GLUED.items()])
_LETTERS_PAID = _compile([(rf"{letter}{_END}", power) for letter, power in _PAID.items()])
_LETTERS_EUROS = _compile([(rf" ?{letter}(?={_SIGN})", power) for letter, power in _EUROS.items()])
_PREFIXED = {"sw": re.compile(r"(?i)\b(?:(mia)|(elfu)|(laki)|(milioni)|(bilioni))[ \u00a0-]{1,2}\Z")}
_PREFIX_POWERS = (2, 3, 5, 6, 9)
_PREFIX_CHARS = 12

MAX_WORDS = 3
"""Maximum number of words that multiply one number: ``mil millones``, ``พันล้าน``."""


def after(text: str, end: int, language: str, *, is_paid: bool) -> tuple[Decimal, Decimal, int] | None:
    """Return the factor by which words after a number multiply it.

    Args:
        text: the normalised text.
        end: the end of the digits.
        language: the language whose words count first.
        is_paid: whether a currency sign stands before the digits.

    Returns:
        The factor, the factor of the last word alone, and the end of the words; None without any words.
    """
    letters = (_LETTERS, _LETTERS_PAID) if is_paid else (_LETTERS,)
    for pattern, powers in (*letters, _LETTERS_EUROS):
        if match := pattern.match(text, end):
            factor = Decimal(10) ** powers[(match.lastindex or 1) - 1]
            return factor, factor, match.end()
    pattern, powers = _WORDS.get(language, _WORDS["en"])
    factor = last = Decimal(1)
    at = end
    for _ in range(MAX_WORDS):
        match = pattern.match(text, at)
        # In Swahili the word may belong to the next number: ``70 elfu 30``.
        if match is None or _is_prefix(text, match.end(), language):
            break
        last = Decimal(10) ** powers[(match.lastindex or 1) - 1]
        factor, at = factor * last, match.end()
    return (factor, last, at) if at > end else None


def before(text: str, start: int, language: str) -> tuple[Decimal, int] | None:
    """Return the factor of a word before the digits, and the start of the word.

    Only Swahili writes such words before the number: ``elfu 70`` is 70,000.
    """
    pattern = _PREFIXED.get(language)
    match = pattern.search(text, max(0, start - _PREFIX_CHARS), start) if pattern else None
    return (Decimal(10) ** _PREFIX_POWERS[(match.lastindex or 1) - 1], match.start()) if match else None


_NUMBER_NEXT = re.compile(r"[ \u00a0-]{1,2}\d")


def _is_prefix(text: str, end: int, language: str) -> bool:
    """Return whether a word belongs to the number after it."""
    return language in _PREFIXED and bool(_NUMBER_NEXT.match(text, end))


_ADJACENT = re.compile(r"[零又]?")
_AND = r"(?:and|y|et|und|na|и)\b"
_JOINT = re.compile(rf"(?:,(?={_SPACE}))?{_SPACE}{{0,2}}(?:{_AND}{_SPACE})?")
_APART = re.compile(rf"[ \u00a0](?:{_AND}[ \u00a0])?")
_HALF = re.compile(
    r"(?: (?:and (?:a|one)[ -]half|y medi[oa]|et demie?|с половиной|na nusu)|\u0c28\u0c4d\u0c28\u0c30"
    r"|ครึ่ง(?!หนึ่ง|ของ))(?!\w)"
)


def half(text: str, end: int) -> int | None:
    """Return the end of words that add a half to the number before them: ``2 and a half million``."""
    match = _HALF.match(text, end)
    return match.end() if match else None


def may_join(text: str, end: int, start: int, language: str, *, is_scaled: bool) -> bool:
    """Return whether a smaller number may continue a number, as in ``1万2000`` or ``2 lakh 50 thousand``.

    Args:
        text: the normalised text.
        end: the end of the first number, including its word.
        start: the start of the second number.
        language: the language of the text.
        is_scaled: whether the second number also has a word of magnitude.
    """
    if start - end > 6:
        return False
    if language in ("zh", "ja") and _ADJACENT.fullmatch(text, end, start):
        return True
    if is_scaled:
        return bool(_JOINT.fullmatch(text, end, start))
    return bool(_APART.fullmatch(text, end, start))


_THOUSAND = 1000


def total(
    first: Decimal, factor: Decimal, second: Decimal, language: str, *, is_scaled: bool, is_worded: bool
) -> Decimal | None:
    """Return the sum that two adjacent numbers form, or None if they are two separate numbers.

    The second number must be smaller than the last word of the first. Without a word of its own, it must
    also be large enough to continue the first, unless a word joins the two::

        2 lakh 50 thousand   -> 250,000
        3 mil 20             -> 3,020
        1万2                 -> 12,000, short for 1万2千
        2 million 500        -> two numbers

    Args:
        first: the first number, including its words.
        factor: the factor of the first number's last word.
        second: the second number, including its words.
        language: the language of the text.
        is_scaled: whether the second number also has a word of magnitude.
        is_worded: whether more than a space joins the numbers, as in ``3 thousand and 20``.
    """
    if second >= factor or second < 0:
        return None
    if is_scaled or language == "ja":
        return first + second
    if second != second.to_integral_value():
        return None
    if language == "zh":  # a single digit counts the next lower magnitude
        return first + (second * factor / 10 if 0 < second < 10 else second)
    is_next = second * 10 >= factor or (second >= 10 and factor <= _THOUSAND)  # 3 mil 20, not 2 million 500
    return first + second if is_worded or is_next else None
