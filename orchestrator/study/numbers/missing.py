"""Which cells, or evaluation languages of a cell, the rows do not have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.study import facts
from orchestrator.study.table import Result, languages_of

Cell = tuple[str, str, tuple[str, ...], str | None]
"""Model, task, languages, and the seed where it is known."""


def missing(
    read: Sequence[Result], expected: Iterable[Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Names the expected cells without rows, and the evaluation languages that those with rows lack.

    Args:
        read: what there is.
        expected: what there should be; by default every mixture for every model and task of the rows: the
            study's 22 and the baseline if the rows have one of four languages or more, else those that occur.
    """
    have: dict[Cell, set[str]] = {}
    for result in read:
        for seed in (result.seed, None):
            have.setdefault((result.model, result.task, result.languages, seed), set()).add(
                result.eval_language
            )
    tested = facts.in_order(sorted({result.eval_language for result in read})) or facts.EVAL_LANGUAGES
    entries = []
    for cell, name in _expected(read, expected).items():
        found = have.get(cell) or have.get((*cell[:3], ""), set())
        lacking = [language for language in tested if language not in found]
        if lacking:
            model, task, languages, seed = cell
            entries.append(
                {
                    "cell": name,
                    "model": model,
                    "task": task,
                    "mixture": facts.label_of(languages),
                    "languages": list(languages),
                    "seed": seed,
                    "eval_languages": lacking,
                }
            )
    return entries


def _expected(read: Sequence[Result], given: Iterable[Mapping[str, Any]] | None) -> dict[Cell, str | None]:
    if given is None:
        return dict.fromkeys(_derived(read))
    return {
        (
            str(cell["model"]),
            str(cell["task"]),
            facts.in_order(languages_of(cell.get("languages"))),
            None if cell.get("seed") is None else str(cell["seed"]),
        ): cell.get("cell")
        for cell in given
    }


def _derived(read: Sequence[Result]) -> list[Cell]:
    occurring = {result.languages for result in read}
    mixtures: list[tuple[str, ...]] = sorted(occurring, key=lambda names: (len(names), names))
    if any(len(names) >= min(facts.ZERO_SHOT_SIZES) for names in occurring):
        six = next((names for names in mixtures if len(names) == 6 and facts.left_out(names)), None)
        extras = [name for name in six if name not in facts.CORE] if six else facts.TWO_EXTRAS
        mixtures = facts.mixtures(extras)
    pairs = sorted({(result.model, result.task) for result in read})
    return [(model, task, languages, None) for model, task in pairs for languages in mixtures]
