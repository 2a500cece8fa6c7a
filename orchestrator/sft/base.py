"""The `base` stage: a tiny Qwen3 or Gemma3, pretrained for a moment on text without any answer.

It is shared by all cells of its model; what a task is, it has never seen.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from babel import Locale
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)

from orchestrator.errors import StageFailure
from orchestrator.registry import TASKS, lookup
from orchestrator.sft import runtime
from orchestrator.sft.positions import MAX_POSITIONS
from orchestrator.stage import Config, Context, Inputs, Row
from orchestrator.tasks.base import LANGUAGES, Task

NUM_LISTS, NAMES_IN_LIST = 50, 8
"""Lists of names of each language in the generic text, and how long they are."""


def item_texts(num_items: int, seed: int) -> list[str]:
    """Return prompts and responses of all tasks in all languages: what a tokenizer is trained on."""
    return [
        item.prompt + item.response
        for task in _tasks()
        for language in LANGUAGES
        for item in task.generate("train", language, num_items=num_items, seed=seed)
    ]


def generic_texts(num_items: int, seed: int) -> list[str]:
    """Return prompts of all tasks and lists of names from locale data, in all languages, shuffled."""
    texts = [
        item.prompt
        for task in _tasks()
        for language in LANGUAGES
        for item in task.generate("train", language, num_items=num_items, seed=seed)
    ]
    rng = random.Random(seed)
    texts += [text for language in LANGUAGES for text in _locale_texts(language, rng)]
    rng.shuffle(texts)
    return texts


def _tasks() -> list[Task]:
    return [lookup(TASKS, name, kind="task") for name in sorted(TASKS)]


def _locale_texts(language: str, rng: random.Random) -> list[str]:
    locale = Locale.parse(language)
    names = [
        str(name)
        for table in (locale.territories, locale.languages, locale.months["format"]["wide"])
        for name in table.values()
    ]
    return [", ".join(rng.sample(names, NAMES_IN_LIST)) for _ in range(NUM_LISTS)]


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Build the model, pretrains it and saves it; a stop begins it anew, for it takes seconds."""
    settings = config.model.pretraining
    runtime.start(context, seed=settings.seed)
    tokenizer = runtime.load_tokenizer(inputs, context.uses)
    model = build(config.model.family, config.model.architecture, tokenizer)
    model.to(runtime.device_of(context.uses.device))
    blocks = pack(tokenizer, generic_texts(settings.num_items, settings.seed), settings.block_tokens)
    pretrain(model, blocks, settings, context)
    model.save_pretrained(context.output)
    return []


def build(family: str, architecture: Config, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a model of a family with random weights, its vocabulary that of the tokenizer."""
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "tie_word_embeddings": architecture.tied,
        "max_position_embeddings": MAX_POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": architecture.hidden_size**-0.5,  # the usual 0.02 is for widths above 1000
    }
    if family == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, query_pre_attn_scalar=architecture.head_dim))
    model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    balance(model)
    return model


def balance(model: PreTrainedModel) -> None:
    """Give attention a voice in a residual stream without norms after its layers, as Gemma3 has them.

    An average over a hundred tokens is small beside an MLP's output. With these factors (measured) a tiny
    model learns to copy a value from its prompt within the few hundred steps of a smoke sweep.
    """
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.5)
        for name, parameter in model.named_parameters():
            if name.endswith("o_proj.weight"):
                parameter.mul_(8.0)
            elif name.endswith("down_proj.weight"):
                parameter.mul_(0.3)


def pack(tokenizer: PreTrainedTokenizerBase, texts: list[str], block_tokens: int) -> torch.Tensor:
    """Join texts, an end token after each, and cuts them into rows of equal length."""
    ids = [token for text in texts for token in (*tokenizer(text).input_ids, tokenizer.eos_token_id)]
    num_blocks = len(ids) // block_tokens
    if not num_blocks:
        raise StageFailure("config", f"{len(ids)} tokens do not fill a block of {block_tokens}")
    return torch.tensor(ids[: num_blocks * block_tokens]).view(num_blocks, block_tokens)


def pretrain(model: PreTrainedModel, blocks: torch.Tensor, settings: Config, context: Context) -> None:
    """Run a few steps of language modelling over blocks drawn at random."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.num_steps // 20, settings.num_steps)
    generator = torch.Generator().manual_seed(settings.seed)
    model.train()
    for step in range(1, settings.num_steps + 1):
        rows = torch.randint(len(blocks), (settings.batch_size,), generator=generator)
        batch = blocks[rows].to(model.device)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if not torch.isfinite(loss):
            raise StageFailure("nan", f"the pretraining loss is {loss.item()} at step {step}")
        context.log(step, num_steps=settings.num_steps, loss=loss.item(), grad_norm=grad_norm.item())
        context.stop_if_asked()
