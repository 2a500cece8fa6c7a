"""What a model is asked: the messages of a row, and of a second try after a refusal. Pure.

`PROMPT_VERSION` belongs to the key of the cache. Raise it, and the version of the stage `translate`, with any
change to the words or to what `template` makes of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from orchestrator.translation.scripts import NAMES
from orchestrator.translation.template import VALUE, Template
from orchestrator.translation.verdicts import Fault, ModelReply

PROMPT_VERSION = 1

Messages = list[dict[str, str]]
"""Messages in the form of chat models: ``{"role": ..., "content": ...}``."""

_SYSTEM = """You translate the texts of a dialogue between a user and an assistant, and of the APIs that the \
assistant calls, from English into {language}.

The input is a JSON object. "texts" maps numbers to English texts. "meanings" says what placeholders such as \
[[1]] stand for: they are put back by a program after you have translated.

Rules:
- Return one JSON object that maps each number to its translation, and nothing else.
- Write every placeholder of a text exactly as often as the English text has it, unchanged, where it belongs \
in the sentence. Never write out what it stands for.
- Translate everything else, the way a native speaker would say it. "value" texts are short values that the \
dialogue repeats: give the form that fits into a sentence.
- Keep the numbers in the texts, such as the day of a date.
- No line breaks within a text. No notes, no explanations."""

_MAX_REPLY_CHARS = 8_000
"""Length to which a refused reply is repeated to the model."""


def messages_of(template: Template, language: str) -> Messages:
    """Return the first request for a row."""
    texts = {text.key: text.text for text in template.texts}
    placed = " ".join(texts.values())
    meanings = {mark: text for mark, text in template.kept.items() if mark in placed}
    meanings |= {
        mark: f"your translation of text {key}" for mark, key in template.values.items() if mark in placed
    }
    values = [text.key for text in template.texts if text.kind == VALUE]
    tree = {"texts": texts, "value": values, "meanings": meanings}
    return [
        {"role": "system", "content": _SYSTEM.format(language=NAMES[language])},
        {"role": "user", "content": json.dumps(tree, ensure_ascii=False)},
    ]


def messages_again(before: Messages, reply: ModelReply, faults: Sequence[Fault]) -> Messages:
    """Return the request after a refused reply, with the reasons of the refusal."""
    reasons = "\n".join(f"- {text}" for text in dict.fromkeys(fault.text for fault in faults))
    return [
        *before[:2],  # earlier refusals would only make the request longer
        {"role": "assistant", "content": reply.text[:_MAX_REPLY_CHARS] or "{}"},
        {
            "role": "user",
            "content": f"This translation was refused:\n{reasons}\nReturn the whole JSON object again.",
        },
    ]


def row_digest(line: Mapping[str, str]) -> str:
    """Return the digest of an English row's content, without its id. Equal rows have equal digests."""
    text = json.dumps([line["instruction"], line["input"], line["output"]], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
