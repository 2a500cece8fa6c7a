"""Read numbers exactly, as people write them in eleven languages (study section 3).

This module handles digits of every script, signs, thousands and decimal separators, powers of ten, dates,
times and fractions. `magnitudes` handles words of magnitude. Neither depends on a benchmark or an answer
phrase. Repetitions in the patterns run over disjoint characters or a bounded number of times, so searches
are linear in the text.
"""

from __future__ import annotations

import html
import re
import unicodedata
from decimal import Context, Decimal
from typing import NamedTuple

from orchestrator.tasks import magnitudes

DOT_GROUPS = frozenset({"es", "de"})
"""Languages in which one dot before three digits groups thousands, as in ``1.234`` (study section 3)."""

CURRENCY = "$€£¥₹฿₽৳￥＄"
"""Signs that may stand between a minus sign and its number."""


UNSEEN = "\u00ad\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
"""Invisible marks: zero-width spaces, direction marks and the byte order mark. Joiners are not among them,
because Bengali and Telugu need them."""


class Number(NamedTuple):
    """A number found in a text.

    Attributes:
        magnitude: the value without its sign, words of magnitude included.
        start: the start of the digits, or of the word before them that multiplies them.
        end: the end of the number, words that multiply it included.
        sign_at: the position of the minus sign, or -1 if there is none.
    """

    magnitude: Decimal
    start: int
    end: int
    sign_at: int

    def value(self, *, after: int = 0) -> Decimal:
        """Return the value. A minus sign before `after` belongs to something else and does not count."""
        return self.magnitude.copy_negate() if self.sign_at >= after else self.magnitude


def normalise(text: str) -> str:
    """Return the text in NFC, with ASCII digits, separators and minus signs, and without TeX's spacing.

    Hyphens become ASCII as well, fractions become ``1/2`` and powers of ten become ``10^3``. Dashes stay as
    they are, because they separate (``Ответ – 18``) and are no signs. Exponents of units and indices are no
    numbers: ``m^2`` becomes ``m²``, and ``x_1`` becomes ``x``.
    """
    text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    text = unicodedata.normalize("NFC", _CLAUSE.sub(", ", text)).translate(_ASCII)
    text = _DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    for written, meant in _SPELLINGS:
        text = text.replace(written, meant)
    text = _TEX_TEXT.sub(r"\1", text)
    text = _VULGAR.sub(_vulgar, text)
    text = _PARTS.sub(lambda match: f"{match[2] or match[3]}/{match[1] or match[4]}", text)
    text = _CENTS.sub(r".\2\1", text)
    text = _RAISED.sub(lambda match: f"^{match[0].translate(_BASELINE)}", text)
    text = _UNIT_POWER.sub(lambda match: match[2].translate(_SUPERSCRIPT), text)
    text = _ANNOTATION.sub("", _SUBSCRIPT.sub("", text))
    return _FRAC.sub(_fraction, text)


def _vulgar(match: re.Match[str]) -> str:
    text = unicodedata.normalize("NFKD", match[2]).replace("\u2044", "/")
    return f"{match[1].strip()} {text}" if match[1] else text


def _fraction(match: re.Match[str]) -> str:
    whole, above, digit_above, below, digit_below = match.groups()
    parts = [_GROUPS.sub("", part).replace(",", ".") for part in (above or digit_above, below or digit_below)]
    if any("." in part for part in parts):
        places = max(len(part.partition(".")[2]) for part in parts)
        parts = [str(int(a + b.ljust(places, "0"))) for a, _, b in (part.partition(".") for part in parts)]
    return f"{whole.strip() + ' ' if whole else ''}{'/'.join(parts)}"


