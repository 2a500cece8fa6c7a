"""The `evaluate` stage: scores every epoch on validation items, selects one, and tests it.

The untrained baseline has no `train` input: its base is tested as it is. How answers are generated is
`generate` and `engines`, what is kept of them `predictions`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from orchestrator.registry import ENGINES, TASKS, lookup
from orchestrator.sft import parallel, ranks, runtime
from orchestrator.sft.checkpoints import EPOCHS, epoch_name
from orchestrator.sft.engines.base import Engine, EngineSettings
from orchestrator.sft.generate import Answer, Share, generate
from orchestrator.sft.items import load_items
from orchestrator.sft.predictions import Prediction, Score, blocks, read, scores_of, select, write
from orchestrator.sft.train import SUMMARY
from orchestrator.stage import Config, Context, Inputs, Row
from orchestrator.tasks.base import Item, Task

_MEASURED = (
    *("train_seconds", "train_tokens", "tokens_per_second"),
    *("peak_memory_gib", "num_processes"),
)
"""What rows repeat of the summary that training left."""


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Returns one row a split and evaluation language; several GPUs share the work."""
    device = runtime.device_of(context.uses.device)
    num_processes = parallel.num_processes(context.uses.evaluation.num_processes, device)
    if num_processes == 1:
        rows = evaluate(config, inputs, context)
    else:
        target = f"{__name__}:{evaluate.__name__}"
        rows = ranks.run(target, config, inputs, context, num_processes=num_processes, device=device.type)
    if "train" in inputs:
        context.retire("train", **kept_files(rows[0]["selected_step"]))
    return rows


