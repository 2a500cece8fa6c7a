"""Rows over the maximum length: counted for all to see, and no language of a mixture goes without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.errors import StageFailure
from orchestrator.sft import stages
from orchestrator.sft.shards import read_shard, rows_of, write_shard
from tests.sft import chain
from tests.sft.conftest import Ground

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share


def test_a_language_that_keeps_no_training_row_fails_with_its_numbers(ground: Ground, tmp_path: Path) -> None:
    shard = read_shard(ground.inputs["prepare"]["es"])
    limit = min(len(row.input_ids) for row in shard if row.split == "train") - 1
    config = chain.small("languages=[en,es]", f"trainer.max_length_tokens={limit}")
    with pytest.raises(
        StageFailure, match=f"all 24 training rows of es are over .*={limit}: the longest"
    ) as e:
        chain.run(stages.PREPARE, config, tmp_path, ground.inputs, language="es")
    assert e.value.cause == "data"


def test_training_refuses_a_shard_without_rows_of_a_language(ground: Ground, tmp_path: Path) -> None:
    kept = [row for row in read_shard(ground.inputs["prepare"]["es"]) if row.split == "validation"]
    write_shard(kept, tmp_path)
    shards = {**ground.inputs["prepare"], "es": tmp_path}
    with pytest.raises(StageFailure, match="no train row of es is left") as failure:
        rows_of(shards, ["en", "es"], "train", pad_token_id=0)
    assert failure.value.cause == "data"
    assert len(rows_of(shards, ["en"], "train", pad_token_id=0)) == 24


def test_what_was_left_out_is_in_the_rows_of_the_cell(ground: Ground, tmp_path: Path) -> None:
    lengths = sorted(len(row.input_ids) for row in read_shard(ground.inputs["prepare"]["es"]))
    config = chain.small(
        "languages=[en,es]", f"trainer.max_length_tokens={lengths[len(lengths) // 2]}", "trainer.num_epochs=1"
    )
    shards = {
        language: chain.run(stages.PREPARE, config, tmp_path / language, ground.inputs, language=language)[0]
        for language in ("en", "es")
    }
    counts = json.loads((shards["es"] / "counts.json").read_text())["train"]
    assert 0 < counts["num_over_long"] < 24
    inputs = {**ground.inputs, "prepare": shards}
    trained, _ = chain.run(stages.TRAIN, config, tmp_path / "train", inputs)
    _, rows = chain.run(stages.EVALUATE, config, tmp_path / "evaluate", {**inputs, "train": {"": trained}})
    (note,) = {row["notes"] for row in rows}
    assert f"es {counts['num_over_long']} of 24 train" in note
