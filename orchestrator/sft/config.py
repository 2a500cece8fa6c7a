"""The schema of a cell's config: types, ranges and the checks that need no torch.

The engine coerces a resolved Hydra tree into `CellConfig` before anything is hashed, then calls
`check`, which may look at the file system. It knows no store and no sweep.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec.structs import force_setattr

from orchestrator.errors import UserError, nearest
from orchestrator.registry import GENERATORS, TASKS, lookup
from orchestrator.sft import data
from orchestrator.sft.workload import CostsConfig
from orchestrator.tasks.base import LANGUAGES

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Rate = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Architecture(_Frozen, frozen=True, kw_only=True):
    """Sizes of a decoder; they build a tiny model and let a planner estimate a real one."""

    num_layers: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    vocab_size: Positive
    tied: bool = True

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}")


class TokenizerConfig(_Frozen, frozen=True, kw_only=True):
    """What a tiny tokenizer is trained on: `num_items` generated items a task and language."""

    num_items: Positive
    seed: int


class Pretraining(_Frozen, frozen=True, kw_only=True):
    """The short generic language modelling of a tiny model."""

    num_steps: Positive
    batch_size: Positive
    block_tokens: Positive
    learning_rate: Rate
    num_items: Positive
    seed: int


class ModelConfig(_Frozen, frozen=True, kw_only=True):
    """A tiny model to build, or with `path` a model of a hub or folder to load.

    Attributes:
        name: what tables call it; by default the last part of `path`.
        fingerprint: what stands for `path` in identities: its content, or a hub id and revision.
    """

    name: str | None = None
    family: str | None = None
    path: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    architecture: Architecture | None = None
    tokenizer: TokenizerConfig | None = None
    pretraining: Pretraining | None = None

    def __post_init__(self) -> None:
        if self.path is None:
            missing = [key for key in ("architecture", "tokenizer", "pretraining") if not getattr(self, key)]
            if missing or self.family not in FAMILIES:
                needed = ", ".join(missing) or f"a model.family: {' or '.join(FAMILIES)}"
                raise ValueError(f"model.name={self.name} has no model.path, so it needs {needed}")
        elif self.name is None:
            force_setattr(self, "name", Path(self.path).name)


FAMILIES = ("qwen3", "gemma3")
"""Architectures that a tiny model can be built in."""


class TaskConfig(_Frozen, frozen=True, kw_only=True):
    """The benchmark, by its name in `orchestrator.registry.TASKS`."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise ValueError(f"unknown task {self.name!r}; {nearest(self.name, TASKS)}")


class TrainerConfig(_Frozen, frozen=True, kw_only=True):
    """Optimisation. `global_batch_size` rows make one step whatever the micro-batch and the processes.

    Attributes:
        micro_batch_size: rows of one forward pass; None for the largest that fits.
        num_processes: of one node; None for as many as there are GPUs, one on a CPU.
        sharding: of the model over processes: copies, shards, or shards on GPUs alone.
        loss_chunk_tokens: response tokens whose logits exist at a time.
    """

    learning_rate: Rate
    num_epochs: Positive
    global_batch_size: Positive
    micro_batch_size: Positive | None
    warmup_share: Share
    weight_decay: Rate
    max_grad_norm: Rate
    max_length_tokens: Positive
    precision: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    num_processes: Positive | None = None
    sharding: Literal["auto", "ddp", "fsdp"] = "auto"
    loss_chunk_tokens: Positive = 1024

    def __post_init__(self) -> None:
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"trainer.global_batch_size={self.global_batch_size} is not divisible by"
                f" trainer.micro_batch_size={self.micro_batch_size}"
            )


class Release(_Frozen, frozen=True, kw_only=True):
    """A published data set: its hub id, and the revision that pins it."""

    hub_id: str
    revision: str = "main"


class ItemsConfig(_Frozen, frozen=True, kw_only=True):
    """Where the items of one task come from, and how many a language; None for all that there are.

    Attributes:
        source: made by the task, read from two folders of files, or from a data set (`sweep data describe`).
        dir: the data set's folder; without it, what was fetched of the releases is looked for in `cache_dir`.
        train: the release that train and validation items come from, where there is no `dir`.
        test: the release that test items come from.
        languages: of a data set made of releases: only ids that all of them have are taken.
        cache_dir: where fetched data sets lie; None for the default of `orchestrator.sft.data`.
        cached: the name of the fetched data set in there; derived.
        train_fingerprint: what stands for train and validation items in identities; for a data set derived.
        max_new_tokens: how long an answer to them may be, unless `evaluation` says otherwise.
    """

    source: Literal["generated", "files", "parallel"]
    train_dir: str | None = None
    test_dir: str | None = None
    dir: str | None = None
    train: Release | None = None
    test: Release | None = None
    languages: tuple[str, ...] = tuple(LANGUAGES)
    cache_dir: str | None = None
    cached: str | None = None
    train_fingerprint: str | None = None
    test_fingerprint: str | None = None
    seed: int
    num_train: Positive | None
    num_validation: Positive | None
    num_test: Positive | None
    max_new_tokens: Positive

    def __post_init__(self) -> None:
        force_setattr(self, "languages", in_study_order(self.languages, key="items.languages"))
        if self.source == "parallel":
            for key, value in data.derived(self).items():
                force_setattr(self, key, value)
        elif self.num_validation is None:
            raise ValueError(f"items of source={self.source} need num_validation")
        if self.source == "files" and not (self.train_dir and self.test_dir):
            raise ValueError("items of source=files need data.train_dir and data.test_dir")
        if self.source == "generated" and not (self.num_train and self.num_test):
            raise ValueError("items of source=generated need num_train and num_test")


