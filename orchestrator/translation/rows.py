"""The English rows to translate, in shards: what a model is asked about a row, and the replies that it gave.

`PROMPT_VERSION` belongs to the key of the cache. Raise it, and the version of the stage `translate`, with any
change to the words or to what `template` makes of a row.

A cached reply is found by the digests of the row, the language, the model and the prompt. So no sweep, and no
later attempt, requests the same reply twice. Each row has one small file, replaced atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from orchestrator.stage import Config
from orchestrator.tasks.base import Split
from orchestrator.tasks.calls import parse_call
from orchestrator.tasks.sources import open_source
from orchestrator.translation.template import VALUE, Template, template_of
from orchestrator.translation.verdicts import NAMES, Fault, ModelReply, TextVerdict, judge_reply

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


class SourceRow(NamedTuple):
    """An English row.

    Attributes:
        split: that the source names; None if it names none.
        line: as a line of a data set.
        digest: of the content, without the id.
    """

    split: Split | None
    line: dict[str, str]
    digest: str


def read_rows(path: Path, task: str) -> list[SourceRow]:
    """Return the English rows of a source that can be used.

    The gold must be a call. A row with the text of an earlier one and another gold is left out: nothing could
    answer both. API-Bank's training rows hold four of them.

    Raises:
        UserError: the source cannot be read.
    """
    source = open_source(path, task)
    rows = []
    golds: dict[tuple[str, str], str] = {}
    for raw in source.rows():
        if raw.language == "en":
            line = source.line(raw)
            gold = golds.setdefault((line["instruction"], line["input"]), line["output"])
            if parse_call(line["output"]) is not None and line["output"] == gold:
                rows.append(SourceRow(raw.split, line, row_digest(line)))
    return rows


def in_shard(rows: Iterable[SourceRow], shard: int, num_shards: int) -> list[SourceRow]:
    """Return the rows of a shard. Equal rows are in one shard, and rows that are added move no other row."""
    return [row for row in rows if int(row.digest[:12], 16) % num_shards == shard]


class ReplyCache:
    """The replies of one model in one language.

    Args:
        folder: of all replies.
        language: of the translations.
        identity: all that decides which reply a request gets, as JSON values.
    """

    def __init__(self, folder: Path, language: str, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        self._language = language
        self._identity = json.dumps({**identity, "language": language}, sort_keys=True)

    def load(self, row: str, request: Messages) -> list[ModelReply]:
        """Return the replies to a row's first request and what followed it, the first one first.

        There are none if the file is absent or unreadable.
        """
        try:
            return msgspec.json.decode(self._path(row, request).read_bytes(), type=_Cached).replies
        except (FileNotFoundError, msgspec.DecodeError):
            return []

    def save(self, row: str, request: Messages, replies: Sequence[ModelReply]) -> None:
        """Replace the replies for a row."""
        path = self._path(row, request)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another worker may read at the same time: it finds the earlier file or the new one.
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        temporary.write_bytes(msgspec.json.encode(_Cached(row=row, replies=list(replies))))
        temporary.replace(path)

    def _path(self, row: str, request: Messages) -> Path:
        # With the request, no reply to other texts of the row is ever taken for one to these.
        text = f"{row}\n{self._identity}\n{json.dumps(request)}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        return self._folder / self._language / digest[:2] / f"{digest}.json"


class _Cached(msgspec.Struct):
    row: str
    replies: list[ModelReply]


def identity_of(config: Config) -> dict[str, Any]:
    """Return what decides the replies to a row, beside the row and the language."""
    return {
        "model": config.model.fingerprint or config.model.name,
        "engine": config.engine,
        "prompt": PROMPT_VERSION,
        "max_tokens": config.max_tokens,
        "request": dict(config.request),
    }


class Conversation:
    """The requests and replies for one distinct row in one language.

    Args:
        line: the English row.
        digest: of the row.
        language: to translate to.
        cache: holds earlier replies, and takes new ones.
        max_attempts: most replies.

    Attributes:
        replies: all so far.
        verdicts: on each reply.
        num_new: replies that were not in the cache.
        problem: why no reply came, a kind of fault; "" otherwise.
        detail: what the endpoint wrote about the problem.
    """

    def __init__(
        self, line: Mapping[str, str], digest: str, language: str, cache: ReplyCache, max_attempts: int
    ) -> None:
        self.line = line
        self.digest = digest
        self.template: Template = template_of(line)
        self.replies: list[ModelReply] = []
        self.verdicts: list[TextVerdict] = []
        self.num_new = 0
        self.problem = ""
        self.detail = ""
        self._language = language
        self._cache = cache
        self._max_attempts = max_attempts
        self._first = messages_of(self.template, language)
        for reply in cache.load(digest, self._first)[:max_attempts]:
            self._judge(reply)
            if self.messages() is None:
                break

    def messages(self) -> Messages | None:
        """Return the next request; None if a reply was accepted or no attempt is left."""
        if not self.replies:
            return self._first
        if not self.verdicts[-1].faults or len(self.replies) >= self._max_attempts or self.problem:
            return None
        return messages_again(self._first, self.replies[-1], self.verdicts[-1].faults)

    def take(self, reply: ModelReply) -> Messages | None:
        """Take a new reply, cache it, and return the next request, as `messages` does."""
        self._judge(reply)
        self.num_new += 1
        self._cache.save(self.digest, self._first, self.replies)
        return self.messages()

    def _judge(self, reply: ModelReply) -> None:
        self.replies.append(reply)
        self.verdicts.append(judge_reply(self.template, self.line, reply, self._language))

    @property
    def best(self) -> TextVerdict | None:
        """The accepted verdict, else the last one with translations, which a person may correct."""
        accepted = [verdict for verdict in self.verdicts if not verdict.faults]
        readable = [verdict for verdict in self.verdicts if verdict.translations]
        return next(iter([*accepted, *reversed(readable), *reversed(self.verdicts)]), None)


class Translator(Protocol):
    """A source of replies: an endpoint or a local model."""

    def run(self, conversations: Sequence[Conversation], context: RowProgress) -> None:
        """Continue each conversation until it needs no more replies.

        Raises:
            StopRequested: a stop was requested. Replies so far are in the cache.
            StageFailure: no reply can be had at all: a wrong key, an unknown model, no memory.
        """


class RowProgress(Protocol):
    """What a `Translator` needs of `orchestrator.stage.Context`."""

    @property
    def stop_asked(self) -> bool:
        """Whether to stop."""

    def stop_if_asked(self) -> None:
        """Raise `StopRequested` if a stop was requested."""

    def report(self, step: int, *, num_steps: int | None = None) -> None:
        """Report how many conversations are over."""


def distinct(
    rows: Sequence[SourceRow], language: str, cache: ReplyCache, max_attempts: int
) -> Iterator[Conversation]:
    """Yield a conversation for each distinct row."""
    # Reversed, so that of equal rows the first one stays.
    for digest, row in {row.digest: row for row in reversed(rows)}.items():
        yield Conversation(row.line, digest, language, cache, max_attempts)
