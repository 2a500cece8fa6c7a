"""Shards: masking, counting, and nothing cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from orchestrator.sft import stages
from orchestrator.sft.prepare import encode, encode_prompt
from orchestrator.sft.shards import Rows, read_shard
from orchestrator.tasks.base import Item
from tests.sft import chain
from tests.sft.conftest import Ground

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share


def shard(ground: Ground, folder: Path, *overrides: str) -> Path:
    config = chain.small(*overrides)
    product, _ = chain.run(stages.PREPARE, config, folder, ground.inputs, language="es")
    return product


def test_the_loss_is_on_the_response_and_its_end_alone(ground: Ground) -> None:
    examples = read_shard(ground.inputs["prepare"]["es"])
    tokenizer = AutoTokenizer.from_pretrained(ground.inputs["tokenizer"][""])
    rows = Rows(examples, pad_token_id=0)
    for number, example in enumerate(examples):
        batch = rows.batch([number])
        predicted = list(range(example.num_prompt_tokens - 1, len(example.input_ids) - 1))
        assert batch.positions.tolist() == predicted
        assert rows.num_targets[number] == len(predicted)
        response = tokenizer.decode(batch.targets)
        assert "La respuesta es" in response and response.endswith(tokenizer.eos_token)
        assert "Question" not in response


def test_prompt_and_response_are_tokenised_apart(ground: Ground) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ground.inputs["tokenizer"][""])
    item = Item(id="1", language="en", prompt="What is the answer", response="er", gold="1")
    example = encode(tokenizer, item, "train")
    assert list(example.input_ids[: example.num_prompt_tokens]) == tokenizer(item.prompt).input_ids
    assert tokenizer.decode(example.input_ids[example.num_prompt_tokens : -1]) == "er"


@pytest.mark.parametrize("adds", [[], ["bos"], ["eos"], ["bos", "eos"]], ids="+".join)
def test_a_row_has_one_end_token_whatever_special_tokens_a_tokenizer_adds(
    tokenizer: PreTrainedTokenizerBase, adds: list[str]
) -> None:
    plain, end = tokenizer("What is the answer").input_ids, tokenizer.eos_token_id
    start = [tokenizer.pad_token_id] if "bos" in adds else []
    names = {"bos": tokenizer.pad_token, "eos": tokenizer.eos_token}
    template = " ".join(
        [*(names["bos"] for _ in start), "$A", *(names["eos"] for name in adds if name == "eos")]
    )
    special = [(tokenizer.pad_token, tokenizer.pad_token_id), (tokenizer.eos_token, end)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    assert tokenizer("What is the answer").input_ids == [*start, *plain, *([end] if "eos" in adds else [])]
    assert encode_prompt(tokenizer, "What is the answer") == [*start, *plain]
    item = Item(id="1", language="en", prompt="What is the answer", response="er", gold="1")
    example = encode(tokenizer, item, "train")
    response = tokenizer("er", add_special_tokens=False).input_ids
    assert list(example.input_ids) == [*start, *plain, *response, end]
    assert example.num_prompt_tokens == len(start) + len(plain)


def test_a_prompt_of_nothing_is_no_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert encode_prompt(tokenizer, "") == []


def test_a_family_with_a_bos_token_begins_every_row_with_it(gemma_ground: Ground) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gemma_ground.inputs["tokenizer"][""])
    for example in read_shard(gemma_ground.inputs["prepare"]["en"]):
        ids = list(example.input_ids)
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        assert ids[-1] == tokenizer.eos_token_id


def test_items_that_are_too_long_are_counted_not_cut(ground: Ground, tmp_path: Path) -> None:
    whole = read_shard(ground.inputs["prepare"]["es"])
    lengths = sorted(len(example.input_ids) for example in whole if example.split == "train")
    limit = lengths[len(lengths) // 2]
    product = shard(ground, tmp_path, f"trainer.max_length_tokens={limit}")
    counts = json.loads((product / "counts.json").read_text())
    kept = [example for example in read_shard(product) if example.split == "train"]
    assert counts["train"]["num_items"] == 24
    assert counts["train"]["num_over_long"] == sum(length > limit for length in lengths)
    assert counts["train"]["num_kept"] == len(kept) == 24 - counts["train"]["num_over_long"]
    assert counts["train"]["num_tokens"] == sum(len(example.input_ids) for example in kept)
    assert counts["train"]["longest_tokens"] == lengths[-1]
    originals = {example.item_id: list(example.input_ids) for example in whole}
    assert all(list(example.input_ids) == originals[example.item_id] for example in kept)


def test_a_shard_is_the_same_bytes_each_time(ground: Ground, tmp_path: Path) -> None:
    first, second = (shard(ground, tmp_path / name) / "shard.arrow" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_all_languages_hold_the_same_items_and_validation_is_apart(ground: Ground) -> None:
    english, spanish = (read_shard(ground.inputs["prepare"][language]) for language in ("en", "es"))
    assert [row.item_id for row in english] == [row.item_id for row in spanish]
    ids = {split: {row.item_id for row in english if row.split == split} for split in ("train", "validation")}
    assert ids["train"] and ids["validation"] and not ids["train"] & ids["validation"]


@pytest.mark.parametrize("language", ["en", "th"])
def test_a_tiny_tokenizer_gives_back_every_text(ground: Ground, language: str) -> None:
    from orchestrator.tasks.math import MATH

    tokenizer = AutoTokenizer.from_pretrained(ground.inputs["tokenizer"][""])
    for item in MATH.generate("test", language, 3):
        assert tokenizer.decode(tokenizer(item.prompt).input_ids) == item.prompt
    assert len(set(tokenizer("42").input_ids)) == 2
