"""The math task: word problems with a worked answer, scored by the number they end in (study section 3).

Owns its prompt, its generated items and what `MATH` offers. How an answer is found in a text is `answers`,
what its files look like is `math_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from orchestrator.tasks import answers, files, locale_data, math_files, parallel
from orchestrator.tasks.base import Item, check_language, check_split
from orchestrator.tasks.phrases import STEP, TOTAL, answer_sentence, prompt

__all__ = ["MATH", "MathTask", "extract_answer", "is_correct", "prompt"]

UNITS = (
    "duration-second",
    "duration-minute",
    "duration-hour",
    "duration-day",
    "duration-week",
    "duration-month",
    "duration-year",
    "length-centimeter",
    "length-meter",
    "length-kilometer",
    "length-mile",
    "length-inch",
    "mass-gram",
    "mass-kilogram",
    "volume-liter",
    "digital-megabyte",
)
"""CLDR units of the generated items; every language has a distinct name for each."""

PAIRS = tuple((a, b) for a in range(1, 10) for b in range(1, 10))
"""The sums of generated items: small enough for a tiny model to learn (ours)."""


def extract_answer(text: str, language: str, *, truncated: bool = False) -> Decimal | None:
    """Return the number that a generated text gives as its answer, or None; total.

    Args:
        text: as it was generated.
        language: of the item.
        truncated: the text ends because of the token limit, so its last number may be a part of one.
    """
    return answers.extract(text, language, truncated=truncated)


def is_correct(text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
    """Return whether a generated text's number equals the gold number; total. See `extract_answer`."""
    wanted = answers.gold_number(gold)
    return wanted is not None and extract_answer(text, language, truncated=truncated) == wanted


class MathTask:
    """See `orchestrator.tasks.base.Task`."""

    name = "math"

    def generate(self, split: str, language: str, num_items: int, seed: int = 0) -> list[Item]:
        """Returns sums of 1 to 9 in units, as ``3 hours and 4 hours``; see `Task.generate`."""
        check_language(language)
        rows = parallel.combinations(
            check_split(split), [len(UNITS)] * len(PAIRS), num_items=num_items, seed=seed
        )
        return [_generated(*PAIRS[row.group], UNITS[row.variant], language) for row in rows]

    def languages_in(self, folder: Path, split: str) -> list[str]:
        """See `Task.languages_in`."""
        return files.languages_in(folder, check_split(split), math_files.names(check_split(split)))

    def read(
        self,
        folder: Path,
        split: str,
        language: str,
        *,
        languages: Sequence[str] = (),
        num_items: int | None = None,
        num_validation: int | None = 0,
        seed: int = 0,
    ) -> list[Item]:
        """Reads worked word problems (JSON lines) or MGSM (TSV); see `Task.read`."""
        wanted = files.Wanted(check_split(split), tuple(languages), num_items, num_validation, seed)
        names = math_files.names(wanted.split)
        return files.read(folder, language, names=names, reader=math_files.rows, wanted=wanted)

    def is_correct(self, text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
        """See the function of this name."""
        return is_correct(text, gold, language, truncated=truncated)

    def stop(self, text: str) -> str:
        """Cut where the text runs on."""
        return answers.cut(text)


def _generated(a: int, b: int, unit: str, language: str) -> Item:
    first, second = (locale_data.unit(number, unit, language) for number in (a, b))
    question = TOTAL[language].format(locale_data.both(first, second, language))
    step = STEP.get(language, "{}. ").format(f"{a} + {b} = {a + b}")
    return Item(
        id=f"{unit}.{a}.{b}",
        language=language,
        prompt=prompt(question, language),
        response=step + answer_sentence(str(a + b), language),
        gold=str(a + b),
    )


MATH = MathTask()
"""The math task."""
