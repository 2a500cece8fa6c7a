"""The words of generated API requests: what a user says in each language, and the call that answers it.

Owns the APIs and their wordings; days, months and units are CLDR's (`locale_data`). Names, keys,
enumerations, numbers and times stay as they are in every language, as in the study's translation rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from orchestrator.tasks import locale_data

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
    return locale_data.day(DAYS.index(value), language)


def say_month(value: str, language: str) -> str:
    """Says a month."""
    return locale_data.month(MONTHS.index(value) + 1, language)


def say_time(value: str, language: str) -> str:
    """Says a time: as it is, in every language."""
    return value


def say_hours(value: str, language: str) -> str:
    """Says a duration in hours."""
    return locale_data.unit(int(value), "duration-hour", language)


def say_nights(value: str, language: str) -> str:
    """Says a number of nights."""
    return locale_data.unit(int(value), "duration-night", language)


class Parameter(NamedTuple):
    """A parameter: its key, how the API describes it, its values and how a user says them."""

    key: str
    description: str
    values: tuple[str, ...]
    say: Say


class Api(NamedTuple):
    """An API of two parameters, and the word for it in each language."""

    name: str
    first: Parameter
    second: Parameter
    words: Mapping[str, str]


_DAY = Parameter("day", "monday to sunday", DAYS, say_day)

APIS = (
    Api(
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
    Api(
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
    Api(
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


def request(api: Api, first: str, second: str, language: str) -> str:
    """Returns what the user says, in the style of a note: ``Alarm, Monday, 07:00``."""
    parts = (api.words[language], api.first.say(first, language), api.second.say(second, language))
    return COMMA.get(language, ", ").join(parts)
