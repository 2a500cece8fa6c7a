"""Files and packages that a cell needs here, and how to fetch them: the `needs` hook of the stages.

A check costs a few file look-ups and uses no network. The module imports no torch.

A plan also checks for every cell that its model has positions for each prompt and the longest answer after it
(`prompts_problem`). The result is exact, but most prompts are never tokenised. Each token but special ones
stands for at least one byte, so a prompt of 200 bytes has at most 200 of them. Texts are tokenised only if
that bound exceeds the limit.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchestrator.costs import Need
from orchestrator.errors import (
    InfrastructureError,
    StageFailure,
    UserError,
    counted,
    first_line_of,
    home_expanded,
)
from orchestrator.registry import EXTRAS, install
from orchestrator.sft import data, fetching, model_folder
from orchestrator.sft.config import ItemsConfig, is_hub_id
from orchestrator.sft.data import load_items
from orchestrator.stage import Config
from orchestrator.tasks import dataset
from orchestrator.tasks.base import Split, load_task

FETCH = "orchestrator.sft.fetching:fetch"


def needs(config: Config) -> list[Need]:
    """Return the data set of a cell's items, unless items are generated or given as a folder."""
    items = config["items"]
    if items["source"] == "files":
        return _files_of_items(config)
    if items["source"] != "parallel" or items["dir"] is not None:
        return []  # `CellConfig.check` reports a missing folder, and one with too few items
    task = config["task"]["name"]
    word = dict(config["task"]).get("target") or task
    folder = data.folder_of(items)
    if folder is None:
        return [
            Need(
                what=f"data of {task}",
                problem=f"{dataset.setting(task)} is not set, and no release is known",
                advice=f"{dataset.setting(task)}=FOLDER; sweep data describe {word} describes it",
            )
        ]
    settings = msgspec.convert(items.to_dict(), ItemsConfig)
    names = " and ".join(
        f"{one.hub_id}@{one.revision[:12]}" for one in (settings.train, settings.test) if one
    )
    is_there = dataset.is_dataset(folder)
    return [
        Need(
            what=f"data of {task}: {names}",
            problem="" if is_there else f"not fetched into {folder}",
            fetch=FETCH,
            arguments={"task": word, "recipe": data.recipe(settings), "folder": str(folder)},
        )
    ]


def _files_of_items(config: Config) -> list[Need]:
    """Return what is wrong with the files of a cell's items, such as fewer than are configured."""
    items, task = (json.dumps(config[key].to_dict(), sort_keys=True) for key in ("items", "task"))
    found = []
    for split, languages in ((Split.TRAIN, config.languages), (Split.TEST, config.evaluation.languages)):
        place = config["items"][f"{split}_dir"]
        if not languages or not place:
            continue  # `CellConfig.check` reports it, and a missing folder
        folder = home_expanded(place)
        if not folder.is_dir() or model_folder.lfs_pointers(folder):
            continue  # `data_files` reports pointers
        # Training items are the same in all languages, which is checked with those of the first one.
        wanted, state = (
            languages if split is Split.TEST else languages[:1],
            model_folder.state_of_data(folder),
        )
        problems = (_unread(_Prompts(task, str(split), each, items), state) for each in wanted)
        if problem := next(filter(None, problems), ""):
            found.append(Need(what=f"{split} data in {folder}", problem=problem))
    return found


FETCH_MODEL = "orchestrator.sft.needs:model"
_WEIGHTS = "model.safetensors"
_VOCABULARY = re.compile(
    r"tokenizer\.[^/]*|[^/]*vocab[^/]*|[^/]*\.(model|tiktoken|tokenizer)|tekken\.json|dict\.txt"
)
"""Files of which a tokenizer has at least one, unless its tokens are bytes or characters."""
_WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")


