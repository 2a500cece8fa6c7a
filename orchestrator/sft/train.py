"""The `train` stage: fine-tunes a model on a mixture of shards; its product is every epoch's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import StageFailure
from orchestrator.sft import runtime
from orchestrator.sft.shards import Example, Rows, read_shard
from orchestrator.sft.trainer import StageTrainer
from orchestrator.stage import Config, Context, Inputs, Row

SUMMARY = "training.json"
FROZEN = ("vision_tower", "multi_modal_projector")
"""Parts of a multimodal model that text alone does not train."""


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Trains from the base, or on from a checkpoint, and writes a summary beside the weights."""
    runtime.start(context, seed=config.seed)
    tokenizer = runtime.load_tokenizer(inputs, context.uses)
    model = runtime.load_base(inputs, context.uses)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in FROZEN))
    shards = inputs.each("prepare")
    trainer = StageTrainer(
        model,
        rows=rows_of(shards, config.languages, "train"),
        validation=rows_of(shards, config.languages, "validation"),
        settings=config,
        context=context,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        device=runtime.device_of(context.uses.device),
    )
    trainer.resume()
    tokenizer.save_pretrained(context.output / "tokenizer")
    (context.output / SUMMARY).write_text(json.dumps(summary(trainer), indent=1))
    return []


def rows_of(shards: Mapping[str, Path], languages: Sequence[str], split: str) -> Rows:
    """Joins the rows of one split of all languages of the mixture, in the mixture's order."""
    examples: list[Example] = [
        example
        for language in languages
        for example in read_shard(shards[language])
        if example.split == split
    ]
    if not examples:
        raise StageFailure("data", f"no {split} row is left of {', '.join(languages)}")
    return Rows(examples)


def summary(trainer: StageTrainer) -> dict[str, object]:
    """Says what was trained and how fast; the loss of every step is a product, not only a metric."""
    num_tokens = sum(trainer.step_tokens)
    history = trainer.state.log_history
    return {
        "num_steps": trainer.num_steps,
        "num_epochs": trainer.num_epochs,
        "train_tokens": num_tokens,
        "train_seconds": round(trainer.seconds, 3),
        "tokens_per_second": round(num_tokens / trainer.seconds, 1),
        "loss": [entry["loss"] for entry in history if "loss" in entry],
        "validation_loss": [entry["validation_loss"] for entry in history if "validation_loss" in entry],
    }
