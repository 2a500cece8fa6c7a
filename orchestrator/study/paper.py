"""The study's design (its models, languages and mixtures), and how reports write names and numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIGH, LOW = "high", "low"
CORE = ("en", "es", "ja", "bn", "sw")
"""The core languages, which the mixtures of the study are built from."""

OTHERS = CORE[1:]
"""The core languages that are added to English in the mixtures of two."""

EXTRAS = ("fr", "de", "ru", "zh", "th")
"""The extra languages, which only larger mixtures have."""

EVAL_LANGUAGES = ("en", "es", "ja", "bn", "sw", "te")
RESOURCE: Mapping[str, str] = {
    **dict.fromkeys(("en", "es", "ja", "fr", "de", "ru", "zh"), HIGH),
    **dict.fromkeys(("bn", "sw", "te", "th"), LOW),
}
ZERO_SHOT_SIZES = (4, 6, 9)
"""Numbers of languages of the mixtures that leave out one core language."""

TASKS: Mapping[str, int] = {"math": 250, "api_calling": 399}
"""Map from task to its number of test items per language."""

PARAMETERS: Mapping[str, int] = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": 3_880_263_168,
}
"""Map from the study's models to their numbers of parameters (Gemma-3-4B without its vision tower)."""

TWO_EXTRAS = ("fr", "th")
"""The two extras of the mixtures of six. The paper names them only in a figure, so this is our choice."""

NUM_COMPARISONS: Mapping[str, int] = {"en": 20, "direct": 20, "transfer": 80}
"""Number of comparisons of en+x with en in each setting, per task."""

NUM_TRAINED_ROWS, NUM_BASELINE_ROWS = 1_320, 60
"""Number of rows of all trained cells, per seed, and number of rows of the baselines."""

# The order of columns and mixtures in tables and figures.
_ORDER = {language: place for place, language in enumerate((*CORE, *EXTRAS))}


def canonical_model(name: str) -> str:
    """Return the study's short name of a model: ``gemma3-1b`` for ``google/gemma-3-1b-pt``."""
    short = name.rsplit("/", 1)[-1].lower()
    short = re.sub(r"^(qwen|gemma)[-_]?3[-_]", r"\g<1>3-", short)
    return re.sub(r"[-_](base|pt)$", "", short)


def in_order(languages: Sequence[str]) -> tuple[str, ...]:
    """Return languages in the study's order, with all others at the end."""
    return tuple(sorted(languages, key=lambda name: (_ORDER.get(name, len(_ORDER)), name)))


def partner(languages: Sequence[str]) -> str | None:
    """Return the x of a mixture that consists of English and one other core language, else None."""
    if len(languages) == 2 and "en" in languages:
        return next((x for x in languages if x in OTHERS), None)
    return None


def left_out(languages: Sequence[str]) -> str | None:
    """Return the x of a mixture that is the core without x, with or without extras, else None."""
    missing = [x for x in CORE if x not in languages]
    is_known = {*languages} <= {*CORE, *EXTRAS}
    return missing[0] if len(missing) == 1 and is_known and len(languages) in ZERO_SHOT_SIZES else None


def label_of(languages: Sequence[str]) -> str:
    """Return the name that a mixture has in the study's sweep file."""
    # Without one core language four remain, so all further languages are extras.
    added = len(languages) - len(CORE) + 1
    if not languages:
        return "none"
    if (x := left_out(languages)) is not None:
        return f"no-{x}" + (f"+{added}" if added else "")
    if set(languages) == set(CORE):
        return "core"
    if set(languages) == {*CORE, *EXTRAS}:
        return "all"
    return "+".join(in_order(languages))


def mixtures(two_extras: Sequence[str] = TWO_EXTRAS) -> list[tuple[str, ...]]:
    """Return the languages of the baseline (none) and of the 22 mixtures.

    Args:
        two_extras: the two extra languages of the mixtures of six.
    """
    without = [tuple(other for other in CORE if other != x) for x in CORE]
    return [
        (),
        ("en",),
        *(("en", x) for x in OTHERS),
        *without,
        CORE,
        *(in_order((*rest, *two_extras)) for rest in without),
        *((*rest, *EXTRAS) for rest in without),
        (*CORE, *EXTRAS),
    ]


LANGUAGE_NAMES = {
    "en": "English",
    "es": "Spanish",
    "ja": "Japanese",
    "bn": "Bengali",
    "sw": "Swahili",
    "te": "Telugu",
}
SETTINGS = {"en": "English", "direct": "direct exposure", "transfer": "cross-lingual transfer"}
"""Where en+x is compared with en: in English, in the added language, or in another one."""

_TASKS = {"api_calling": "API calling", "math": "Math"}
ABSENT = "–"
MINUS = "\u2212"


def task_name(task: str) -> str:
    """Return the name of a task for people: ``API calling`` for ``api_calling``."""
    return _TASKS.get(task, task.replace("_", " "))


def language_name(language: str) -> str:
    """Return the name of a language for people: ``Telugu (te)`` for ``te``."""
    name = LANGUAGE_NAMES.get(language)
    return f"{name} ({language})" if name else language


def number(value: float | None, *, digits: int = 1, sign: bool = False) -> str:
    """Return a number with a real minus sign, or a dash for None."""
    if value is None:
        return ABSENT
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    # A value that rounds to zero has no sign, so that no table shows −0.0.
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(share: float | None) -> str:
    """Return a share as a percentage, without the percent sign."""
    return number(None if share is None else 100 * share)


def interval(low: float | None, high: float | None, *, digits: int = 1, scale: float = 1.0) -> str:
    """Return an interval as ``[59.8, 85.8]``, or "" without one."""
    if low is None or high is None:
        return ""
    return f"[{number(scale * low, digits=digits)}, {number(scale * high, digits=digits)}]"


def distinct(entries: Any, key: str) -> list[Any]:
    """Return the distinct values of an attribute in order of first appearance."""
    return list(dict.fromkeys(getattr(entry, key) for entry in entries))


def counted(num: int, noun: str) -> str:
    """Return a number with its noun: ``1 cell`` or ``2 cells``."""
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def listed(names: Any) -> str:
    """Return names as a list in a sentence: ``a, b and c``."""
    texts = [str(name) for name in names]
    return texts[0] if len(texts) == 1 else " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))