def evaluate(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Does the work of `main` in this process, alone or as one of several."""
    runtime.start(context, seed=config.seed)
    epochs: dict[int, Path] = {}
    training: Mapping[str, object] = {}
    if "train" in inputs:
        epochs = {int(folder.name): folder for folder in sorted((inputs["train"] / EPOCHS).iterdir())}
        training = json.loads((inputs["train"] / SUMMARY).read_text(encoding="utf-8"))
    num_pairs = len(epochs) * len(config.languages) + len(config.evaluation.languages)
    scorer = Scorer(config, inputs, context, num_pairs=num_pairs)
    for step, folder in epochs.items():
        scorer.score("validation", step, folder, config.languages)
    selected = select([score for score in scorer.scores() if score.split == "validation"]) if epochs else None
    tested = runtime.base_folder(inputs, context.uses) if selected is None else epochs[selected]
    scorer.score("test", selected, tested, config.evaluation.languages)
    scorer.write(context.output)
    common = describe(config, skeleton(tested), selected, training)
    return [
        {
            **common,
            "eval_language": score.language,
            "split": score.split,
            "num_correct": score.num_correct,
            "num_items": score.num_items,
            "num_truncated": score.num_truncated,
            "accuracy": score.accuracy,
        }
        for score in scorer.scores()
        if score.step == selected
    ]


class Scorer:
    """Generates and scores block by block; what a checkpoint holds is not generated again.

    Args:
        config, inputs, context: of the stage.
        num_pairs: of weights and language, all that will be scored: what progress is measured in.
    """

    def __init__(self, config: Config, inputs: Inputs, context: Context, *, num_pairs: int) -> None:
        self._config, self._context, self._num_pairs = config, context, num_pairs
        self._task: Task = lookup(TASKS, config.task.name, kind="task")
        self._tokenizer = runtime.load_tokenizer(inputs, context.uses)
        self._share = Share(parallel.rank(), parallel.world_size())
        self._engine = self._open_engine()
        self._loaded: Path | None = None
        self._items: dict[tuple[str, str], Sequence[Item]] = {}
        self._predictions = read(context.resume.folder) if context.resume else []

    def scores(self) -> list[Score]:
        """Returns the scores so far."""
        return scores_of(self._predictions)

    def score(self, split: str, step: int | None, folder: Path, languages: Sequence[str]) -> None:
        """Scores the weights of a folder on the languages of a split that are not done yet."""
        done = {score.language for score in self.scores() if (score.split, score.step) == (split, step)}
        left = {language: len(self.items(split, language)) for language in languages if language not in done}
        for block in blocks(left, self._context.uses.evaluation.batch_size * self._share.size):
            if self._loaded != folder:
                self._engine.load(folder)
                self._loaded = folder
            metrics = self._score_block(split, step, block)
            scores = [score for score in self.scores() if (score.split, score.step) == (split, step)]
            if split == "validation" and len(scores) == len(languages):
                metrics["validation_accuracy"] = sum(score.accuracy for score in scores) / len(scores)
            self._report(metrics)

    def items(self, split: str, language: str) -> Sequence[Item]:
        """Returns the items of a split and language, made or read once."""
        if (split, language) not in self._items:
            self._items[split, language] = load_items(
                self._task, split, language, self._config["items"], self._context.uses
            )
        return self._items[split, language]

    def write(self, folder: Path) -> None:
        """Writes all predictions so far; of several processes one does."""
        if self._share.rank == 0:
            write(self._predictions, folder)

    def _open_engine(self) -> Engine:
        tokenizer, evaluation = self._tokenizer, self._config.evaluation
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        settings = EngineSettings(
            device=runtime.device_of(self._context.uses.device),
            precision=evaluation.precision,
            batch_size=self._context.uses.evaluation.batch_size,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
        )
        engine: Engine = lookup(ENGINES, evaluation.engine, kind="engine")(settings)
        return engine

    def _score_block(self, split: str, step: int | None, languages: Sequence[str]) -> dict[str, float]:
        start_s = time.monotonic()
        work = [item for language in languages for item in self.items(split, language)]
        answers = generate(
            self._engine,
            self._tokenizer,
            [item.prompt for item in work],
            stop=self._task.stop,
            max_new_tokens=self._config.evaluation.max_new_tokens,
            share=self._share,
        )
        self._predictions += [
            self._prediction(split, step, item, answer) for item, answer in zip(work, answers, strict=True)
        ]
        seconds = time.monotonic() - start_s
        return {
            "items_per_second": len(work) / seconds,
            "generated_tokens_per_second": sum(answer.num_tokens for answer in answers) / seconds,
            "batch_size": self._engine.batch_size,
        }

    def _prediction(self, split: str, step: int | None, item: Item, answer: Answer) -> Prediction:
        return Prediction(
            split=split,
            step=step,
            language=item.language,
            item_id=item.id,
            prompt=item.prompt,
            generated=answer.text,
            gold=item.gold,
            correct=bool(self._task.is_correct(answer.text, item.gold, item.language)),
            truncated=answer.truncated,
            num_generated_tokens=answer.num_tokens,
        )

    def _report(self, metrics: Mapping[str, float]) -> None:
        num_done = len(self.scores())
        self._context.log(num_done, num_steps=self._num_pairs, **metrics)
        if self._context.checkpoint_due(num_done):
            with self._context.checkpoint(num_done) as folder:
                self.write(folder)
            self._context.stop_if_asked()


def kept_files(selected: int) -> dict[str, list[str]]:
    """Returns, by retention policy, patterns of the files of `train` that are still worth keeping.

    Args:
        selected: the step whose weights were selected.
    """
    return {"best": [f"{EPOCHS}/{epoch_name(selected)}/*", "tokenizer/*", SUMMARY], "none": [SUMMARY]}


def skeleton(folder: Path) -> PreTrainedModel:
    """Returns a model without its weights: what a row says of it is the same for every engine."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))


def num_trainable(model: PreTrainedModel) -> int:
    """Counts the parameters that text trains, not those of a multimodal model's frozen parts."""
    named = model.named_parameters()
    return sum(weight.numel() for name, weight in named if not any(part in name for part in parallel.FROZEN))


def describe(
    config: Config, model: PreTrainedModel, selected: int | None, training: Mapping[str, object]
) -> Row:
    """Returns the columns that all rows of a cell share."""
    return {
        "model": config.model.name,
        "family": config.model.family or model.config.model_type,
        "num_parameters": num_trainable(model),
        "task": config.task.name,
        "num_languages": len(config.languages),
        "languages": ",".join(config.languages),
        "seed": config.seed,
        "pretrained": selected is None,
        "selected_step": selected,
        **{name: training.get(name) for name in _MEASURED},
        "notes": training.get("notes") or None,
    }
