"""The schema of a cell's config: types, ranges and the checks that need no torch.

The engine converts a resolved Hydra tree to `CellConfig` before it hashes anything. Then it calls `check`,
which may read the file system. The module does not depend on the store or on sweeps.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec.structs import force_setattr

from orchestrator.errors import UserError, home_expanded, nearest
from orchestrator.registry import GENERATORS, TASKS, is_known, known
from orchestrator.sft import data
from orchestrator.sft.workload import CostsConfig
from orchestrator.tasks.base import LANGUAGES, Strict, Task, load_task

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Rate = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Architecture(Strict, frozen=True, kw_only=True):
    """Sizes of a decoder. They build a tiny model, and let a plan estimate the cost of a real one."""

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


class TokenizerConfig(Strict, frozen=True, kw_only=True):
    """Training data of a tiny tokenizer: `num_items` generated items per task and language."""

    num_items: Positive
    seed: int


class Pretraining(Strict, frozen=True, kw_only=True):
    """The short generic language modelling of a tiny model."""

    num_steps: Positive
    batch_size: Positive
    block_tokens: Positive
    learning_rate: Rate
    num_items: Positive
    seed: int


class ModelConfig(Strict, frozen=True, kw_only=True):
    """A tiny model to build or, with `path`, a model to load from a hub or a folder.

    Attributes:
        name: the model's name in tables; by default the last part of `path`.
        fingerprint: what stands for `path` in identities: a digest of the content, or a hub id and revision.
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
            # The struct is frozen, but `__post_init__` may still complete it.
            force_setattr(self, "name", Path(self.path).name)


FAMILIES = ("qwen3", "gemma3")
"""Architectures in which a tiny model can be built."""


class TaskConfig(Strict, frozen=True, kw_only=True):
    """The benchmark.

    Attributes:
        name: in `orchestrator.registry.TASKS`; any name for a task with a `target`.
        target: ``module:object`` of a task that the registry does not have.
    """

    name: str
    target: str | None = None

    def __post_init__(self) -> None:
        if self.target is None and not is_known(TASKS, self.name):
            raise ValueError(f"unknown task {self.name!r}; {nearest(self.name, known(TASKS))}")


class TrainerConfig(Strict, frozen=True, kw_only=True):
    """Optimisation settings. A step has `global_batch_size` rows, however they are divided.

    Attributes:
        micro_batch_size: rows of one forward pass, padded side by side; None to count tokens.
        micro_batch_tokens: tokens of one forward pass, in packs of rows; None for the most that fit.
        micro_batch_divisor, always_recompute: set by remedies. A power of two by which the micro-batch is
            divided, and whether layers are computed again whatever `gradient_checkpointing` is.
        cpu_limit_tokens: tokens of a micro-batch that fit into the memory that a CPU pretends to have; None
            for no limit. A wider one raises the error of a GPU, to rehearse it.
        gradient_checkpointing: compute layers again in the backward pass, with ``selective`` all but matrix
            products and attention; ``auto``: as little as memory allows.
        compile: compile the layers; ``auto`` on GPUs, if the training is long enough.
        num_processes: in total, over all nodes of the job; None for one per GPU, or one on a CPU.
        sharding: of the model over processes: copies, shards, or (``auto``) shards on GPUs only.
        loss_chunk_tokens: number of response tokens whose logits exist at a time.
        deterministic: only kernels that repeat bit for bit; ``auto``: if the model has such.
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
    gradient_checkpointing: bool | Literal["auto", "selective"]
    num_processes: Positive | None = None
    sharding: Literal["auto", "ddp", "fsdp"] = "auto"
    loss_chunk_tokens: Positive = 1024
    micro_batch_tokens: Positive | None = None
    compile: bool | Literal["auto"] = "auto"
    micro_batch_divisor: Positive = 1
    always_recompute: bool = False
    cpu_limit_tokens: Positive | None = None
    deterministic: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.micro_batch_divisor & (self.micro_batch_divisor - 1):
            raise ValueError(f"trainer.micro_batch_divisor={self.micro_batch_divisor} is no power of two")
        if self.micro_batch_size is not None and self.micro_batch_tokens is not None:
            raise ValueError("trainer.micro_batch_size and trainer.micro_batch_tokens: only one can be set")
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"trainer.global_batch_size={self.global_batch_size} is not divisible by"
                f" trainer.micro_batch_size={self.micro_batch_size}"
            )


class Release(Strict, frozen=True, kw_only=True):
    """A published data set: its hub id, and the revision that pins it."""

    hub_id: str
    revision: str = "main"


class ItemsConfig(Strict, frozen=True, kw_only=True):
    """The source of one task's items, and their number per language; None for all that exist.

    Attributes:
        source: generated by the task, two folders of files, or a data set (`sweep data describe`).
        dir: folder of the data set. Without it, the data set fetched from the releases is used, in
            `cache_dir`.
        train: the release of train and validation items, if there is no `dir`.
        test: the release of test items.
        languages: of a data set made of releases; only items that exist in all of them are taken.
        cache_dir: folder of fetched data sets; None for the default of `orchestrator.sft.data`.
        cached: name of the fetched data set in that folder; derived from other settings.
        train_fingerprint: what stands for train and validation items in identities; derived for a data set.
        max_new_tokens: limit of an answer's length, unless `evaluation` sets another.
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
            # Derived here, before anything is hashed, so that equal data has equal digests on every machine.
            for key, value in data.derived(self).items():
                force_setattr(self, key, value)
        elif self.num_validation is None:
            raise ValueError(f"items of source={self.source} need num_validation")
        if self.source == "files" and not (self.train_dir and self.test_dir):
            raise ValueError("items of source=files need data.train_dir and data.test_dir")
        if self.source == "generated" and not (self.num_train and self.num_test):
            raise ValueError("items of source=generated need num_train and num_test")


