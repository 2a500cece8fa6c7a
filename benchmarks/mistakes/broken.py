"""The task `math` with one mistake each, as a user's own task could have it."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from orchestrator.errors import UserError
from orchestrator.tasks.math import MATH


class _Mistaken:
    """The task `math`, but for what a mistake changes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(MATH, name)


class _BadRow(_Mistaken):
    """A row of the Spanish training data has no answer."""

    def generate(self, split: str, language: str, num_items: int, seed: int = 0) -> Any:
        if (split, language) == ("train", "es"):
            raise UserError("no field for an answer", where="train/es.jsonl:17")
        return MATH.generate(split, language, num_items, seed)


class _Swapped(_Mistaken):
    """The answers lie in the column of another row."""

    def generate(self, *args: Any, **how: Any) -> Any:
        items = list(MATH.generate(*args, **how))
        golds = [item.gold for item in items]
        return [
            msgspec.structs.replace(item, gold=gold)
            for item, gold in zip(items, [*golds[1:], golds[0]], strict=True)
        ]


def _is_reference(text: str, gold: str, language: str) -> bool:
    return bool(MATH.is_correct(text, gold, language))


class _Crashing(_Mistaken):
    """The scorer fails on what a model wrote; it was tried on references alone."""

    def is_correct(self, text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
        if not _is_reference(text, gold, language):
            raise KeyError("answer")
        return True


class _Hanging(_Mistaken):
    """The scorer never returns for what a model wrote."""

    def is_correct(self, text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
        while not _is_reference(text, gold, language):
            time.sleep(1)
        return True


BAD_ROW, SWAPPED, CRASHING, HANGING = _BadRow(), _Swapped(), _Crashing(), _Hanging()