_ASCII = {
    **dict.fromkeys(map(ord, "，﹐٬"), ","),
    **dict.fromkeys(map(ord, "．﹒٫"), "."),
    **dict.fromkeys(map(ord, "−－﹣‐‑"), "-"),
    **dict.fromkeys(map(ord, UNSEEN), None),
    **dict.fromkeys(range(0x2000, 0x200B), "\u2009"),  # spaces of any width
    ord("："): ":",
    ord("＝"): "=",
    ord("％"): "%",
    ord("﹪"): "%",
    ord("⁄"): "/",
    ord("∕"): "/",
    **dict.fromkeys(map(ord, "✕✖⨯"), "×"),
    ord("∗"): "*",
    ord("⋅"): "·",
    ord("∙"): "·",
}
_DIGIT = re.compile(r"\d")
# In 答案是18，9*2=18 the full-width comma ends a clause; it does not begin decimals.
_CLAUSE = re.compile(r"(?<=[0-9])，(?=[0-9])(?![0-9]{3}(?![0-9]))")
_SPELLINGS = (
    *(("{,}", ","), ("{.}", "."), ("{\\,}", "\u2009"), ("\\!", ""), ("\\$", "$"), ("\\%", "%")),  # TeX
    *((space, "\u2009") for space in ("\\,", "\\;", "\\:", "\\ ")),
    ("\u0e4d\u0e32", "\u0e33"),  # Thai sara am in two letters, which NFC does not compose
)
_TEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]{0,40})\}")
_VULGAR = re.compile(r"(\d ?)?([¼-¾⅐-⅞↉])")
_BASELINE = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_RAISED = re.compile(r"(?<=[\d)])⁻?[⁰¹²³⁴-⁹]{1,2}")
_UNIT_POWER = re.compile(r"(?<=[^\W\d_])\^(?P<brace>\{)?(-?\d)(?(brace)\}|(?!\d))")
_SUBSCRIPT = re.compile(r"(?<=[^\W\d_])_(?:\{\w{1,3}\}|\d{1,3}(?![\d_]))")
_ANNOTATION = re.compile(r"<<[^<>\n]{0,100}=([^<>=\n]{1,40})>>(?=\$?\1(?![\d:]))")  # $<<9*2=18>>18, of GSM8K
_ENTITY = re.compile(r"&#?\w{1,10};")
_PARTS = re.compile(r"(?<!\d)(?:(\d{1,9})分[の之](\d{1,9})|เศษ ?(\d{1,9}) ?ส่วน ?(\d{1,9}))(?!\d)")  # 2分の1
_CENTS = re.compile(r"(?<=\d)([€£])(\d\d)(?!\d)")  # 18€50
_PART = r"\d{1,15}(?:,\d{3})*(?:[.,]\d{1,15})?"
_FRAC = re.compile(rf"(\d ?)?\\[cdt]?frac(?: ?\{{ ?(-?{_PART}) ?\}}| ?(\d))(?: ?\{{ ?({_PART}) ?\}}| ?(\d))")
_GROUPS = re.compile(r",(?=(?:\d{3},)*\d{3}(?:\.|\Z))")

_JOINED = r"*:~≈\u0e00-\u0e7f\u3040-\u9fff"  # scripts without spaces between words: 答案是.5
_SPACE = r"[ \u00a0\u202f\u2009\u2007'’ʼ_]"  # separators of thousands in any language
_NEXT = r"(?![.,]?\d)"  # a further digit means that it is a list or a version number


