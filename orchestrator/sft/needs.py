"""What must lie on this machine before a cell can run, and what fetches it: the `needs` hook of the stages.

Looking costs a few file look-ups and asks no network. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from orchestrator.costs import Need
from orchestrator.sft import data_needs, engines, model_folder, positions
from orchestrator.sft.config import is_hub_id
from orchestrator.stage import Config

FETCH_MODEL = "orchestrator.sft.prefetch:model"
_WEIGHTS = "model.safetensors"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")


def models(config: Config) -> list[Need]:
    """Return the model with its tokenizer: of a hub, one snapshot; of a folder, only what is wrong there."""
    path = config.model.path
    if path is None:
        problem = _too_short(positions.MAX_POSITIONS, config.evaluation.max_new_tokens)
        return [Need(what=f"model {config.model.name}", problem=problem)] if problem else []
    if not is_hub_id(path):
        problem = _problem(config, Path(path))
        return [Need(what=f"model.path={path}", problem=problem)] if problem else []
    revision = config.model.revision or "main"
    what = f"model {path}@{revision}"
    if missing := missing_files(path, revision):
        arguments = {"repo_id": path, "revision": revision}
        return [Need(what=what, problem=missing, fetch=FETCH_MODEL, arguments=arguments)]
    cached = _cached(path, "config.json", revision)
    problem = _problem(config, cached.parent) if cached else ""
    arguments = {"repo_id": path, "revision": revision}
    return [Need(what=what, problem=problem, fetch="" if problem else FETCH_MODEL, arguments=arguments)]


def _problem(config: Config, folder: Path) -> str:
    """Say what is wrong with the files of a cell's model, or with their fit to its prompts."""
    if problem := problem_of(folder, config.evaluation.max_new_tokens):
        return problem
    context_tokens = model_folder.inspect(folder).context_tokens
    return "" if context_tokens is None else positions.problem_of(config, folder, context_tokens)


def problem_of(folder: Path, max_new_tokens: int) -> str:
    """Say what is wrong with the files of a model, "" when nothing is.

    Args:
        folder: of the model.
        max_new_tokens: `evaluation.max_new_tokens`: the model must have positions for more.
    """
    if not folder.is_dir():
        return "no such folder"
    found = model_folder.inspect(folder)
    if found.problem:
        return found.problem
    too_short = "" if found.context_tokens is None else _too_short(found.context_tokens, max_new_tokens)
    return f"config.json: {too_short}" if too_short else ""


def _too_short(context_tokens: int, max_new_tokens: int) -> str:
    if max_new_tokens < context_tokens:
        return ""
    return f"{context_tokens} positions are no more than evaluation.max_new_tokens={max_new_tokens}"


def data_files(config: Config) -> list[Need]:
    """Return the folders of data that hold pointers of git-lfs in the place of files."""
    items = config["items"]
    folders = dict.fromkeys(items[key] for key in ("dir", "train_dir", "test_dir") if items[key])
    return [
        Need(
            what=f"data in {folder}",
            problem=f"{pointers[0]} is a git-lfs pointer, not the file: git lfs pull",
        )
        for folder in folders
        if (pointers := model_folder.lfs_pointers(Path(folder).expanduser()))
    ]


PROVIDERS: tuple[Callable[[Config], list[Need]], ...] = (
    models,
    data_files,
    data_needs.needs,
    engines.packages,
)
"""Each says what a cell needs of one kind."""


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
