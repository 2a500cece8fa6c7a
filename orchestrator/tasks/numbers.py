"""Numbers as people write them in eleven languages, read exactly (study section 3).

Owns digits of every script, signs, thousands and decimal marks. Knows no benchmark and no answer phrase.
Every pattern is linear in the text: repeats are over disjoint characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple

DOT_GROUPS = frozenset({"es", "de"})
"""Languages where one dot before three digits groups thousands, as in ``1.234`` (study section 3)."""

_MARKS = str.maketrans({"，": ",", "．": ".", "：": ":", "−": "-", "－": "-", "﹣": "-", "‐": "-", "‑": "-"})
"""Full-width marks, and minus and hyphens in all their forms; dashes are no hyphens and stay."""

_SPACE = " \u00a0\u202f\u2009\u2007"
_APOSTROPHE = "'’"
_CURRENCY = "$€£¥₹฿₽￥＄৳"

_TIME = r"\d{1,2}:[0-5]\d(?::[0-5]\d)?(?![\d:])|\d{1,2} ?[hH] ?[0-5]\d(?!\d)"


def _grouped(separator: str) -> str:
    return rf"[1-9]\d{{0,2}}(?:{separator}\d{{3}})+"


_ONE_KIND = rf"[1-9]\d{{0,2}}(?:(?P<kind>[{_SPACE}{_APOSTROPHE}])\d{{3}}(?:(?P=kind)\d{{3}})*)"
_COMMAS = rf"(?:{_grouped(',')}|[1-9]\d?(?:,\d{{2}})+,\d{{3}})"  # 1,234,567 and the Indian 12,34,567
_DOTS = _grouped(r"\.")
_MANY_DOTS = r"[1-9]\d{0,2}(?:\.\d{3}){2,}"
_END = r"(?![,.]?\d)"


def _number(dot_groups: bool) -> re.Pattern[str]:
    """Builds the pattern of a number without its sign; group names say how to read it."""
    dots = _DOTS if dot_groups else _MANY_DOTS
    return re.compile(
        rf"(?P<time>{_TIME})"
        rf"|(?P<spaced>{_ONE_KIND}(?:[.,]\d+)?{_END})"
        rf"|(?P<comma_groups>{_COMMAS}(?:\.\d+)?{_END})"
        rf"|(?P<dot_groups>(?:{_DOTS},\d+|{dots}){_END})"
        rf"|(?P<decimal>\d+[.,]\d+{_END}(?<!\d[.,]\d))"
        r"|(?P<plain>\d+)"
    )
