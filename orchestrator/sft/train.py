"""The `train` stage: fine-tunes a model on a mixture of shards; its product is every epoch's weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from orchestrator.errors import StageFailure
from orchestrator.sft import parallel, ranks, runtime
from orchestrator.sft.memory import SIZES, Load, decoder, largest_micro_batch
from orchestrator.sft.prepare import left_out
from orchestrator.sft.shards import Example, Rows, read_shard
from orchestrator.sft.trainer import Training
from orchestrator.stage import Config, Context, Inputs, Row

SUMMARY = "training.json"


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Trains here or in several processes, from the base or on from a checkpoint."""
    device = runtime.device_of(context.uses.device)
    num_processes = parallel.num_processes(context.uses.trainer.num_processes, device)
    if num_processes == 1:
        return train(config, inputs, context)
    target = f"{__name__}:{train.__name__}"
    rows: list[Row] = ranks.run(
        target, config, inputs, context, num_processes=num_processes, device=device.type
    )
    return rows


def train(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Trains in this process, or as one of a group, and writes a summary beside the weights."""
    runtime.start(context, seed=config.seed)
    device = runtime.device_of(context.uses.device)
    tokenizer = runtime.load_tokenizer(inputs, context.uses)
    pad = runtime.padding(tokenizer)
    shards = inputs.each("prepare")
    rows, validation = (
        rows_of(shards, config.languages, split, pad_token_id=pad) for split in ("train", "validation")
    )
    uses = context.uses.trainer
    placed = parallel.Placed(
        functools.partial(runtime.load_base, inputs, context.uses),
        device=device,
        sharding=uses.sharding,
        bf16=config.trainer.precision == "bf16",
        gradient_checkpointing=uses.gradient_checkpointing,
        chunk_tokens=uses.loss_chunk_tokens,
    )
    training = Training(
        placed,
        rows=rows,
        validation=validation,
        settings=config,
        context=context,
        micro_batch_size=micro_batch_size(config.trainer, uses, placed, rows),
        device=device,
    )
    training.run()
    facts = {**summary(training), "notes": left_out(shards, config.languages)}
    if parallel.rank() == 0:
        tokenizer.save_pretrained(context.output / "tokenizer")
        (context.output / SUMMARY).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return []


def micro_batch_size(settings: Config, uses: Config, placed: parallel.Placed, rows: Rows) -> int:
    """Returns rows of a micro-batch: as asked, else the largest that the plan's memory terms let fit.

    On a CPU, where memory is no matter for the models that one trains there, 8.

    Raises:
        StageFailure: not even one row fits (cause ``oom_gpu``), or nobody knows (``config``).
    """
    if uses.micro_batch_size is not None:
        return int(uses.micro_batch_size)
    if placed.device.type == "cpu":
        return 8
    text = placed.model.config.get_text_config()
    sizes = {ours: getattr(text, theirs, None) for ours, theirs in SIZES.items()}
    if unknown := [SIZES[name] for name, size in sizes.items() if size is None]:
        what = f"config.json of a {text.model_type} has no {', '.join(unknown)} to reckon memory with"
        raise StageFailure("config", f"{what}: set trainer.micro_batch_size")
    size = largest_micro_batch(
        decoder(sizes, text.model_type),
        Load(
            row_tokens=int(rows.lengths.max()),
            checkpointing=uses.gradient_checkpointing,
            value_bytes=2 if settings.precision == "bf16" else 4,
            loss_chunk_tokens=uses.loss_chunk_tokens,
        ),
        num_gpus=parallel.world_size() if placed.is_sharded else 1,
        memory_gib=torch.cuda.get_device_properties(placed.device).total_memory / 2**30,
        global_batch=settings.global_batch_size,
    )
    if size is None:
        raise StageFailure("oom_gpu", "not even a micro-batch of one row fits: more GPUs are needed")
    return size


def rows_of(shards: Mapping[str, Path], languages: Sequence[str], split: str, *, pad_token_id: int) -> Rows:
    """Join the rows of one split of all languages of the mixture, in the mixture's order.

    Raises:
        StageFailure: a language has no training row, or none has a validation row (cause ``data``).
    """
    examples: list[Example] = []
    for language in languages:
        of_language = [example for example in read_shard(shards[language]) if example.split == split]
        if split == "train" and not of_language:
            raise StageFailure(
                "data", f"no {split} row of {language} is left: trainer.max_length_tokens is too low"
            )
        examples += of_language
    if not examples:
        raise StageFailure("data", f"no {split} row is left of {', '.join(languages)}")
    return Rows(examples, pad_token_id=pad_token_id)


def summary(training: Training) -> dict[str, object]:
    """Says what was trained and how fast; the loss of every step is a product, not only a metric."""
    seconds = training.seconds
    return {
        "num_steps": training.num_steps,
        "num_epochs": len(training.progress.validation_loss),
        "train_tokens": training.num_tokens,
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(training.num_tokens / seconds, 1),
        "peak_memory_gib": round(training.peak_memory_gib(), 3),
        "num_processes": parallel.world_size(),
        "micro_batch_size": training.micro_batch_size,
        "padding_share": round(training.padding_share(), 4),
        "loss": training.progress.loss,
        "validation_loss": training.progress.validation_loss,
    }
