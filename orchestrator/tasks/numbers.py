"""Numbers as people write them in eleven languages, read exactly (study section 3).

Owns digits of every script, signs, thousands and decimal marks, times and fractions. Knows no benchmark and
no answer phrase. Its patterns repeat over disjoint characters, so they are linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import NamedTuple

DOT_GROUPS = frozenset({"es", "de"})
"""Languages where one dot before three digits groups thousands, as in ``1.234`` (study section 3)."""

CURRENCY = "$€£¥₹฿₽৳￥＄"
"""Signs that may stand between a minus and its number."""


class Number(NamedTuple):
    """A number found in a text.

    Attributes:
        written: its digits and marks, without a sign.
        kind: the name of the pattern's group that says how to read them.
        start: where its digits start.
        end: where it ends.
        sign_at: where its minus stands, or -1 when it has none.
    """

    written: str
    kind: str | None
    start: int
    end: int
    sign_at: int

    def value(self, *, after: int = 0) -> Decimal:
        """Returns the value; a minus that stands before `after` belongs to something else."""
        magnitude = _read(self.written, self.kind)
        return magnitude.copy_negate() if self.sign_at >= after else magnitude


def normalise(text: str) -> str:
    """Returns the text in NFC, with digits, separators, minus and hyphens in ASCII, without TeX's spacing.

    Dashes stay: they separate (``Ответ – 18``) and are no sign.
    """
    text = unicodedata.normalize("NFC", _CLAUSE.sub(", ", text)).translate(_ASCII)
    text = _DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    for written, meant in _SPELLINGS:
        text = text.replace(written, meant)
    return _FRAC.sub(_fraction, text)


def _fraction(match: re.Match[str]) -> str:
    whole, above, below, digit_above, digit_below = match.groups()
    return f"{whole.strip() + ' ' if whole else ''}{above or digit_above}/{below or digit_below}"


_ASCII = {
    **dict.fromkeys(map(ord, "，﹐٬"), ","),
    **dict.fromkeys(map(ord, "．﹒٫"), "."),
    **dict.fromkeys(map(ord, "−－﹣‐‑"), "-"),
    **dict.fromkeys(map(ord, "\u200b\u200e\u200f\u2060\ufeff"), None),  # marks that nobody sees; no joiners
    ord("："): ":",
    ord("＝"): "=",
}
_DIGIT = re.compile(r"\d")
_CLAUSE = re.compile(r"(?<=[0-9])，(?=[0-9])(?![0-9]{3}(?![0-9]))")  # 答案是18，9*2=18: no decimal mark
_SPELLINGS = (
    *(("{,}", ","), ("\\,", "\u2009"), ("\\!", ""), ("\\$", "$"), ("\\%", "%")),  # TeX
    ("\u0e4d\u0e32", "\u0e33"),  # Thai sara am in two letters, which NFC leaves apart
)
_FRAC = re.compile(r"(\d ?)?\\[dt]?frac(?: ?\{(\d+)\} ?\{(\d+)\}|(\d)(\d))")

_JOINED = r"*:~≈\u0e00-\u0e7f\u3040-\u9fff"  # scripts that write words without spaces: 答案是.5
_SPACE = r"[ \u00a0\u202f\u2009\u2007'’ʼ]"  # thousands in any language: spaces of any width, apostrophes
_NEXT = r"(?![.,]?\d)"  # no digit goes on after the number, or it is a list or a version


def _pattern(*, dot_groups: bool) -> re.Pattern[str]:
    """Builds the pattern of one number; the name of the group that matched says how to read it."""
    dots = r"[1-9]\d{0,2}(?:\.\d{3})"
    return re.compile(
        r"(?P<time>\d{1,2}:[0-5]\d(?::[0-5]\d)?(?!\d|:\d)|\d{1,2} ?[hH] ?[0-5]\d(?!\d))"
        rf"|(?<!\d[.,])(?:"
        rf"(?P<spaces>[1-9]\d{{0,2}}(?P<space>{_SPACE})\d{{3}}(?:(?P=space)\d{{3}})*(?:[.,]\d+)?{_NEXT})"
        rf"|(?P<commas>(?:[1-9]\d{{0,2}}(?:,\d{{3}})+|[1-9]\d?(?:,\d{{2}})+,\d{{3}})(?:\.\d+)?{_NEXT})"
        rf"|(?P<dots>(?:{dots}+,\d+|{dots}{'+' if dot_groups else '{2,}'}){_NEXT})"
        rf"|(?P<decimal>\d+[.,]\d+{_NEXT}|(?<![^\s(=\-{CURRENCY}{_JOINED}])\.\d+{_NEXT})"
        r")"
        r"|(?P<fraction>(?<!/)(?:\d{1,9} (?=\d\d?/))?\d{1,30}/[1-9]\d{0,29}(?!\d|/|[.,]\d))"
        r"|(?P<plain>\d+)"
    )


_PATTERNS = {dot_groups: _pattern(dot_groups=dot_groups) for dot_groups in (False, True)}


def find(text: str, language: str) -> list[Number]:
    """Returns the numbers of a normalised text, in order.

    Args:
        text: what `normalise` returned.
        language: decides what one dot before three digits means.
    """
    found = []
    for match in _PATTERNS[language in DOT_GROUPS].finditer(text):
        if match.lastgroup != "time":
            start, end = match.span()
            found.append(Number(match[0], match.lastgroup, start, end, _sign(text, start)))
    return found


def _read(written: str, kind: str | None) -> Decimal:
    match kind:
        case "fraction":
            whole, _, fraction = written.rpartition(" ")
            above, below = map(Decimal, fraction.split("/"))
            is_mixed = whole and above < below  # 1 1/2, which an improper fraction is never part of
            return above / below + (Decimal(whole) if is_mixed else 0)
        case "commas":
            return Decimal(written.replace(",", ""))
        case "dots":
            return Decimal(written.replace(".", "").replace(",", "."))
        case _:
            return Decimal(re.sub(_SPACE, "", written).replace(",", "."))


_APART = re.compile(r"[={(] ?-\Z")  # what makes a minus with a space after it a sign: x = - 3


def _sign(text: str, start: int) -> int:
    """Returns where the minus of a number stands; -1 if there is none, or it subtracts or joins words."""
    at = start - 1
    if at >= 0 and text[at] in CURRENCY:
        at -= 1
    if at < 0 or text[at] not in "- ":
        return -1
    if text[at] == " ":
        return at - 1 if _APART.search(text, max(0, at - 3), at) else -1
    before = text[max(0, at - 9) : at].rstrip(" \u00a0\u202f\u2009")[-1:]
    if before and (before in ")]}%" or before.isdigit()):
        return -1
    neighbour = text[at - 1 : at]
    # COVID-19, কোভিড-19; not in Thai, Chinese and Japanese, which write words without spaces: 答えは-3です
    joined = "A" <= neighbour < "\u0e00" and unicodedata.category(neighbour)[0] in "LM"
    return -1 if joined or neighbour == "-" else at
