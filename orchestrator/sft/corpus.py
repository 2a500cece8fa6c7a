"""Text for tiny models: names of the world's places, months and coins, and questions without answers."""

from __future__ import annotations

import random

from babel import Locale

from orchestrator.registry import TASKS, lookup
from orchestrator.tasks.base import LANGUAGES, Task

NUM_LISTS, NAMES_IN_LIST = 50, 8
"""Lists of names of each language in the generic text, and how long they are."""


def item_texts(num_items: int, seed: int) -> list[str]:
    """Returns prompts and responses of all tasks in all languages: what a tokenizer is trained on."""
    return [
        item.prompt + item.response
        for task in _tasks()
        for language in LANGUAGES
        for item in task.generate("train", language, num_items=num_items, seed=seed)
    ]


def generic_texts(num_items: int, seed: int) -> list[str]:
    """Returns prompts of all tasks and lists of names from locale data, in all languages, shuffled."""
    texts = [
        item.prompt
        for task in _tasks()
        for language in LANGUAGES
        for item in task.generate("train", language, num_items=num_items, seed=seed)
    ]
    rng = random.Random(seed)
    texts += [text for language in LANGUAGES for text in _locale_texts(language, rng)]
    rng.shuffle(texts)
    return texts


def _tasks() -> list[Task]:
    return [lookup(TASKS, name, kind="task") for name in sorted(TASKS)]


def _locale_texts(language: str, rng: random.Random) -> list[str]:
    locale = Locale.parse(language)
    names = [
        str(name)
        for table in (locale.territories, locale.languages, locale.months["format"]["wide"])
        for name in table.values()
    ]
    return [", ".join(rng.sample(names, NAMES_IN_LIST)) for _ in range(NUM_LISTS)]