def _pattern(*, dot_groups: bool) -> re.Pattern[str]:
    """Return the pattern of one number. The name of the group that matched is the kind for `_read`.

    The order of the alternatives matters: ``7:30`` must match as a time before 7 matches as a plain number.
    """
    dots = r"[1-9]\d{0,2}(?:\.\d{3})"
    mantissa = r"\d{1,15}(?:[.,]\d{1,15})?"
    # In Spain 18'50 is 18.50; 5'3" is five feet and three inches.
    apostrophe = rf"|(?P<apostrophe>\d+['’]\d{{1,2}}{_NEXT}(?!['’\"”″]))" if dot_groups else ""
    return re.compile(
        r"(?P<time>\d{1,2}:[0-5]\d(?::[0-5]\d)?(?!\d|:\d)|\d{1,2} ?[hH] ?[0-5]\d(?!\d)"
        rf"|(?<!\d[.,/-])(?<!\d){_DATE}(?![\d/-]|\.\d))"
        rf"|(?<![\d.,])(?P<power>(?:{mantissa} ?(?:[×xX*·]|\\times|\\cdot) ?)?10 ?(?:\^|\*\*)"
        r" ?[{(]? ?-?\d{1,2}(?!\d) ?[})]?)"
        r"|(?<![\d.,])(?P<raised>\d{1,6}(?:\.\d{1,6})?\^(?P<brace>\{)?\d{1,2}(?(brace)\}|(?!\d)))"
        rf"|(?<![\d.,])(?P<exponent>{mantissa}[eE][+-]?\d{{1,2}}(?!\w|[.,]\d))"
        rf"|(?<!\d[.,])(?:"
        rf"(?P<mixed>[1-9]\d{{0,2}}['’ʼ]\d{{3}}(?:{'[.,]' if dot_groups else ','}\d{{3}}){{1,2}}{_NEXT})"
        rf"|(?P<spaces>[1-9]\d{{0,2}}(?P<space>{_SPACE})\d{{3}}(?:(?P=space)\d{{3}})*(?:[.,]\d+)?{_NEXT})"
        rf"|(?P<commas>(?:[1-9]\d{{0,2}}(?:,\d{{3}})+|[1-9]\d?(?:,\d{{2}})+,\d{{3}})(?:\.\d+)?{_NEXT})"
        rf"{apostrophe}|(?P<dots>(?:{dots}+,\d+|{dots}{'+' if dot_groups else '{2,}'}){_NEXT})"
        rf"|(?P<decimal>\d+[.,]\d+{_NEXT}|(?<![^\s(=\-{CURRENCY}{_JOINED}])\.\d+{_NEXT})"
        r")"
        r"|(?P<fraction>(?<!/)(?:\d{1,9}(?: | ?(?:and|y|et|und|и|na|又|と|ও) ?)(?=\d\d?/))?"
        r"\d{1,30}/[1-9]\d{0,29}(?!\d|/|[.,]\d))"
        r"|(?P<plain>\d+)"
    )


_DATE = (
    r"(?:(?:1[89]|20)\d\d-(?:0\d|1[0-2])-[0-3]\d|(?:1[89]|20)\d\d/\d{1,2}/\d{1,2}"
    r"|\d{1,2}/\d{1,2}/(?:1[89]|20)\d\d|\d{1,2}\.\d{1,2}\.(?:1[89]|20)\d\d"
    r"|(?:1[89]|20)\d\d ?年 ?\d{1,2} ?月(?: ?\d{1,2} ?日)?)"
)
_PATTERNS = {dot_groups: _pattern(dot_groups=dot_groups) for dot_groups in (False, True)}


def find(text: str, language: str) -> list[Number]:
    """Return the numbers of a normalised text, in order. Times and dates are skipped.

    Args:
        text: the result of `normalise`.
        language: decides what one dot before three digits means, and which words multiply.
    """
    found: list[Number] = []
    open_factor: Decimal | None = None  # the last word's factor, while the next number may continue this one
    for match in _PATTERNS[language in DOT_GROUPS].finditer(text):
        if match.lastgroup == "time":
            open_factor = None
            continue
        number, factor = _scaled(text, match, language)
        whole = _joined(text, found[-1], open_factor, number, factor, language) if open_factor else None
        if whole is not None:
            found[-1] = whole
        else:
            found.append(number)
        open_factor = factor
    return found


def _scaled(text: str, match: re.Match[str], language: str) -> tuple[Number, Decimal | None]:
    """Return a number including the words that multiply it, and the factor of the last word."""
    start, end = match.span()
    magnitude, last = _read(match[0], match.lastgroup), None
    is_paid = text[start - 1 : start] in _CURRENCIES
    if (word := magnitudes.before(text, start, language)) is not None:
        last, start = word
        magnitude = _EXACT.multiply(magnitude, last)
    else:
        half = magnitudes.half(text, end)
        magnitude, end = (magnitude + _HALF, half) if half else (magnitude, end)
        # A half may stand before the word of magnitude (2 and a half million) or after it (2 million and a
        # half).
        if (words := magnitudes.after(text, end, language, is_paid=is_paid)) is not None:
            factor, last, end = words
            magnitude = _EXACT.multiply(magnitude, factor)
            half = magnitudes.half(text, end)
            magnitude, end = (magnitude + last * _HALF, half) if half else (magnitude, end)
    return Number(magnitude, start, end, _sign(text, start)), last


