"""How the report writes the names of tasks, languages and settings, and its numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIGH, LOW = "high", "low"
CORE = ("en", "es", "ja", "bn", "sw")
OTHERS = CORE[1:]
"""The core languages that are added to English in the mixtures of two."""

EXTRAS = ("fr", "de", "ru", "zh", "th")
EVAL_LANGUAGES = ("en", "es", "ja", "bn", "sw", "te")
RESOURCE: Mapping[str, str] = {
    **dict.fromkeys(("en", "es", "ja", "fr", "de", "ru", "zh"), HIGH),
    **dict.fromkeys(("bn", "sw", "te", "th"), LOW),
}
ZERO_SHOT_SIZES = (4, 6, 9)
"""Numbers of languages of the mixtures that leave one core language out."""

TASKS: Mapping[str, int] = {"math": 250, "api_calling": 399}
"""The tasks, with their test items a language."""

PARAMETERS: Mapping[str, int] = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": 3_880_263_168,
}
"""The study's models, with their parameters (Gemma-3-4B's without the vision tower)."""

TWO_EXTRAS = ("fr", "th")
"""Those of the mixtures of six; which they are is only in a figure of the paper, so this is ours."""

NUM_COMPARISONS: Mapping[str, int] = {"en": 20, "direct": 20, "transfer": 80}
"""How often en+x is compared with en in each setting, a task."""

NUM_TRAINED_ROWS, NUM_BASELINE_ROWS = 1_320, 60
_ORDER = {language: place for place, language in enumerate((*CORE, *EXTRAS))}


def canonical_model(name: str) -> str:
    """Returns the study's short name of a model: of ``google/gemma-3-1b-pt`` it is ``gemma3-1b``."""
    short = name.rsplit("/", 1)[-1].lower()
    short = re.sub(r"^(qwen|gemma)[-_]?3[-_]", r"\g<1>3-", short)
    return re.sub(r"[-_](base|pt)$", "", short)


def in_order(languages: Sequence[str]) -> tuple[str, ...]:
    """Returns languages in the study's order, those it does not have last."""
    return tuple(sorted(languages, key=lambda name: (_ORDER.get(name, len(_ORDER)), name)))


def partner(languages: Sequence[str]) -> str | None:
    """Returns the x of a mixture that is English and one other core language."""
    if len(languages) == 2 and "en" in languages:
        return next((x for x in languages if x in OTHERS), None)
    return None


def left_out(languages: Sequence[str]) -> str | None:
    """Returns the x of a mixture that is the core without x, with or without extras."""
    missing = [x for x in CORE if x not in languages]
    return missing[0] if len(missing) == 1 and len(languages) in ZERO_SHOT_SIZES else None


def label_of(languages: Sequence[str]) -> str:
    """Returns the name of a mixture in the study's sweep file."""
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
    """Returns the languages of the baseline (none) and of the 22 mixtures.

    Args:
        two_extras: which two extra languages the mixtures of six have.
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
"""What en+x is compared with en in: `en`, the added language itself, or another."""

_TASKS = {"api_calling": "API calling", "math": "Math"}
ABSENT = "–"
MINUS = "\u2212"


def task_name(task: str) -> str:
    """Returns ``API calling`` for ``api_calling``."""
    return _TASKS.get(task, task.replace("_", " "))


def language_name(language: str) -> str:
    """Returns ``Telugu (te)`` for ``te``."""
    name = LANGUAGE_NAMES.get(language)
    return f"{name} ({language})" if name else language


def number(value: float | None, *, digits: int = 1, sign: bool = False) -> str:
    """Returns a number with a real minus sign; a dash for none."""
    if value is None:
        return ABSENT
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(share: float | None, *, digits: int = 1) -> str:
    """Returns a share as a percentage without its sign."""
    return number(None if share is None else 100 * share, digits=digits)


def interval(low: float | None, high: float | None, *, digits: int = 1, scale: float = 1.0) -> str:
    """Returns ``[59.8, 85.8]``, "" without one."""
    if low is None or high is None:
        return ""
    return f"[{number(scale * low, digits=digits)}, {number(scale * high, digits=digits)}]"


def distinct(entries: Any, key: str) -> list[Any]:
    """Lists the values of a key in the order in which they come."""
    return list(dict.fromkeys(entry[key] for entry in entries))


def counted(num: int, noun: str) -> str:
    """Returns ``1 cell`` or ``2 cells``."""
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def listed(names: Any) -> str:
    """Returns ``a, b and c``."""
    texts = [str(name) for name in names]
    return texts[0] if len(texts) == 1 else " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def models_of(numbers: Mapping[str, Any]) -> list[str]:
    """Lists the models of all figures, so that one has the same colour and marker in each."""
    return sorted({entry["model"] for key in ("fig2", "fig4", "fig7", "fig8") for entry in numbers[key]})
