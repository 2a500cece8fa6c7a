"""The `evaluate` stage: scores every epoch on validation items, selects one, and tests it.

The untrained baseline has no `train` input: its base is tested as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from orchestrator.registry import TASKS, lookup
from orchestrator.sft import runtime
from orchestrator.sft.generate import generate
from orchestrator.sft.items import load_items
from orchestrator.sft.train import SUMMARY
from orchestrator.sft.trainer import EPOCHS
from orchestrator.stage import Config, Context, Inputs, Row
from orchestrator.tasks.base import Item, Task

PREDICTIONS = "predictions.parquet"

SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("step", pa.int32()),
        ("language", pa.string()),
        ("item_id", pa.string()),
        ("prompt", pa.string()),
        ("generated", pa.string()),
        ("gold", pa.string()),
        ("correct", pa.bool_()),
    ]
)


class Score(NamedTuple):
    """Right answers of one split and language; `step` is None for the untrained base."""

    split: str
    step: int | None
    language: str
    num_correct: int
    num_items: int

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.num_correct / self.num_items


class Scorer:
    """Generates and scores, and keeps every prediction."""

    def __init__(
        self, task: Task, tokenizer: PreTrainedTokenizerBase, *, config: Config, context: Context
    ) -> None:
        self._task, self._tokenizer, self._config, self._context = task, tokenizer, config, context
        self._items: dict[tuple[str, str], Sequence[Item]] = {}
        self.predictions: list[tuple[object, ...]] = []

    def items(self, split: str, language: str) -> Sequence[Item]:
        """Returns the items of a split and language, made or read once."""
        if (split, language) not in self._items:
            self._items[split, language] = load_items(
                self._task, split, language, self._config["items"], self._context.uses
            )
        return self._items[split, language]

    def score(
        self, model: PreTrainedModel, split: str, languages: Sequence[str], *, step: int | None
    ) -> list[Score]:
        """Scores one model on one split, all languages in the same batches."""
        work = [(language, item) for language in languages for item in self.items(split, language)]
        texts = generate(
            model,
            self._tokenizer,
            [item.prompt for _, item in work],
            stop=self._task.stop,
            max_new_tokens=self._config.evaluation.max_new_tokens,
            batch_size=self._context.uses.evaluation.batch_size,
        )
        right = dict.fromkeys(languages, 0)
        for (language, item), text in zip(work, texts, strict=True):
            correct = bool(self._task.is_correct(text, item.gold, language))
            right[language] += correct
            self.predictions.append((split, step, language, item.id, item.prompt, text, item.gold, correct))
        return [
            Score(split, step, language, right[language], len(self.items(split, language)))
            for language in languages
        ]

    def write(self, folder: Path) -> None:
        """Writes all predictions as one Parquet file."""
        columns = [list(column) for column in zip(*self.predictions, strict=True)]
        pq.write_table(
            pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA), folder / PREDICTIONS
        )


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Returns one row a split and evaluation language."""
    runtime.start(context, seed=config.seed)
    tokenizer = runtime.load_tokenizer(inputs, context.uses)
    device = runtime.device_of(context.uses.device)
    scorer = Scorer(lookup(TASKS, config.task.name, kind="task"), tokenizer, config=config, context=context)
    scores: list[Score] = []
    selected, training = None, {}
    if "train" in inputs:
        training = json.loads((inputs["train"] / SUMMARY).read_text())
        epochs = {int(folder.name): folder for folder in sorted((inputs["train"] / EPOCHS).iterdir())}
        scores += validate(scorer, epochs, config.languages, device=device, context=context)
        selected = select(scores)
        model = runtime.load_weights(epochs[selected])
    else:
        model = runtime.load_base(inputs, context.uses)
    model = model.to(device).eval()
    scores += scorer.score(model, "test", config.evaluation.languages, step=selected)
    scorer.write(context.output)
    common = describe(config, model, selected, training)
    return [
        {
            **common,
            "eval_language": score.language,
            "split": score.split,
            "num_correct": score.num_correct,
            "num_items": score.num_items,
            "accuracy": score.accuracy,
        }
        for score in scores
        if score.step == selected
    ]


def validate(
    scorer: Scorer,
    epochs: Mapping[int, Path],
    languages: Sequence[str],
    *,
    device: torch.device,
    context: Context,
) -> list[Score]:
    """Scores the weights of every epoch on the validation items of the mixture's languages."""
    scores: list[Score] = []
    for number, (step, folder) in enumerate(epochs.items(), start=1):
        model = runtime.load_weights(folder).to(device).eval()
        scored = scorer.score(model, "validation", languages, step=step)
        accuracy = sum(score.accuracy for score in scored) / len(scored)
        context.log(number, num_steps=len(epochs) + 1, validation_accuracy=accuracy)
        context.stop_if_asked()
        scores += scored
    return scores


def select(scores: Sequence[Score]) -> int:
    """Returns the step with the highest mean accuracy over the languages; the earliest wins a tie."""
    by_step: dict[int, list[float]] = {}
    for score in scores:
        if score.step is not None:
            by_step.setdefault(score.step, []).append(score.accuracy)
    return max(sorted(by_step), key=lambda step: round(sum(by_step[step]) / len(by_step[step]), 12))


def describe(
    config: Config, model: PreTrainedModel, selected: int | None, training: Mapping[str, object]
) -> Row:
    """Returns the columns that all rows of a cell share."""
    return {
        "model": config.model.name,
        "family": config.model.family or model.config.model_type,
        "num_parameters": model.num_parameters(),
        "task": config.task.name,
        "num_languages": len(config.languages),
        "languages": ",".join(config.languages),
        "seed": config.seed,
        "pretrained": selected is None,
        "selected_step": selected,
        "train_seconds": training.get("train_seconds"),
        "train_tokens": training.get("train_tokens"),
        "tokens_per_second": training.get("tokens_per_second"),
    }
