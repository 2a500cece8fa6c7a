"""Selection, rows, predictions, and an evaluation that is killed, stopped or shared."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import Gemma3Config

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.registry import load
from orchestrator.sft import runtime, stages
from orchestrator.sft.evaluate import kept_files, num_trainable, skeleton
from orchestrator.sft.generators.base import blocks
from orchestrator.sft.memory import SIZES, num_parameters
from orchestrator.sft.scoring import PREDICTIONS, Prediction, Score, read, scores_of, select, write
from orchestrator.stage import Checkpoint, Config, Context, Inputs, Row, StopSignal
from tests.sft import chain
from tests.sft.conftest import Ground

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

COMMON = {"model", "family", "num_parameters", "task", "num_languages", "languages", "seed", "pretrained"}
SCORED = {"selected_step", "eval_language", "split", "num_correct", "num_items", "num_truncated", "accuracy"}
COSTS = {
    *("train_seconds", "train_tokens", "tokens_per_second", "peak_memory_gib", "num_processes", "notes"),
}
MIXTURE = ("languages=[en,es]", "evaluation.languages=[en,es,sw]")
PAIRS = 3 * 2 + 3  # weights and languages of a cell with MIXTURE and three epochs


def scores(step: int, *num_correct: int) -> list[Score]:
    return [Score("validation", step, str(i), num, 10) for i, num in enumerate(num_correct)]


def test_the_highest_mean_over_the_languages_is_selected_and_the_earliest_wins_a_tie() -> None:
    assert select([*scores(10, 3, 4), *scores(20, 5, 5), *scores(30, 4, 4)]) == 20
    assert select([*scores(10, 3, 4), *scores(20, 5, 2), *scores(30, 7, 0)]) == 10
    assert select([*scores(30, 1, 2, 6), *scores(20, 6, 1, 2), *scores(100, 3, 3, 3)]) == 20
    assert select([*scores(10, 0), *scores(20, 0)]) == 10


@pytest.mark.parametrize(
    ("num_items", "batch_size", "expected"),
    [
        ({}, 8, []),
        ({"en": 200, "es": 200}, 64, [("en",), ("es",)]),
        ({"en": 40, "es": 40, "ja": 40, "bn": 40}, 128, [("en", "es", "ja"), ("bn",)]),
        ({"en": 64, "es": 64, "ja": 1}, 64, [("en",), ("es",), ("ja",)]),
        ({"en": 1, "es": 200, "ja": 1, "bn": 1}, 64, [("en",), ("es",), ("ja", "bn")]),
        ({"en": 20, "es": 20}, 1, [("en",), ("es",)]),
        ({"en": 2, "es": 2}, 4, [("en", "es")]),
    ],
)
def test_a_block_holds_as_many_languages_as_fit_in_a_batch(
    num_items: dict[str, int], batch_size: int, expected: list[tuple[str, ...]]
) -> None:
    assert blocks(num_items, batch_size) == expected


def prediction(language: str, *, correct: bool = False, truncated: bool = False) -> Prediction:
    return Prediction("test", None, language, "1", "Q\n", "a", "b", correct, truncated, 3)


def test_scores_are_counted_in_the_order_of_the_predictions_and_outlive_the_disk(tmp_path: Path) -> None:
    made = [prediction("sw", correct=True), prediction("en", truncated=True), prediction("sw")]
    assert scores_of(made) == [Score("test", None, "sw", 1, 2, 0), Score("test", None, "en", 0, 1, 1)]
    write(made, tmp_path)
    assert read(tmp_path) == made


def test_only_the_selected_weights_are_worth_keeping(trained: Ground) -> None:
    product = trained.inputs["train"][""]
    keep = kept_files(12)
    kept = {path for pattern in keep["best"] for path in product.glob(pattern)}
    assert {path.name for path in kept} >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert {path.parent.name for path in kept if path.suffix == ".safetensors"} == {"000012"}
    assert [path.name for pattern in keep["none"] for path in product.glob(pattern)] == ["training.json"]


def evaluate(trained: Ground, folder: Path, *overrides: str, **how: Any) -> tuple[Path, list[Row]]:
    return chain.run(stages.EVALUATE, chain.small(*MIXTURE, *overrides), folder, trained.inputs, **how)


def test_an_evaluation_tests_the_selected_epoch_and_keeps_every_prediction(
    trained: Ground, tmp_path: Path
) -> None:
    product, rows = evaluate(trained, tmp_path)
    assert [(row["split"], row["eval_language"]) for row in rows] == [
        *[("validation", language) for language in ("en", "es")],
        *[("test", language) for language in ("en", "es", "sw")],
    ]
    predictions = pq.read_table(product / PREDICTIONS).to_pylist()
    for row in rows:
        assert set(row) == COMMON | SCORED | COSTS
        assert (row["num_languages"], row["languages"], row["pretrained"]) == (2, "en,es", False)
        assert row["selected_step"] in (6, 12, 18)
        assert row["accuracy"] == row["num_correct"] / row["num_items"]
        assert row["train_tokens"] > 0 and row["num_processes"] == 1
        weights = runtime.load_weights(trained.inputs["train"][""] / "checkpoints/000006")
        assert row["num_parameters"] == weights.num_parameters()
        mine = [
            one
            for one in predictions
            if (one["split"], one["step"], one["language"])
            == (row["split"], row["selected_step"], row["eval_language"])
        ]
        assert row["num_items"] == len(mine) == 4
        assert row["num_correct"] == sum(one["correct"] for one in mine)
        assert row["num_truncated"] == sum(one["truncated"] for one in mine)
    assert len(predictions) == 3 * 2 * 4 + 3 * 4
    assert {one["step"] for one in predictions if one["split"] == "test"} == {rows[0]["selected_step"]}
    for one in predictions:
        assert one["truncated"] <= (one["num_generated_tokens"] == 8)


def test_the_untrained_baseline_is_tested_alone(gemma_ground: Ground, tmp_path: Path) -> None:
    config = chain.small("languages=[]", "model=tiny-gemma3", "task=api_calling", "device=cpu")
    inputs = {key: gemma_ground.inputs[key] for key in ("tokenizer", "base")}
    _, rows = chain.run(stages.EVALUATE, config, tmp_path, inputs)
    assert [row["split"] for row in rows] == ["test", "test"]
    assert all(row["pretrained"] and row["selected_step"] is None for row in rows)
    assert all(row["train_tokens"] is None and row["languages"] == "" for row in rows)


class Log:
    """Keeps metrics, and may ask for a stop after a step."""

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self.stop, self._stop_after = StopSignal(), stop_after

    def log(self, step: int, metrics: Any) -> None:
        assert step not in self.steps
        self.steps[step] = dict(metrics)
        if step == self._stop_after:
            self.stop.ask("preempted")

    def close(self) -> None:
        """Has nothing to flush."""


def observed(
    trained: Ground, folder: Path, log: Log, *overrides: str, resume: Checkpoint | None = None
) -> list[Row]:
    config = chain.small(*MIXTURE, *overrides)
    context = Context(
        folder,
        uses=Config(chain.cut(config, stages.EVALUATE.uses), declared="uses"),
        stop=log.stop,
        trackers=[log],
        resume=resume,
        checkpoint_interval_s=3600,
    )
    reads = Config(chain.cut(config, stages.EVALUATE.reads))
    rows: list[Row] = load(stages.EVALUATE.run or "")(reads, Inputs(trained.inputs), context)
    return rows


@pytest.mark.parametrize("stop_after", [1, 2, 5, 8])
def test_a_stopped_evaluation_goes_on_with_the_next_block(
    trained: Ground, tmp_path: Path, stop_after: int
) -> None:
    whole = Log()
    expected = observed(trained, tmp_path / "whole", whole, "evaluation.batch_size=4")
    assert list(whole.steps) == list(range(1, PAIRS + 1))  # a block each: four items fill a batch
    first, second = Log(stop_after=stop_after), Log()
    with pytest.raises(StopRequested, match="preempted"):
        observed(trained, tmp_path / "first", first, "evaluation.batch_size=4")
    checkpoint = chain.newest(tmp_path / "first")
    assert checkpoint and checkpoint.step == stop_after
    rows = observed(trained, tmp_path / "second", second, "evaluation.batch_size=4", resume=checkpoint)
    assert [*first.steps, *second.steps] == list(whole.steps)
    assert rows == expected
    files = [tmp_path / name / "output" / PREDICTIONS for name in ("whole", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_in_reduced_precision_a_resume_changes_no_text(trained: Ground, tmp_path: Path) -> None:
    how = ("evaluation.precision=bf16", "evaluation.batch_size=3", "evaluation.languages=[en]")
    expected = observed(trained, tmp_path / "whole", Log(), *how)
    first = Log(stop_after=3)  # in the middle of a language
    with pytest.raises(StopRequested):
        observed(trained, tmp_path / "first", first, *how)
    resume = chain.newest(tmp_path / "first")
    assert observed(trained, tmp_path / "second", Log(), *how, resume=resume) == expected
    assert read(tmp_path / "second/output") == read(tmp_path / "whole/output")


@pytest.mark.long
def test_an_evaluation_killed_in_the_middle_ends_with_the_same_predictions(
    trained: Ground, tmp_path: Path
) -> None:
    expected, _ = evaluate(trained, tmp_path / "whole", "evaluation.batch_size=4")
    config = chain.small(*MIXTURE, "evaluation.batch_size=4")
    child = chain.in_child(stages.EVALUATE, config, tmp_path / "killed", trained.inputs, interval_s=0.0)
    while child.is_alive() and chain.newest(tmp_path / "killed") is None:
        time.sleep(0.002)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    checkpoint = chain.newest(tmp_path / "killed")
    assert child.exitcode == -signal.SIGKILL
    assert checkpoint and checkpoint.step < PAIRS
    log = Log()
    observed(trained, tmp_path / "last", log, "evaluation.batch_size=4", resume=checkpoint)
    assert list(log.steps) == list(range(checkpoint.step + 1, PAIRS + 1))
    assert read(tmp_path / "last/output") == read(expected)


def test_metrics_say_how_fast_and_each_epochs_accuracy(trained: Ground, tmp_path: Path) -> None:
    log = Log()
    rows = observed(trained, tmp_path, log, "evaluation.batch_size=4")
    assert [step for step, metrics in log.steps.items() if "validation_accuracy" in metrics] == [2, 4, 6]
    assert all(metrics["items_per_second"] > 0 for metrics in log.steps.values())
    assert all(metrics["generated_tokens_per_second"] > 0 for metrics in log.steps.values())
    selected = [6, 12, 18].index(rows[0]["selected_step"])
    accuracies = [metrics["validation_accuracy"] for metrics in log.steps.values() if len(metrics) > 2]
    assert accuracies[selected] == max(accuracies) == (rows[0]["accuracy"] + rows[1]["accuracy"]) / 2


@pytest.mark.long
def test_two_processes_share_the_work_and_change_nothing(trained: Ground, tmp_path: Path) -> None:
    _, rows = evaluate(trained, tmp_path / "one")
    _, shared = evaluate(trained, tmp_path / "two", "evaluation.num_processes=2")
    assert shared == rows
    assert read(tmp_path / "two/output") == read(tmp_path / "one/output")


@pytest.mark.long
def test_two_processes_stop_and_one_goes_on(trained: Ground, tmp_path: Path) -> None:
    small = "evaluation.batch_size=2"  # two batches a language
    expected = observed(trained, tmp_path / "whole", Log(), small)
    first, second = Log(stop_after=4), Log()
    with pytest.raises(StopRequested, match="preempted"):
        observed(trained, tmp_path / "first", first, small, "evaluation.num_processes=2")
    checkpoint = chain.newest(tmp_path / "first")
    assert checkpoint
    done = list(first.steps)
    assert done == list(range(2, checkpoint.step + 1, 2)) and 4 <= checkpoint.step < 2 * PAIRS
    rows = observed(trained, tmp_path / "second", second, small, resume=checkpoint)
    assert list(second.steps) == list(range(checkpoint.step + 1, 2 * PAIRS + 1))
    assert rows == expected
    assert read(tmp_path / "second/output") == read(tmp_path / "whole/output")


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
    baseline = chain.small("languages=[]", f"model.path={folder}")
    _, rows = chain.run(stages.EVALUATE, baseline, tmp_path / "baseline")
    assert {row["split"] for row in rows} == {"test"} and rows[0]["pretrained"]


def test_a_model_that_cannot_be_loaded_fails_with_cause_data(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(StageFailure) as caught:
        runtime.load_base(
            chain.Inputs({}), Config({"model": {"path": str(tmp_path), "revision": None}}, declared="uses")
        )
    assert caught.value.cause == "data"
    assert str(tmp_path) in str(caught.value)


def test_only_parameters_that_text_trains_are_counted(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    Gemma3Config(
        text_config={**sizes, "vocab_size": 64, "num_key_value_heads": 1, "head_dim": 8},
        vision_config={**sizes, "image_size": 28, "patch_size": 14},
    ).save_pretrained(tmp_path)
    whole = skeleton(tmp_path)
    text = num_parameters(
        {ours: getattr(whole.config.text_config, theirs) for ours, theirs in SIZES.items()}, "gemma3"
    )
    assert num_trainable(whole) == text < whole.num_parameters()
