"""The `prepare` stage: tokenise one language of a task once, for all mixtures that contain it.

Prompt and response are tokenised apart. At generation the model also gets a prompt without its answer. So a
token that spans the boundary would be one that generation never sees. Nothing is truncated: an item that is
too long is left out and counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from orchestrator.errors import StageFailure
from orchestrator.sft import runtime
from orchestrator.sft.data import load_items
from orchestrator.sft.model_folder import ModelFolder, inspect
from orchestrator.sft.needs import MAX_POSITIONS
from orchestrator.sft.shards import Example, write_shard
from orchestrator.stage import Config, Context, Inputs, Row
from orchestrator.tasks.base import Item, load_task

COUNTS = "counts.json"
SPLITS = ("train", "validation")


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Write the shard of `language`, with a count of what it contains and what was left out."""
    runtime.start(context, seed=config["items"].seed)
    tokenizer = runtime.load_tokenizer(inputs, context.uses)
    model = ModelFolder("", context_tokens=MAX_POSITIONS)
    if "tokenizer" not in inputs:
        folder = runtime.base_folder(inputs, context.uses)
        model = inspect(folder)
        if model.problem:
            raise StageFailure("data", f"{folder}: {model.problem}")
        # Weights that do not fit fail here, on a CPU, and not later when a GPU waits.
        runtime.check_weights(folder)
    task = load_task(config.task)
    kept, counts = [], {}
    for split in SPLITS:
        with context.phase("data"):
            items = load_items(task, split, config.language, config["items"], context.uses)
        examples = [encode(tokenizer, item, split) for item in items]
        fitting = [row for row in examples if len(row.input_ids) <= config.trainer.max_length_tokens]
        kept += fitting
        counts[split] = count(examples, fitting)
    if not any(row.split == SPLITS[0] for row in kept):
        raise StageFailure(
            "data", none_kept(config.language, counts[SPLITS[0]], config.trainer.max_length_tokens)
        )
    check_rows(kept, model, pad_token_id=runtime.padding(tokenizer))
    write_shard(kept, context.output)
    report = {"language": config.language, "max_length_tokens": config.trainer.max_length_tokens, **counts}
    (context.output / COUNTS).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return []


def check_rows(rows: Sequence[Example], model: ModelFolder, *, pad_token_id: int) -> None:
    """Check that a model has a position and an embedding for each token of its rows, padding included.

    Raises:
        StageFailure: it does not (cause ``data``).
    """
    longest = max(len(row.input_ids) for row in rows)
    if model.context_tokens is not None and longest > model.context_tokens:
        raise StageFailure(
            "data",
            f"rows of up to {longest} tokens, but config.json has {model.context_tokens} positions:"
            f" trainer.max_length_tokens={model.context_tokens}",
        )
    largest = max(pad_token_id, *(max(row.input_ids) for row in rows))
    if model.num_embeddings is not None and largest >= model.num_embeddings:
        what = "the padding token" if largest == pad_token_id else "a token of the rows"
        raise StageFailure(
            "data", f"{what} is id {largest}, but the embedding has {model.num_embeddings} rows"
        )


def none_kept(language: str, count: Mapping[str, int], limit: int) -> str:
    """Return the message for a language without a training row, which would be in a mixture by name only."""
    return (
        f"all {count['num_items']} training rows of {language} are over trainer.max_length_tokens={limit}:"
        f" the longest has {count['longest_tokens']} tokens"
    )


def left_out(shards: Mapping[str, Path], languages: Sequence[str]) -> str:
    """Return a text on how many rows of each language were too long, "" if none was.

    Args:
        shards: products of this stage by language.
        languages: of the mixture.
    """
    parts, limit = [], 0
    for language in languages:
        report = json.loads((shards[language] / COUNTS).read_text())
        limit = report["max_length_tokens"]
        over = {split: report[split] for split in SPLITS if report[split]["num_over_long"]}
        parts += [f"{language} {n['num_over_long']} of {n['num_items']} {split}" for split, n in over.items()]
    return f"rows over trainer.max_length_tokens={limit} left out: {', '.join(parts)}" if parts else ""


def encode(tokenizer: PreTrainedTokenizerBase, item: Item, split: str) -> Example:
    """Return an item as tokens: prompt, response, end token."""
    prompt = encode_prompt(tokenizer, item.prompt)
    response = tokenizer(item.response, add_special_tokens=False).input_ids
    return Example(split, item.id, len(prompt), [*prompt, *response, tokenizer.eos_token_id])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return a prompt as tokens: with a BOS token if the tokenizer adds one, and without an end token."""
    ids: list[int] = tokenizer(prompt).input_ids
    # Some tokenizers also add an end token, after which a model would not answer.
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def count(examples: Sequence[Example], fitting: Sequence[Example]) -> dict[str, int]:
    """Return the counts of items and tokens of a split, kept and left out."""
    lengths = [len(row.input_ids) for row in examples]
    return {
        "num_items": len(examples),
        "num_over_long": len(examples) - len(fitting),
        "num_kept": len(fitting),
        "num_tokens": sum(len(row.input_ids) for row in fitting),
        "num_loss_tokens": sum(len(row.input_ids) - row.num_prompt_tokens for row in fitting),
        "longest_tokens": max(lengths, default=0),
    }
