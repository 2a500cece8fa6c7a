"""The math task's words in each language: what prompts and responses say.

Prompts and answer sentences are the study's (section 3), the questions of generated items are ours. How real
outputs announce an answer is `announcements`.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Mapping
from typing import NamedTuple

from orchestrator.tasks.base import check_language


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


THINK: Mapping[str, str] = {
    "en": "Let's think step by step.",
    "es": "Pensemos paso a paso.",
    "ja": "段階的に考えてみましょう。",
    "bn": "আসুন ধাপে ধাপে চিন্তা করি।",
    "sw": "Hebu fikiria hatua kwa hatua.",
    "te": "అంచెలంచెలుగా ఆలోచిద్దాం.",
    "fr": "Réfléchissons étape par étape.",
    "de": "Denken wir Schritt für Schritt.",
    "ru": "Давайте думать поэтапно.",
    "zh": "让我们一步步思考。",
    "th": "ลองคิดทีละขั้นตอน",
}
"""What the prompt ends with."""

ANSWER: Mapping[str, str] = {
    "en": "The answer is {}.",
    "es": "La respuesta es {}.",
    "ja": "答えは{}です。",
    "bn": "উত্তর হল {}।",
    "sw": "Jibu ni {}.",
    "te": "సమాధానం {}.",
    "fr": "La réponse est {}.",
    "de": "Die Antwort ist {}.",
    "ru": "Ответ: {}.",
    "zh": "答案是{}。",
    "th": "คำตอบคือ {}",
}
"""What a response ends with."""

STEP: Mapping[str, str] = {"ja": "{}。", "zh": "{}。", "bn": "{}। ", "th": "{} "}
"""How a step of a worked answer is set down before the answer sentence; ``{}. `` elsewhere."""

TOTAL: Mapping[str, str] = {
    "en": "What is the total of {}?",
    "es": "¿Cuánto suman {}?",
    "ja": "{}を合わせるといくつですか？",
    "bn": "{} মিলে মোট কত?",
    "sw": "Jumla ya {} ni ngapi?",
    "te": "{} కలిపి మొత్తం ఎంత?",
    "fr": "Combien font {} ?",
    "de": "Wie viel sind {} zusammen?",
    "ru": "Сколько будет вместе: {}?",
    "zh": "{}一共是多少？",
    "th": "{} รวมกันเป็นเท่าไร",
}
"""The question of a generated item, around a list such as ``3 hours and 4 hours``."""


def prompt(question: str, language: str) -> str:
    """Returns the study's prompt: two English headers around the question, and the language's own phrase.

    Raises:
        UserError: there is no such language.
    """
    question = unicodedata.normalize("NFC", question).strip()
    return f"Question:\n{question}\nAnswer:\n{THINK[check_language(language)]}\n"


def answer_sentence(number: str, language: str) -> str:
    """Returns the sentence that a response of this language ends with."""
    return ANSWER[language].format(number)


Say = Callable[[str, str], str]
"""From a value of the call and a language to what the user says."""

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
COUNTS = tuple(str(number) for number in range(1, 10))
TIMES = tuple(f"{hour:02}:00" for hour in range(24))


def say_day(value: str, language: str) -> str:
    """Says a day of the week."""
    return day(DAYS.index(value), language)


def say_month(value: str, language: str) -> str:
    """Says a month."""
    return month(MONTHS.index(value) + 1, language)


def say_time(value: str, language: str) -> str:
    """Says a time: as it is, in every language."""
    return value


def say_hours(value: str, language: str) -> str:
    """Says a duration in hours."""
    return unit(int(value), "duration-hour", language)


def say_nights(value: str, language: str) -> str:
    """Says a number of nights."""
    return unit(int(value), "duration-night", language)


class Parameter(NamedTuple):
    """A parameter: its key, how the API describes it, its values and how a user says them."""

    key: str
    description: str
    values: tuple[str, ...]
    say: Say


class ApiTemplate(NamedTuple):
    """An API of two parameters, and the word for it in each language."""

    name: str
    first: Parameter
    second: Parameter
    words: Mapping[str, str]


_DAY = Parameter("day", "monday to sunday", DAYS, say_day)

APIS = (
    ApiTemplate(
        "AddAlarm",
        _DAY,
        Parameter("time", "HH:MM", TIMES, say_time),
        {
            "en": "Alarm",
            "es": "Alarma",
            "ja": "アラーム",
            "bn": "অ্যালার্ম",
            "sw": "Kengele",
            "te": "అలారం",
            "fr": "Alarme",
            "de": "Wecker",
            "ru": "Будильник",
            "zh": "闹钟",
            "th": "นาฬิกาปลุก",
        },
    ),
    ApiTemplate(
        "AddMeeting",
        _DAY,
        Parameter("hours", "number", COUNTS, say_hours),
        {
            "en": "Meeting",
            "es": "Reunión",
            "ja": "会議",
            "bn": "সভা",
            "sw": "Mkutano",
            "te": "సమావేశం",
            "fr": "Réunion",
            "de": "Besprechung",
            "ru": "Встреча",
            "zh": "会议",
            "th": "การประชุม",
        },
    ),
    ApiTemplate(
        "BookHotel",
        Parameter("month", "january to december", MONTHS, say_month),
        Parameter("nights", "number", COUNTS, say_nights),
        {
            "en": "Hotel",
            "es": "Hotel",
            "ja": "ホテル",
            "bn": "হোটেল",
            "sw": "Hoteli",
            "te": "హోటల్",
            "fr": "Hôtel",
            "de": "Hotel",
            "ru": "Гостиница",
            "zh": "酒店",
            "th": "โรงแรม",
        },
    ),
)
"""The APIs of the generated items; two of them look alike, so the user's word must be read."""

COMMA: Mapping[str, str] = {"ja": "、", "zh": "，", "th": " "}
"""What stands between the parts of a request; ``, `` elsewhere."""


def request(api: ApiTemplate, first: str, second: str, language: str) -> str:
    """Returns what the user says, in the style of a note: ``Alarm, Monday, 07:00``."""
    parts = (api.words[language], api.first.say(first, language), api.second.say(second, language))
    return COMMA.get(language, ", ").join(parts)
