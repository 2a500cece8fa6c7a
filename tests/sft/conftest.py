"""Products of the stages that come before training, made once for all tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3Config, PreTrainedTokenizerBase

from orchestrator.sft import stages
from orchestrator.sft.generators.base import Engine, GeneratedText, generate
from orchestrator.sft.prepare import encode_prompt
from orchestrator.stage import Checkpoint
from tests.sft import chain
from tests.sft.chain import Log

STEPS = ("trainer.learning_rate=1e-3", "trainer.global_batch_size=14", "trainer.micro_batch_size=2")
"""48 rows: steps of 14, 14, 14 and 6; of 7 and of 3 micro-batches, which two processes cannot halve."""


class Ground(NamedTuple):
    """Inputs of `train` for a small cell."""

    root: Path
    inputs: dict[str, dict[str, Path]]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _ground(root: Path, *overrides: str) -> Ground:
    config = chain.small("languages=[en,es]", *overrides)
    tokenizer, _ = chain.run(stages.TOKENIZER, config, root / "tokenizer")
    inputs = {"tokenizer": {"": tokenizer}}
    base, _ = chain.run(stages.BASE, config, root / "base", inputs)
    shards = {
        language: chain.run(stages.PREPARE, config, root / language, inputs, language=language)[0]
        for language in config["languages"]
    }
    return Ground(root, {**inputs, "base": {"": base}, "prepare": shards})


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A tiny Qwen3 on math."""
    return _ground(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def gemma_ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A tiny Gemma3 on api_calling."""
    return _ground(tmp_path_factory.mktemp("gemma3"), "model=tiny-gemma3", "task=api_calling")


@pytest.fixture(scope="session")
def trained(ground: Ground) -> Ground:
    """The tiny Qwen3 after three epochs on a mixture of two languages."""
    product, _ = chain.run(
        stages.TRAIN, chain.small("languages=[en,es]"), ground.root / "train", ground.inputs
    )
    return Ground(ground.root, {**ground.inputs, "train": {"": product}})


class Trained(NamedTuple):
    """A training in two processes: its product, what it logged, and its last checkpoint."""

    product: Path
    log: Log
    checkpoint: Checkpoint


ByTwo = Callable[[str], Trained]


@pytest.fixture(scope="session")
def by_two(ground: Ground) -> ByTwo:
    """The tiny Qwen3 after a training in two processes, with the given sharding."""

    @cache
    def trained(sharding: str) -> Trained:
        how = (*STEPS, "trainer.num_processes=2", f"trainer.sharding={sharding}")
        log, folder = Log(), ground.root / f"two-{sharding}"
        config = chain.small("languages=[en,es]", *how)
        product, _ = chain.run(stages.TRAIN, config, folder, ground.inputs, trackers=[log], interval_s=0.0)
        checkpoint = chain.newest(folder)
        assert checkpoint
        return Trained(product, log, checkpoint)

    return trained


@pytest.fixture(scope="session")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma3 with a vision tower, as gemma-3-4b-pt is one, saved with random weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 300, "num_key_value_heads": 1, "head_dim": 16}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=299
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("multimodal")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(ground: Ground) -> PreTrainedTokenizerBase:
    """The tokenizer of the tiny Qwen3."""
    return AutoTokenizer.from_pretrained(ground.inputs["tokenizer"][""])


def answers(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, size: int = 4, **how: Any
) -> list[GeneratedText]:
    """Generate in batches of some size, in the order given."""
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [answer for batch in generate(engine, tokenizer, groups, **how) for answer in batch]
