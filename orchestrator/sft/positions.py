"""Whether a model has positions for every prompt of a cell and the longest answer after it. Imports no torch.

A plan asks: the answer is exact, yet texts are only tokenised where the number of their bytes leaves a doubt.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import StageFailure, UserError
from orchestrator.registry import TASKS, lookup
from orchestrator.sft import data, fetching
from orchestrator.sft.data import load_items
from orchestrator.stage import Config
from orchestrator.tasks import dataset
from orchestrator.tasks.base import Split

MAX_POSITIONS = 4096
"""Of the tiny models that are made here."""
_SPECIAL = 8
"""More special tokens than a tokenizer puts around a prompt. All others stand for at least a byte."""


class _Prompts(NamedTuple):
    """The prompts of one split and language; equal ones are the same for the caches."""

    task: str
    split: str
    language: str
    items: str


def problem_of(config: Config, folder: Path, context_tokens: int) -> str:
    """Say which prompt leaves no room for an answer, "" when none is known to.

    Args:
        config: of a cell: its validation items are in the languages of the mixture, its test items in those
            of the evaluation.
        folder: of the model, with its tokenizer.
        context_tokens: positions of the model.
    """
    limit = context_tokens - int(config.evaluation.max_new_tokens)
    items = json.dumps(config["items"].to_dict(), sort_keys=True)
    languages = {Split.VALIDATION: config.languages, Split.TEST: config.evaluation.languages}
    for split in (Split.TEST, Split.VALIDATION):
        for language in languages[split]:
            prompts = _Prompts(config.task.name, str(split), language, items)
            if _max_bytes(prompts) + _SPECIAL <= limit:
                continue
            try:
                longest = _max_tokens(prompts, folder, _version(folder))
            except UserError as error:
                return error.what
            if (room := context_tokens - longest) < config.evaluation.max_new_tokens:
                fix = f"evaluation.max_new_tokens={room}" if room > 0 else "no answer would fit"
                return (
                    f"config.json: {context_tokens} positions, but {split} prompts of {language} have"
                    f" up to {longest} tokens and"
                    f" evaluation.max_new_tokens={config.evaluation.max_new_tokens}: {fix}"
                )
    return ""


def _version(folder: Path) -> int:
    """Return when the newest file of a tokenizer was changed, in ns."""
    return max((path.stat().st_mtime_ns for path in folder.glob("*token*")), default=0)


@functools.lru_cache(maxsize=1024)
def _texts(prompts: _Prompts) -> tuple[str, ...]:
    """Return the prompts, none where the items cannot be had here: another need, or the stage, says why."""
    items = Config(json.loads(prompts.items))
    if items["source"] == "parallel":
        folder = data.folder_of(items)
        if folder is None or not dataset.is_dataset(folder):
            return ()
    uses = Config({"items": items.to_dict()})
    try:
        task = lookup(TASKS, prompts.task, kind="task")
        return tuple(item.prompt for item in load_items(task, prompts.split, prompts.language, items, uses))
    except (StageFailure, UserError, OSError):
        return ()


@functools.lru_cache(maxsize=1024)
def _max_bytes(prompts: _Prompts) -> int:
    return max((len(text.encode()) for text in _texts(prompts)), default=0)


@functools.lru_cache(maxsize=1024)
def _max_tokens(prompts: _Prompts, folder: Path, version: int) -> int:
    return fetching.longest_prompt(folder, _texts(prompts))
