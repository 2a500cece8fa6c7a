"""Check that a model has positions for each prompt and the longest answer after it. Imports no torch.

A plan runs this for every cell. The answer is exact, but most prompts are never tokenised. Each token but
special ones stands for at least one byte, so a prompt of 200 bytes has at most 200 of them. Texts are
tokenised only if that bound exceeds the limit.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import StageFailure, UserError
from orchestrator.sft import data, fetching
from orchestrator.sft.data import load_items
from orchestrator.stage import Config
from orchestrator.tasks import dataset
from orchestrator.tasks.base import Split, load_task

MAX_POSITIONS = 4096
"""Positions of the tiny models that the `base` stage makes."""
_SPECIAL = 8
"""More special tokens than any tokenizer adds to a prompt. All other tokens stand for a byte or more."""


class _Prompts(NamedTuple):
    """Key for the prompts of one split and language. Cells with equal keys share the cached results."""

    task: str
    split: str
    language: str
    items: str


def problem_of(config: Config, folder: Path, context_tokens: int) -> str:
    """Return which prompt leaves no room for an answer, "" if none is known to.

    Args:
        config: of a cell. Its validation items are in the languages of the mixture, its test items in those
            of the evaluation.
        folder: of the model, with its tokenizer.
        context_tokens: positions of the model.
    """
    limit = context_tokens - int(config.evaluation.max_new_tokens)
    items, task = (json.dumps(config[key].to_dict(), sort_keys=True) for key in ("items", "task"))
    languages = {Split.VALIDATION: config.languages, Split.TEST: config.evaluation.languages}
    for split in (Split.TEST, Split.VALIDATION):
        for language in languages[split]:
            prompts = _Prompts(task, str(split), language, items)
            # The common case: the prompts fit even if every byte were a token.
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
    """Return when the newest file of a tokenizer was changed, in ns.

    As part of a cache's key, it makes counts of an older tokenizer unused.
    """
    return max((path.stat().st_mtime_ns for path in folder.glob("*token*")), default=0)


@functools.lru_cache(maxsize=1024)
def _texts(prompts: _Prompts) -> tuple[str, ...]:
    """Return the prompts; none if the items are not here, which another need or the stage reports."""
    items = Config(json.loads(prompts.items))
    if items["source"] == "parallel":
        folder = data.folder_of(items)
        if folder is None or not dataset.is_dataset(folder):
            return ()
    uses = Config({"items": items.to_dict()})
    try:
        task = load_task(json.loads(prompts.task))
        return tuple(item.prompt for item in load_items(task, prompts.split, prompts.language, items, uses))
    except (StageFailure, UserError, OSError):
        return ()


@functools.lru_cache(maxsize=1024)
def _max_bytes(prompts: _Prompts) -> int:
    """Return the bytes of the longest prompt, an upper bound of its tokens."""
    return max((len(text.encode()) for text in _texts(prompts)), default=0)


@functools.lru_cache(maxsize=1024)
def _max_tokens(prompts: _Prompts, folder: Path, version: int) -> int:
    """Return the tokens of the longest prompt. `version` is part of the cache's key only."""
    return fetching.longest_prompt(folder, _texts(prompts))