def models(config: Config) -> list[Need]:
    """Return the model with its tokenizer as a need.

    A model of a hub is one snapshot, which can be fetched. A local folder or a tiny model is a need only if
    something is wrong with it.
    """
    path = config.model.path
    if path is None:
        problem = _too_short(MAX_POSITIONS, config.evaluation.max_new_tokens)
        return [Need(what=f"model {config.model.name}", problem=problem)] if problem else []
    if not is_hub_id(path):
        problem = _problem(config, Path(path))
        return [Need(what=f"model.path={path}", problem=problem)] if problem else []
    revision = config.model.revision or "main"
    what = f"model {path}@{revision}"
    if missing := missing_files(path, revision):
        arguments = {"repo_id": path, "revision": revision}
        return [Need(what=what, problem=missing, fetch=FETCH_MODEL, arguments=arguments)]
    cached = _cached_config(path, revision)
    problem = _problem(config, cached.parent) if cached else ""
    arguments = {"repo_id": path, "revision": revision}
    return [Need(what=what, problem=problem, fetch="" if problem else FETCH_MODEL, arguments=arguments)]


def _problem(config: Config, folder: Path) -> str:
    """Return what is wrong with the files of a cell's model, or with their fit to its prompts."""
    if problem := problem_of(folder, config.evaluation.max_new_tokens):
        return problem
    context_tokens = model_folder.inspect(folder).context_tokens
    return "" if context_tokens is None else prompts_problem(config, folder, context_tokens)


def problem_of(folder: Path, max_new_tokens: int) -> str:
    """Return what is wrong with the files of a model, "" if nothing is.

    Args:
        folder: of the model.
        max_new_tokens: `evaluation.max_new_tokens`; the model must have positions for more.
    """
    if not folder.is_dir():
        return "no such folder"
    found = model_folder.inspect(folder)
    if found.problem:
        return found.problem + (_beside(folder) if found.problem == "no config.json" else "")
    if not _has_tokenizer(folder):
        return "no tokenizer.json, nor another file of a tokenizer; save the model's tokenizer there too"
    too_short = "" if found.context_tokens is None else _too_short(found.context_tokens, max_new_tokens)
    return f"config.json: {too_short}" if too_short else ""


def _has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer, as far as the names of its files show."""
    if any(_VOCABULARY.fullmatch(path.name) and path.is_file() for path in folder.iterdir()):
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return settings.get("tokenizer_class") in _WITHOUT_VOCABULARY
    except (OSError, ValueError, AttributeError):
        return False


def _beside(folder: Path) -> str:
    """Return which models lie in a folder: checkpoints of a trainer, or snapshots of the hub's cache."""
    there = sorted(
        path.parent for name in ("*", "snapshots/*") for path in folder.glob(f"{name}/config.json")
    )
    names = [str(path.relative_to(folder)) for path in there]
    return f"; the folder holds models: name one, such as {names[-1]}" if names else ""


def _too_short(context_tokens: int, max_new_tokens: int) -> str:
    """Return the message for a context that cannot hold one token of a prompt and the longest answer."""
    if max_new_tokens < context_tokens:
        return ""
    return f"{context_tokens} positions are no more than evaluation.max_new_tokens={max_new_tokens}"


def data_files(config: Config) -> list[Need]:
    """Return the data folders that contain git-lfs pointers instead of files."""
    items = config["items"]
    folders = dict.fromkeys(items[key] for key in ("dir", "train_dir", "test_dir") if items[key])
    return [
        Need(
            what=f"data in {folder}",
            problem=f"{pointers[0]} is a git-lfs pointer, not the file: git lfs pull",
        )
        for folder in folders
        if (pointers := model_folder.lfs_pointers(home_expanded(folder)))
    ]


def packages() -> list[Need]:
    """Return the packages that a light installation lacks, as one need."""
    absent = [name for name in EXTRAS["sft"] if importlib.util.find_spec(name) is None]
    if not absent:
        return []
    what = f"package {absent[0]}" + (f" and {counted(len(absent) - 1, 'other')}" if absent[1:] else "")
    return [Need(what=what, problem="not installed", advice=install("sft"))]


INSTALL_VLLM = "make vllm in the checkout, or pip install -e 'CHECKOUT[vllm]'"


def has_vllm() -> bool:
    """Return whether vLLM is installed, without importing it."""
    return importlib.util.find_spec("vllm") is not None


def engine_packages(engine: str) -> list[Need]:
    """Return the package that an engine needs in addition to a standard installation."""
    # The other engine uses transformers, which every installation has.
    if engine != "vllm":
        return []
    problem = "" if has_vllm() else "not installed"
    return [Need(what="package vllm", problem=problem, advice=INSTALL_VLLM)]


