"""The rehearsal of the fine-tuning stages: what fails in them fails in it, within a minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.sft import base, rehearse, stages
from orchestrator.sft.rehearse import check_references
from orchestrator.sft.shards import read_shard
from orchestrator.stage import Config, StopSignal
from orchestrator.tasks.math import MATH
from tests.sft import chain
from tests.sft.conftest import Ground

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share


def run(ground: Ground, folder: Path, *overrides: str, **how: Any) -> tuple[Path, list[dict[str, Any]]]:
    config = chain.small("languages=[en,es]", "trainer.micro_batch_size=2", *overrides)
    inputs = {name: ground.inputs[name] for name in ("tokenizer", "base", "prepare")}
    return chain.run(stages.REHEARSE, config, folder, inputs, **how)


def test_a_rehearsal_trains_saves_goes_on_in_a_new_process_and_scores(ground, tmp_path, capfd) -> None:
    product, rows = run(ground, tmp_path)
    (row,) = rows
    assert (row["model"], row["task"], row["num_languages"]) == ("tiny-qwen3", "math", 2)
    assert row["tokens_per_second"] > 0 and row["peak_memory_gib"] > 0 and row["save_seconds"] > 0
    assert row["num_scored"] == 2
    assert row["num_references"] == 2 * 4 + 2 * 4
    assert row["train_tokens"] == rehearse.NUM_STEPS * 8 * row["longest_tokens"] or row["train_tokens"] > 0
    assert list(product.iterdir()) == [], "weights of a rehearsal are not worth keeping"


def test_a_rehearsal_takes_the_longest_rows_of_all_languages_of_its_class(ground, tmp_path) -> None:
    config = chain.small("languages=[en,es]")
    context = chain.Context(tmp_path, uses=Config(chain.cut(config, stages.REHEARSE.uses)))
    inputs = chain.Inputs({name: ground.inputs[name] for name in ("tokenizer", "base", "prepare")})
    reads = Config(chain.cut(config, stages.REHEARSE.reads))
    rows = rehearse.longest_rows(reads, inputs, context, ["en", "es"])
    lengths = [len(row.input_ids) for row in rows if row.split == "train"]
    everything = [
        len(row.input_ids)
        for folder in ground.inputs["prepare"].values()
        for row in read_shard(folder)
        if row.split == "train"
    ]
    assert lengths == sorted(everything, reverse=True)[:8]


class Swapped:
    """The math task over a data set whose gold answers lie in another row's column."""

    def __getattr__(self, name: str) -> Any:
        return getattr(MATH, name)

    def generate(self, *args: Any, **how: Any) -> Any:
        items = list(MATH.generate(*args, **how))
        golds = [item.gold for item in items]
        return [
            chain.msgspec.structs.replace(item, gold=gold)
            for item, gold in zip(items, [*golds[1:], golds[0]], strict=True)
        ]


class Hanging:
    """The math task with a scorer that never returns for what a model wrote."""

    def __getattr__(self, name: str) -> Any:
        return getattr(MATH, name)

    def is_correct(self, text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
        while not MATH.is_correct(text, gold, language):
            time.sleep(0.01)
        return True


SWAPPED, HANGING = Swapped(), Hanging()


def untrained(ground: Ground, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    config = chain.small("languages=[]", *overrides)
    inputs = {name: ground.inputs[name] for name in ("tokenizer", "base")}
    return chain.run(stages.REHEARSE, config, folder, inputs)[1]


def test_a_class_of_models_that_are_not_trained_rehearses_its_evaluation_alone(ground, tmp_path) -> None:
    (row,) = untrained(ground, tmp_path)
    assert (row["num_languages"], row["num_scored"], row["num_references"]) == (0, 1, 2 * 4)
    assert "save_seconds" not in row and not (tmp_path / "scratch/first").exists()
    assert stages.EVALUATE.gated_by == ("rehearse",)


def test_a_scorer_that_hangs_fails_a_rehearsal_long_before_its_limit(ground, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rehearse, "LEAST_SCORING_S", 0.5)
    with pytest.raises(StageFailure, match="two answers were not generated and scored in") as failed:
        untrained(ground, tmp_path, f"+task.target={__name__}:HANGING")
    assert failed.value.cause == "code"


def test_references_that_are_scored_as_wrong_fail_a_class_as_data(ground, tmp_path) -> None:
    with pytest.raises(
        StageFailure, match=r"reference answers of .* are scored as wrong: validation en"
    ) as failed:
        run(ground, tmp_path, f"+task.target={__name__}:SWAPPED")
    assert failed.value.cause == "data"
    assert not (tmp_path / "scratch/first").exists(), "no step was trained"


@pytest.mark.long
def test_a_loss_that_is_not_finite_fails_a_rehearsal_at_its_first_step(ground, tmp_path) -> None:
    with pytest.raises(StageFailure) as failed:
        run(ground, tmp_path / "attempt", "trainer.learning_rate=1e30", "trainer.max_grad_norm=1e30")
    assert failed.value.cause == "nan"


def test_a_stop_ends_a_rehearsal_between_two_phases(ground, tmp_path) -> None:
    stop = StopSignal()
    stop.ask("stopped")
    with pytest.raises(StopRequested, match="stopped"):
        run(ground, tmp_path, stop=stop)


def test_a_rehearsal_that_is_nearly_over_goes_on_when_it_is_stopped(ground, tmp_path, monkeypatch) -> None:
    config, inputs = chain.small("languages=[]"), {n: ground.inputs[n] for n in ("tokenizer", "base")}
    stop = StopSignal()

    def stopped_meanwhile(*args: Any) -> int:
        stop.ask("preempted")
        return check_references(*args)

    monkeypatch.setattr(rehearse, "check_references", stopped_meanwhile)
    (row,) = chain.run(stages.REHEARSE, config, tmp_path / "short", inputs, stop=stop)[1]
    assert row["num_scored"] == 1
    monkeypatch.setattr(rehearse, "SHORT_S", 0.0)
    stop = StopSignal()
    with pytest.raises(StopRequested, match="preempted"):
        chain.run(stages.REHEARSE, config, tmp_path / "long", inputs, stop=stop)


def test_a_pretraining_that_is_nearly_over_goes_on_when_it_is_stopped(ground, tmp_path, monkeypatch) -> None:
    stop, inputs = StopSignal(), {"tokenizer": ground.inputs["tokenizer"]}
    stop.ask("preempted")
    product, _ = chain.run(stages.BASE, chain.small(), tmp_path / "short", inputs, stop=stop)
    assert (product / "model.safetensors").is_file()
    monkeypatch.setattr(base, "SHORT_S", 0.0)
    with pytest.raises(StopRequested, match="preempted"):
        chain.run(stages.BASE, chain.small(), tmp_path / "long", inputs, stop=stop)


def test_the_shipped_tasks_score_their_own_references_as_right(ground) -> None:
    for name in ("math", "api_calling"):
        config = chain.small("languages=[en,es]", f"task={name}")
        reads = Config(chain.cut(config, stages.REHEARSE.reads))
        uses = Config(chain.cut(config, stages.REHEARSE.uses))
        assert check_references(reads, uses, ["en", "sw", "th"]) == 3 * 4 + 2 * 4
