"""Made-up tables of the study's 1,380 rows, from any rule that says how accurate a cell is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from orchestrator.study import numbers
from orchestrator.study.sections import ExpectedCell

CORE = ("en", "es", "ja", "bn", "sw")
EXTRAS = ("fr", "de", "ru", "zh", "th")
EVAL_LANGUAGES = ("en", "es", "ja", "bn", "sw", "te")
NUM_ITEMS = {"math": 250, "api_calling": 399}
PARAMETERS = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": 3_880_263_168,
}
MINIMAL = ("model", "task", "mixture", "languages", "eval_language", "num_correct", "num_items", "accuracy")
"""The columns that a table from elsewhere has at least."""

Row = dict[str, Any]
Rule = Callable[[str, str, tuple[str, ...], str], float]
"""(Model, task, training languages, evaluation language) to a share of right answers."""


def study_mixtures(extras: Sequence[str] = ("fr", "th")) -> dict[str, tuple[str, ...]]:
    """Returns the baseline and the 22 mixtures, with the labels of the study's sweep file."""
    without = {language: tuple(other for other in CORE if other != language) for language in CORE}
    return {
        "none": (),
        "en": ("en",),
        **{f"en+{x}": ("en", x) for x in CORE[1:]},
        **{f"no-{x}": rest for x, rest in without.items()},
        "core": CORE,
        **{f"no-{x}+2": (*rest, *extras) for x, rest in without.items()},
        **{f"no-{x}+5": (*rest, *EXTRAS) for x, rest in without.items()},
        "all": (*CORE, *EXTRAS),
    }


def plausible(model: str, task: str, languages: tuple[str, ...], eval_language: str) -> float:
    """A rule with the trends of the paper: size, family, exposure and diversity help, low resource hurts."""
    logit = 2.2 * (math.log10(PARAMETERS.get(model, 1e9)) - 9.3)
    logit += 0.5 if model.startswith("qwen") else 0.0
    logit -= {"math": 0.7, "api_calling": 0.0}.get(task, 0.0)
    logit -= {"en": 0.0, "es": 0.3, "ja": 0.7, "bn": 1.2, "sw": 1.4, "te": 1.3}.get(eval_language, 1.0)
    if languages:
        logit += 0.8 + 0.5 * math.sqrt(len(languages) / 10)
        logit += 0.6 if eval_language in languages else 0.0
    return 1 / (1 + math.exp(-logit))


def study_rows(
    rule: Rule = plausible,
    *,
    models: Iterable[str] = tuple(PARAMETERS),
    tasks: Iterable[str] = tuple(NUM_ITEMS),
    mixtures: Mapping[str, tuple[str, ...]] | None = None,
    seed: int = 0,
    noise: bool = True,
    num_items: Mapping[str, int] = NUM_ITEMS,
) -> list[Row]:
    """Returns the rows that `collect` would give of the study.

    Args:
        rule: how accurate a cell is in truth.
        models: a model whose name is not the study's gets a million parameters.
        tasks: which tasks.
        mixtures: label to languages; the study's by default.
        seed: of the cells, and of the noise.
        noise: whether the right answers are drawn, or are the truth rounded.
        num_items: task to test items a language.
    """
    chance = random.Random(seed)
    rows: list[Row] = []
    for model in models:
        for task in tasks:
            for label, languages in (study_mixtures() if mixtures is None else mixtures).items():
                for language in EVAL_LANGUAGES:
                    share, num = rule(model, task, languages, language), num_items[task]
                    drawn = sum(chance.random() < share for _ in range(num))
                    num_correct = drawn if noise else round(share * num)
                    rows.append(row(model, task, label, languages, language, num_correct, num, seed=seed))
    return rows


def row(
    model: str,
    task: str,
    mixture: str,
    languages: Sequence[str],
    eval_language: str,
    num_correct: int,
    num_items: int,
    *,
    seed: int = 0,
) -> Row:
    """Returns one test row with the columns of `collect`."""
    return {
        "cell": f"{model}.{task}.{mixture}",
        "model": model,
        "task": task,
        "mixture": mixture,
        "languages": ",".join(languages),
        "sweep": "made-up",
        "revision": 1,
        "stage": "evaluate",
        "attempts": 1,
        "seconds": 60.0,
        "code": "0" * 40,
        "family": model.split("-")[0],
        "num_parameters": PARAMETERS.get(model, 1_000_000),
        "num_languages": len(languages),
        "seed": seed,
        "pretrained": not languages,
        "selected_step": 6 if languages else None,
        "train_seconds": 3600.0 if languages else None,
        "train_tokens": 10_000_000 if languages else None,
        "tokens_per_second": 2_777.8 if languages else None,
        "eval_language": eval_language,
        "split": "test",
        "num_correct": num_correct,
        "num_items": num_items,
        "accuracy": num_correct / num_items,
    }


def minimal(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows with only the columns that a table from elsewhere has at least."""
    return [{name: row[name] for name in MINIMAL} for row in rows]


def report(rows: Sequence[Row], *, expected: Sequence[Mapping[str, Any]] | None = None, seed: int = 0) -> Any:
    """Returns the study's numbers as ``report.json`` holds them."""
    cells = None if expected is None else [ExpectedCell(**cell) for cell in expected]
    return msgspec.to_builtins(numbers.report(rows, expected=cells, seed=seed))
