"""How the report writes the names of tasks, languages and settings, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
