"""The only door to CLDR (through babel): units with their plural forms, lists, days and months.

Knows no task. Works around two faults of babel 2.18, each named where it is met.
"""

from __future__ import annotations

import functools
import unicodedata


def unit(number: int, name: str, language: str) -> str:
    """Returns a number with its unit in words, in the right plural form, with ASCII digits.

    Args:
        number: the number.
        name: a CLDR unit, for example ``duration-hour``.
        language: a language code.

    Raises:
        LookupError: CLDR has no such unit.
    """
    return _unit(number, name, language)


@functools.lru_cache(maxsize=8192)
def _unit(number: int, name: str, language: str) -> str:
    from babel.units import format_unit

    # CLDR's long form inherits from the short one where both are the same (ja, zh, th, sw, bn); babel does
    # not follow that alias and puts the unit's identifier instead.
    for length in ("long", "short"):
        text: str = format_unit(number, name, length=length, locale=language)
        if name not in text:
            return _plain(text)
    raise LookupError(f"CLDR has no unit {name!r} in {language!r}")


def both(first: str, second: str, language: str) -> str:
    """Returns two things joined as the language joins a list, for example ``A y B``."""
    from babel.lists import format_list

    return _plain(format_list([first, second], locale=language))


def day(index: int, language: str) -> str:
    """Returns the name of a day of the week, 0 for Monday."""
    from babel import Locale

    return _plain(Locale(language).days["format"]["wide"][index])


def month(number: int, language: str) -> str:
    """Returns the name of a month, 1 for January, as it stands alone."""
    from babel import Locale

    # Reading an alias such as stand-alone to format makes babel cache one language's names for all others, so
    # only Russian, which alone has two forms (март, марта), is asked for the form that stands alone.
    context = "stand-alone" if language == "ru" else "format"
    return _plain(Locale(language).months[context]["wide"][number])


def _plain(text: str) -> str:
    """Normalises to NFC, with ordinary spaces for no-break ones (fr, de), as typed text has them."""
    return unicodedata.normalize("NFC", text).replace("\u00a0", " ").replace("\u202f", " ")
