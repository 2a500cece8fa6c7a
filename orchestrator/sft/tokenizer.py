"""The `tokenizer` stage: a byte-level BPE tokenizer for a family of tiny models.

It is trained on generated items of all tasks in all languages, so it is the same for every cell of its
family. Each digit is a token of its own. Otherwise a tiny model could not learn to count.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from orchestrator.sft import runtime
from orchestrator.sft.base import item_texts
from orchestrator.stage import Config, Context, Inputs, Row

SPECIAL_TOKENS = {
    "qwen3": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "gemma3": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
}
"""Special tokens of each family. A family with a BOS token starts every prompt with it."""


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Train the tokenizer and save it as a `PreTrainedTokenizerFast`."""
    settings = config.model.tokenizer
    runtime.start(context, seed=settings.seed)
    special = SPECIAL_TOKENS[config.model.family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.model.architecture.vocab_size,
        # Sorted, because a set has another order in each process, and the order decides the tokens' ids.
        special_tokens=sorted(set(special.values())),
        # All 256 bytes, so that any text can be encoded without an unknown token.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(item_texts(settings.num_items, settings.seed), trainer)
    if "bos_token" in special:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(context.output)
    return []