class _DataConfig(Strict, frozen=True, kw_only=True):
    """Items of all tasks, so that one sweep can mix sources. `CellConfig.items` is of the cell's task.

    Attributes:
        unpinned: whether releases may be named by a branch or tag, which can move.
    """

    train_dir: str | None = None
    test_dir: str | None = None
    cache_dir: str | None = None
    train_fingerprint: str | None = None
    test_fingerprint: str | None = None
    seed: int
    num_train: Positive | None
    num_validation: Positive | None
    num_test: Positive | None
    tasks: dict[str, ItemsConfig]
    unpinned: bool = False


if TYPE_CHECKING:
    DataConfig = _DataConfig
else:
    # A setting for the data set of each task of the registry, such as `data.math_dir`.
    DataConfig = msgspec.defstruct(
        "DataConfig",
        [(f"{task}_dir", str | None, None) for task in TASKS],
        bases=(_DataConfig,),
        kw_only=True,
        namespace={"__doc__": _DataConfig.__doc__},
    )


UNUSED_BATCH_SIZE = 64
"""What `evaluation.batch_size` is with vLLM, so that no identity depends on it; the study's value."""


class EvaluationConfig(Strict, frozen=True, kw_only=True):
    """What is tested, in which languages, the limit of an answer's length, and what generates the answers.

    Engine, precision and batch size are part of the identity, because each changes some texts. A sum of the
    same numbers in another order may round to another value. Then another token may be the most likely one.
    So a machine's hardware never chooses any of them. On the same hardware and
    library versions the same batches give the same texts, as far as the kernels repeat. The number of
    processes and an interruption change no batch.

    Attributes:
        engine: a key of `orchestrator.registry.GENERATORS`.
        precision: of weights and activations during generation.
        batch_size: prompts that are computed together. It is never made smaller, so a device with too little
            memory fails with cause ``oom_gpu``. vLLM has batch-invariant kernels and forms its own batches:
            with it the setting means nothing, and is always `UNUSED_BATCH_SIZE`.
        num_processes: that share the work; None for one per visible GPU, or one on a CPU.
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
        if not is_known(GENERATORS, self.engine):
            allowed = nearest(self.engine, known(GENERATORS))
            raise ValueError(f"unknown evaluation.engine {self.engine!r}; {allowed}")
        force_setattr(self, "languages", in_study_order(self.languages, key="evaluation.languages"))
        if self.engine == "vllm":
            force_setattr(self, "batch_size", UNUSED_BATCH_SIZE)


class CellConfig(Strict, frozen=True, kw_only=True):
    """The whole config of a cell. An empty mixture is the untrained baseline.

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
        """Check what depends on the file system: the model's folder, and a file for each language.

        Raises:
            UserError: something is missing.
        """
        _check_model(self.model.path)
        if not self.data.unpinned:
            data.check_pinned(self.task.name, self.items)
        _check_items(self.task, self.items, self.languages, self.evaluation.languages)


def is_hub_id(path: str) -> bool:
    """Return whether a model's path is a hub id, ``owner/name``, and not a local path."""
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).exists()


def in_study_order(languages: tuple[str, ...], *, key: str) -> tuple[str, ...]:
    """Return languages in the study's order, so that equal sets give equal cells and digests.

    Raises:
        ValueError: a language is unknown or given twice.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise ValueError(f"unknown language {language!r} in {key}; {nearest(language, LANGUAGES)}")
        # Not dropped silently: a language that is meant to count twice would count once.
        if languages.count(language) > 1:
            raise ValueError(f"language {language!r} is twice in {key}")
    return tuple(language for language in LANGUAGES if language in languages)


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


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
    named: TaskConfig, items: ItemsConfig, training: tuple[str, ...], tested: tuple[str, ...]
) -> None:
    # A target is checked before anything runs. Tasks of the registry need not be imported for that.
    task = load_task(msgspec.structs.asdict(named)) if named.target else None
    # Generated items need no files. Data sets of releases are checked as a need, since `prefetch` may fetch
    # them.
    if items.source == "generated" or (items.source == "parallel" and items.dir is None):
        return
    task = task or load_task(msgspec.structs.asdict(named))
    if items.dir is not None:
        data.check(items, task.name, named.target)
    for folder, split, languages, key in (
        (items.dir or items.train_dir, "train", training, "languages"),
        (items.dir or items.test_dir, "test", tested, "evaluation.languages"),
    ):
        known = _languages_in(task, str(folder), split)
        for language in languages:
            if language not in known:
                raise UserError(
                    f"no {split} data of {task.name} in language {language!r}",
                    where=f"{key}={','.join(languages)}, files of {folder}",
                    allowed=f"languages there: {', '.join(known) or 'none'}",
                )


def _languages_in(task: Task, folder: str, split: str) -> tuple[str, ...]:
    path = home_expanded(folder)
    if not path.is_dir():
        raise UserError(f"data.{split}_dir={folder} is no folder")
    return tuple(task.languages_in(path, split))
