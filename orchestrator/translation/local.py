"""Replies from weights on this machine, by the generators of `orchestrator.sft.generators`.

Requests become prompts by the tokenizer's chat template. A tokenizer without one gets the plain texts, which
few models follow. A batch is made of the longest prompts first, and its size is a part of the identity, see
`orchestrator.sft.generators.base`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.errors import StageFailure
from orchestrator.registry import GENERATORS, lookup
from orchestrator.sft import model_folder, runtime
from orchestrator.sft.generators.base import GeneratorSettings, generate
from orchestrator.stage import Config, Context, Inputs
from orchestrator.translation.rows import Conversation, Messages, RowProgress
from orchestrator.translation.verdicts import ModelReply


class LocalModel:
    """See `orchestrator.translation.rows.Translator`.

    Args:
        config: what the stage reads.
        inputs: of the stage; none of them is a model.
        context: with `uses`: where the weights are, and the device.

    Raises:
        StageFailure: the weights or the device cannot be used.
    """

    def __init__(self, config: Config, inputs: Inputs, context: Context) -> None:
        runtime.start(context, seed=0)
        uses = context.uses
        self._tokenizer = runtime.load_tokenizer(inputs, uses)
        self._max_tokens: int = config.max_tokens
        self._batch_size: int = config.batch_size
        settings = GeneratorSettings(
            device=runtime.device_of(uses.device),
            precision=config.precision,
            eos_token_id=int(self._tokenizer.eos_token_id),
            pad_token_id=runtime.padding(self._tokenizer),
        )
        self._engine = lookup(GENERATORS, config.engine, kind="engine")(settings)
        folder = runtime.base_folder(inputs, uses)
        self._engine.load(folder)
        self._context_tokens = model_folder.inspect(folder).context_tokens

    def run(self, conversations: Sequence[Conversation], context: RowProgress) -> None:
        """Continue each conversation, in rounds of batches; see `Translator.run`."""
        pending: list[tuple[Conversation, list[int]]] = [
            (conversation, self._encoded(messages))
            for conversation in conversations
            if (messages := conversation.messages()) is not None
        ]
        while pending:
            pending.sort(key=lambda row: -len(row[1]))
            # An engine that makes its own batches runs best with many rows, but a stop waits for all of them.
            size = self._batch_size if self._engine.is_batched else 32 * self._batch_size
            batch, pending = pending[:size], pending[size:]
            room = self._room(len(batch[0][1]))
            if room < 1:
                batch[0][0].problem = "cut-off"  # the longest request alone fills the model's positions
                pending = [*batch[1:], *pending]
                continue
            replies = generate(
                self._engine,
                self._tokenizer,
                [[tokens for _, tokens in batch]],
                stop=_unchanged,
                max_new_tokens=room,
            )[0]
            for (conversation, tokens), answer in zip(batch, replies, strict=True):
                reply = ModelReply(
                    text=answer.text,
                    finish="length" if answer.truncated else "stop",
                    prompt_tokens=len(tokens),
                    completion_tokens=answer.num_tokens,
                )
                if (messages := conversation.take(reply)) is not None:
                    pending.append((conversation, self._encoded(messages)))
            context.report(len(conversations) - len(pending), num_steps=len(conversations))
            context.stop_if_asked()

    def _room(self, prompt_tokens: int) -> int:
        """Return how many tokens a reply may have after a prompt."""
        if self._context_tokens is None:
            return self._max_tokens
        return min(self._max_tokens, self._context_tokens - prompt_tokens)

    def _encoded(self, messages: Messages) -> list[int]:
        tokenizer: Any = self._tokenizer
        if getattr(tokenizer, "chat_template", None):
            try:
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template is a program, and may raise anything
                raise StageFailure("data", f"the chat template refuses the request: {error}") from error
        else:
            text = "\n\n".join(message["content"] for message in messages) + "\n\n"
        # The template has written the special tokens.
        tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens


def _unchanged(text: str) -> str:
    return text
