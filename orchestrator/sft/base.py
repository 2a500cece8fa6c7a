"""The `base` stage: a tiny Qwen3 or Gemma3, pretrained for some seconds on text without any answer.

All cells of the model share it. It has seen prompts of all tasks, but never a response.
"""

from __future__ import annotations

import math
import random
import time
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
from orchestrator.sft.needs import MAX_POSITIONS
from orchestrator.stage import Config, Context, Inputs, Row
from orchestrator.tasks.base import LANGUAGES, Task

SHORT_S = 20.0
"""Seconds that a pretraining goes on after a stop at most; less than the usual `policy.grace_s`. Ours."""
NUM_LISTS, NAMES_IN_LIST = 50, 8
"""Lists of names of each language in the generic text, and the length of each list."""


def item_texts(num_items: int, seed: int) -> list[str]:
    """Return prompts and responses of the tasks in all languages: the training text of a tokenizer."""
    return [
        item.prompt + item.response
        for task in _tasks()
        for language in LANGUAGES
        for item in task.generate("train", language, num_items=num_items, seed=seed)
    ]


def generic_texts(num_items: int, seed: int) -> list[str]:
    """Return prompts of the tasks and lists of names from locale data, in all languages, shuffled."""
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
    # Sorted, so that the text, and with it the tokenizer, does not depend on the registry's order.
    tasks: list[Task] = [lookup(TASKS, name, kind="task") for name in sorted(TASKS)]
    return [task for task in tasks if task.in_tiny_models]


def _locale_texts(language: str, rng: random.Random) -> list[str]:
    locale = Locale.parse(language)
    names = [
        str(name)
        for table in (locale.territories, locale.languages, locale.months["format"]["wide"])
        for name in table.values()
    ]
    return [", ".join(rng.sample(names, NAMES_IN_LIST)) for _ in range(NUM_LISTS)]


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Build the model, pretrain it and save it. It saves no checkpoint: starting again takes seconds."""
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
    """Return a model of a family with random weights and the tokenizer's vocabulary."""
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
    """Scale a tiny Qwen3's weights so that attention matters in its residual stream.

    Attention returns an average over about a hundred tokens, which is small compared with an MLP's output.
    Gemma3 corrects this by norms after its layers. With these measured factors, a tiny Qwen3 learns to copy a
    value from its prompt within a few hundred steps.
    """
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.5)
        for name, parameter in model.named_parameters():
            if name.endswith("o_proj.weight"):
                parameter.mul_(8.0)
            elif name.endswith("down_proj.weight"):
                parameter.mul_(0.3)


def pack(tokenizer: PreTrainedTokenizerBase, texts: list[str], block_tokens: int) -> torch.Tensor:
    """Join texts, with an end token after each, and cut them into rows of equal length.

    Returns:
        Token ids, rows x block_tokens. Tokens that fill no whole row are left out.

    Raises:
        StageFailure: the texts do not fill one row (cause ``config``).
    """
    ids = [token for text in texts for token in (*tokenizer(text).input_ids, tokenizer.eos_token_id)]
    num_blocks = len(ids) // block_tokens
    if not num_blocks:
        raise StageFailure("config", f"{len(ids)} tokens do not fill a block of {block_tokens}")
    return torch.tensor(ids[: num_blocks * block_tokens]).view(num_blocks, block_tokens)


def pretrain(model: PreTrainedModel, blocks: torch.Tensor, settings: Config, context: Context) -> None:
    """Run a few steps of language modelling over blocks drawn at random.

    If a stop is requested shortly before the end, it goes on: it saves no checkpoint, so it would never end
    where stops come more often than it takes.

    Raises:
        StageFailure: the loss is not finite (cause ``nan``).
        StopRequested: a stop was requested, and more than `SHORT_S` seconds are left.
    """
    start_s, asked_s = time.monotonic(), math.inf
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.num_steps // 20, settings.num_steps)
    # A generator of its own, so that nothing else that draws random numbers changes the blocks.
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
        if context.stop_asked:
            now_s = time.monotonic()
            asked_s = min(asked_s, now_s)
            left_s = (now_s - start_s) / step * (settings.num_steps - step)
            if max(left_s, now_s - asked_s) > SHORT_S:  # later steps may be slower than those before
                context.stop_if_asked()