def of_cell(config: Config) -> list[Need]:
    """Return all needs of a cell."""
    return [
        *packages(),
        *models(config),
        *data_files(config),
        *needs(config),
        *engine_packages(config.evaluation.engine),
    ]


def missing_files(repo_id: str, revision: str) -> str:
    """Return what the hub's cache lacks of a model, "" if it holds config, tokenizer and all weights."""
    config = _cached_config(repo_id, revision)
    if config is None:
        return "not in the cache"
    folder = config.parent
    if not _has_tokenizer(folder):
        return "no tokenizer in the cache"
    if (folder / _WEIGHTS).exists():
        return ""
    try:
        # An interrupted download leaves some of the files: the index lists all of them.
        index = json.loads((folder / f"{_WEIGHTS}.index.json").read_text(encoding="utf-8"))
        shards = set(index["weight_map"].values())
    except (OSError, ValueError, KeyError):
        return "no weights in the cache"
    num_missing = sum(not (folder / shard).exists() for shard in shards)
    return f"{num_missing} of {len(shards)} files of weights not in the cache" if num_missing else ""


def _cached_config(repo_id: str, revision: str) -> Path | None:
    """Return the path of a model's config in the hub's cache, None if it is not there."""
    from huggingface_hub import try_to_load_from_cache  # takes 0.1 s, so only for a model of a hub

    path = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    return Path(path) if isinstance(path, str) else None


PATTERNS = ("*.json", "*.safetensors", "tokenizer*", "*.model", "vocab*", "merges.txt", "*.jinja")
"""Files to download: weights in one format, configs and tokenizer; no weights of other frameworks."""
PROBE_S = 10.0
"""How long to wait for the hub's first answer, in seconds."""


def model(*, repo_id: str, revision: str) -> None:
    """Download one revision of a model with its tokenizer into the hub's cache.

    Raises:
        InfrastructureError: there is no network, no such revision, or no access to it.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        if not huggingface_hub.constants.HF_HUB_OFFLINE:  # the client would retry for 24 s
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PROBE_S)
        huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(PATTERNS))
    except errors.GatedRepoError as error:
        raise InfrastructureError(
            f"{repo_id} is gated",
            where=first_line_of(error),
            fix=f"accept its licence at https://huggingface.co/{repo_id} and set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InfrastructureError(f"the hub has no {repo_id}, or not for you", fix="set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise InfrastructureError(f"{repo_id} has no revision {revision}", fix="model.revision=") from error
    except Exception as error:
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else first_line_of(error)
        advice = (
            "unset HF_HUB_OFFLINE" if offline else "run it where there is a network, with the same HF_HOME"
        )
        raise InfrastructureError(f"{repo_id} is not to be had from the hub: {why}", fix=advice) from error
    if missing := missing_files(repo_id, revision):
        raise InfrastructureError(f"{repo_id}@{revision} is incomplete: {missing}")


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


def prompts_problem(config: Config, folder: Path, context_tokens: int) -> str:
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
def _unread(items: _Prompts, state: object) -> str:
    """Return why items cannot be read, "" if they can. It takes as long as a stage takes to read them.

    The state of the folder is part of the cache's key only.
    """
    settings = Config(json.loads(items.items))
    try:
        task = load_task(json.loads(items.task))
        load_items(task, items.split, items.language, settings, Config({"items": settings.to_dict()}))
    except (StageFailure, UserError, OSError) as error:
        return "; ".join(line.strip() for line in str(error).splitlines())
    return ""


@functools.lru_cache(maxsize=1024)
def _max_bytes(prompts: _Prompts) -> int:
    """Return the bytes of the longest prompt, an upper bound of its tokens."""
    return max((len(text.encode()) for text in _texts(prompts)), default=0)


@functools.lru_cache(maxsize=1024)
def _max_tokens(prompts: _Prompts, folder: Path, version: int) -> int:
    """Return the tokens of the longest prompt. `version` is part of the cache's key only."""
    return fetching.longest_prompt(folder, _texts(prompts))
