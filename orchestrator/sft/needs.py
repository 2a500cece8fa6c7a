"""What must lie on this machine before a cell can run, and what fetches it: the `needs` hook of the stages.

Looking costs a few file look-ups and asks no network. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from orchestrator.costs import Need
from orchestrator.sft import data_needs, engines
from orchestrator.sft.config import is_hub_id
from orchestrator.stage import Config

FETCH_MODEL = "orchestrator.sft.prefetch:model"
_WEIGHTS = "model.safetensors"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")


def models(config: Config) -> list[Need]:
    """Returns the model and its tokenizer where they are of a hub: both are one snapshot."""
    path = config.model.path
    if path is None or not is_hub_id(path):
        return []
    revision = config.model.revision or "main"
    missing = missing_files(path, revision)
    arguments = {"repo_id": path, "revision": revision}
    return [Need(what=f"model {path}@{revision}", problem=missing, fetch=FETCH_MODEL, arguments=arguments)]


PROVIDERS: tuple[Callable[[Config], list[Need]], ...] = (models, data_needs.needs, engines.packages)
"""Each says what a cell needs of one kind; what is on a local path is checked elsewhere."""


def of_cell(config: Config) -> list[Need]:
    """Returns all that a cell needs."""
    return [need for provider in PROVIDERS for need in provider(config)]


def missing_files(repo_id: str, revision: str) -> str:
    """Says what the hub's cache lacks of a model, "" when it holds config, tokenizer and all weights."""
    config = _cached(repo_id, "config.json", revision)
    if config is None:
        return "not in the cache"
    folder = config.parent
    if not any((folder / name).exists() for name in _TOKENIZERS):
        return "no tokenizer in the cache"
    if (folder / _WEIGHTS).exists():
        return ""
    try:
        index = json.loads((folder / f"{_WEIGHTS}.index.json").read_text(encoding="utf-8"))
        shards = set(index["weight_map"].values())
    except (OSError, ValueError, KeyError):
        return "no weights in the cache"
    num_missing = sum(not (folder / shard).exists() for shard in shards)
    return f"{num_missing} of {len(shards)} files of weights not in the cache" if num_missing else ""


def _cached(repo_id: str, name: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # only for a model of a hub: 0.1 s

    path = try_to_load_from_cache(repo_id, name, revision=revision)
    return Path(path) if isinstance(path, str) else None