def _joined(
    text: str, first: Number, open_factor: Decimal, second: Number, factor: Decimal | None, language: str
) -> Number | None:
    """Return the one number that two adjacent numbers form, or None if they are separate."""
    is_scaled = factor is not None
    if not magnitudes.may_join(text, first.end, second.start, language, is_scaled=is_scaled):
        return None
    is_worded = second.start - first.end > 2
    whole = magnitudes.total(
        first.magnitude, open_factor, second.magnitude, language, is_scaled=is_scaled, is_worded=is_worded
    )
    if whole is None and factor and factor > open_factor and "," not in text[first.end : second.start]:
        rest = second.magnitude / factor  # 3千5百万, 2 hundred 50 thousand: the last word multiplies both
        whole = (first.magnitude + rest) * factor if rest < open_factor else None
    return None if whole is None else first._replace(magnitude=whole, end=second.end)


_EXACT = Context(prec=200)
_HALF = Decimal("0.5")
_CURRENCIES = frozenset(CURRENCY)


def _read(written: str, kind: str | None) -> Decimal:
    """Return the value of a written number, given the group of `_pattern` that matched."""
    match kind:
        case "fraction":
            *whole, above, below = map(Decimal, re.findall(r"\d+", written))
            is_mixed = whole and above < below  # 1 1/2; an improper fraction is never part of a mixed number
            return above / below + (whole[0] if is_mixed else 0)
        case "power":
            mantissa = _MANTISSA.match(written)
            exponent = re.sub(r"[^\d-]", "", re.split(r"\^|\*\*", written)[-1])
            return Decimal(f"{mantissa[1].replace(',', '.') if mantissa else 1}E{exponent}")
        case "raised":
            base, exponent = re.findall(r"[\d.]+", written)
            return _EXACT.power(Decimal(base), Decimal(exponent)) if int(exponent) else Decimal(1)
        case "apostrophe":
            return Decimal(re.sub("['’]", ".", written))
        case "commas":
            return Decimal(written.replace(",", ""))
        case "mixed":
            return Decimal(re.sub(r"\D", "", written))
        case "dots":
            return Decimal(written.replace(".", "").replace(",", "."))
        case _:
            return Decimal(re.sub(_SPACE, "", written).replace(",", "."))


_MANTISSA = re.compile(r"([\d.,]+) ?(?:[×xX*·]|\\times|\\cdot)")
_PAID = re.compile(rf"-(?:[A-Z]{{0,3}}[{CURRENCY}]|[A-Z]{{3}}|Rs\.?) ?\Z")  # -US$18, -USD 18
_APART = re.compile(r"[={(] ?-\Z")  # x = - 3: here a minus with a space after it is a sign


def _sign(text: str, start: int) -> int:
    """Return the position of a number's minus sign, or -1 if it has none or the minus does not negate it."""
    at = start - 1
    if paid := _PAID.search(text, max(0, start - 7), start):
        at = paid.start()
    elif at >= 0 and text[at] in CURRENCY:
        at -= 1
    if at < 0 or text[at] not in "- ":
        return -1
    if text[at] == " ":
        return at - 1 if _APART.search(text, max(0, at - 3), at) else -1
    before = text[max(0, at - 9) : at].rstrip(" \u00a0\u202f\u2009")[-1:]
    if before and (before in ")]}%" or before.isdigit()):
        return -1
    neighbour = text[at - 1 : at]
    # In COVID-19 and কোভিড-19 the hyphen joins words. Thai, Chinese and Japanese write words without spaces,
    # so there a letter before the minus proves nothing: 答えは-3です
    joined = "A" <= neighbour < "\u0e00" and unicodedata.category(neighbour)[0] in "LM"
    return -1 if joined or neighbour == "-" else at