class DataConfig(_Frozen, frozen=True, kw_only=True):
    """Items of all tasks, so that one sweep can mix sources; `CellConfig.items` is its task's."""

    train_dir: str | None = None
    test_dir: str | None = None
    math_dir: str | None = None
    api_calling_dir: str | None = None
    cache_dir: str | None = None
    train_fingerprint: str | None = None
    test_fingerprint: str | None = None
    seed: int
    num_train: Positive | None
    num_validation: Positive | None
    num_test: Positive | None
    tasks: dict[str, ItemsConfig]


class EvaluationConfig(_Frozen, frozen=True, kw_only=True):
    """What is tested, in which languages, how long an answer may be, and what generates it.

    Engine, precision and batch size are part of the identity, for each gives slightly other texts: none is
    ever chosen by what a machine happens to have. The same batches give the same texts on the same hardware
    and library versions, whatever the number of processes and however often the work was interrupted.

    Attributes:
        engine: a key of `orchestrator.registry.ENGINES`.
        precision: of weights and activations while generating.
        batch_size: prompts that are computed together; never made smaller, so a device with too little memory
            fails with cause ``oom_gpu``. vLLM, with its batch-invariant kernels, decides for itself.
        num_processes: that share the work; None for one a visible GPU, or one on a CPU.
    """

    languages: tuple[str, ...]
    max_new_tokens: Positive
    engine: str = "transformers"
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_size: Positive
    num_processes: Positive | None = None

    def __post_init__(self) -> None:
        if not self.languages:
            raise ValueError("evaluation.languages is empty")
        if self.engine not in GENERATORS:
            raise ValueError(f"unknown evaluation.engine {self.engine!r}; {nearest(self.engine, GENERATORS)}")
        force_setattr(self, "languages", in_study_order(self.languages, key="evaluation.languages"))


class CellConfig(_Frozen, frozen=True, kw_only=True):
    """The whole config of a cell; an empty mixture is the untrained baseline.

    Attributes:
        extras: languages that a sweep's mixtures may refer to; no stage reads them.
    """

    seed: Count
    languages: tuple[str, ...]
    extras: tuple[str, ...] = ()
    device: Literal["auto", "cpu", "cuda"]
    items: ItemsConfig
    model: ModelConfig
    task: TaskConfig
    trainer: TrainerConfig
    data: DataConfig
    evaluation: EvaluationConfig
    costs: CostsConfig | None = None

    def __post_init__(self) -> None:
        force_setattr(self, "languages", in_study_order(self.languages, key="languages"))

    def check(self) -> None:
        """Check what only the file system knows: the model's folder, and a file for each language.

        Raises:
            UserError: something is missing.
        """
        _check_model(self.model.path)
        _check_items(self.task.name, self.items, self.languages, self.evaluation.languages)


def is_hub_id(path: str) -> bool:
    """Tells a hub id, ``owner/name``, from a local path."""
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).exists()


def in_study_order(languages: tuple[str, ...], *, key: str) -> tuple[str, ...]:
    """Return a set of languages in the study's order, so that equal sets are equal cells.

    Raises:
        ValueError: a language is unknown or given twice.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise ValueError(f"unknown language {language!r} in {key}; {nearest(language, LANGUAGES)}")
        if languages.count(language) > 1:
            raise ValueError(f"language {language!r} is twice in {key}")
    return tuple(language for language in LANGUAGES if language in languages)


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


@functools.cache
def _check_model(path: str | None) -> None:
    if path is None or is_hub_id(path):
        return
    what = ""
    if not Path(path).is_dir():
        what = f"model.path={path} is no folder"
    elif not Path(path, "config.json").is_file():
        what = f"model.path={path} has no config.json"
    elif not any(Path(path, name).is_file() for name in _TOKENIZER_FILES):
        what = f"model.path={path} has no tokenizer"
    if what:
        raise UserError(
            what, allowed="a folder with model and tokenizer as save_pretrained writes them, or a hub id"
        )


def _check_items(
    task_name: str, items: ItemsConfig, training: tuple[str, ...], tested: tuple[str, ...]
) -> None:
    if items.source == "generated" or (items.source == "parallel" and items.dir is None):
        return
    if items.dir is not None:
        data.check(items, task_name)
    for folder, split, languages, key in (
        (items.dir or items.train_dir, "train", training, "languages"),
        (items.dir or items.test_dir, "test", tested, "evaluation.languages"),
    ):
        known = _languages_in(task_name, str(folder), split)
        for language in languages:
            if language not in known:
                raise UserError(
                    f"no {split} data of {task_name} in language {language!r}",
                    where=f"{key}={','.join(languages)}, files of {folder}",
                    allowed=f"languages there: {', '.join(known) or 'none'}",
                )


@functools.cache
def _languages_in(task_name: str, folder: str, split: str) -> tuple[str, ...]:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"data.{split}_dir={folder} is no folder")
    return tuple(lookup(TASKS, task_name, kind="task").languages_in(path, split))
