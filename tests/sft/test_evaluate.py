"""Selection, scoring, rows and predictions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.errors import StageFailure
from orchestrator.sft import runtime, stages
from orchestrator.sft.evaluate import Score, select
from orchestrator.sft.generate import generate
from orchestrator.stage import Config
from tests.sft import chain
from tests.sft.conftest import Ground

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

COMMON = {"model", "family", "num_parameters", "task", "num_languages", "languages", "seed", "pretrained"}
MEASURED = {"selected_step", "eval_language", "split", "num_correct", "num_items", "accuracy"}
COSTS = {"train_seconds", "train_tokens", "tokens_per_second"}


def scores(step: int, *num_correct: int) -> list[Score]:
    return [Score("validation", step, str(i), num, 10) for i, num in enumerate(num_correct)]


def test_the_highest_mean_over_the_languages_is_selected_and_the_earliest_wins_a_tie() -> None:
    assert select([*scores(10, 3, 4), *scores(20, 5, 5), *scores(30, 4, 4)]) == 20
    assert select([*scores(10, 3, 4), *scores(20, 5, 2), *scores(30, 7, 0)]) == 10
    assert select([*scores(30, 1, 2, 6), *scores(20, 6, 1, 2), *scores(100, 3, 3, 3)]) == 20
    assert select([*scores(10, 0), *scores(20, 0)]) == 10


def test_an_evaluation_tests_the_selected_epoch_and_keeps_every_prediction(
    ground: Ground, tmp_path: Path
) -> None:
    config = chain.small("languages=[en,es]", "evaluation.languages=[en,es,sw]")
    trained, _ = chain.run(stages.TRAIN, config, tmp_path / "train", ground.inputs)
    inputs = {**ground.inputs, "train": {"": trained}}
    product, rows = chain.run(stages.EVALUATE, config, tmp_path / "evaluate", inputs)
    assert [(row["split"], row["eval_language"]) for row in rows] == [
        *[("validation", language) for language in ("en", "es")],
        *[("test", language) for language in ("en", "es", "sw")],
    ]
    for row in rows:
        assert set(row) == COMMON | MEASURED | COSTS
        assert (row["num_languages"], row["languages"], row["pretrained"]) == (2, "en,es", False)
        assert row["selected_step"] in (6, 12, 18)
        assert row["accuracy"] == row["num_correct"] / row["num_items"]
        assert row["train_tokens"] > 0 and row["num_parameters"] > 10_000
    predictions = pq.read_table(product / "predictions.parquet").to_pylist()
    assert len(predictions) == 3 * 2 * 4 + 3 * 4
    tested = [row for row in predictions if row["split"] == "test"]
    assert {row["step"] for row in tested} == {rows[0]["selected_step"]}
    for language in ("en", "es", "sw"):
        correct = sum(row["correct"] for row in tested if row["language"] == language)
        assert correct == next(
            row["num_correct"] for row in rows if (row["split"], row["eval_language"]) == ("test", language)
        )


def test_the_untrained_baseline_is_tested_alone(gemma_ground: Ground, tmp_path: Path) -> None:
    config = chain.small("languages=[]", "model=tiny-gemma3", "task=api_calling", "device=cpu")
    inputs = {key: gemma_ground.inputs[key] for key in ("tokenizer", "base")}
    _, rows = chain.run(stages.EVALUATE, config, tmp_path, inputs)
    assert [row["split"] for row in rows] == ["test", "test"]
    assert all(row["pretrained"] and row["selected_step"] is None for row in rows)
    assert all(row["train_tokens"] is None and row["languages"] == "" for row in rows)


def test_batches_and_padding_change_no_text(ground: Ground) -> None:
    model = AutoModelForCausalLM.from_pretrained(ground.inputs["base"][""]).eval()
    tokenizer = AutoTokenizer.from_pretrained(ground.inputs["tokenizer"][""])
    prompts = [
        "Question:\n1\n",
        "A",
        "Question:\nHow many hours are 3 hours and 4 hours?\nAnswer:\n",
        "Bb\n" * 9,
    ]
    texts = [
        generate(model, tokenizer, prompts, stop=str, max_new_tokens=6, batch_size=size) for size in (1, 3, 4)
    ]
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) > 1


def test_a_local_path_takes_the_place_of_the_tiny_model(ground: Ground, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ground.inputs["base"][""], folder)
    shutil.copytree(ground.inputs["tokenizer"][""], folder, dirs_exist_ok=True)
    config = chain.small("languages=[en]", f"model.path={folder}", "trainer.num_epochs=1")
    shard, _ = chain.run(stages.PREPARE, config, tmp_path / "prepare", language="en")
    assert (shard / "shard.arrow").read_bytes() == (
        ground.inputs["prepare"]["en"] / "shard.arrow"
    ).read_bytes()
    trained, _ = chain.run(stages.TRAIN, config, tmp_path / "train", {"prepare": {"en": shard}})
    _, rows = chain.run(stages.EVALUATE, config, tmp_path / "evaluate", {"train": {"": trained}})
    assert {row["eval_language"] for row in rows if row["split"] == "test"} == {"en", "es"}


def test_a_model_that_cannot_be_loaded_fails_with_cause_data(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(StageFailure) as caught:
        runtime.load_base(
            chain.Inputs({}), Config({"model": {"path": str(tmp_path), "revision": None}}, declared="uses")
        )
    assert caught.value.cause == "data"
    assert str(tmp_path) in str(caught.value)
