"""The stages `translate` and `validate`: replies for the rows of a shard, and verdicts on them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.errors import StageFailure, UserError, home_expanded
from orchestrator.sft import data
from orchestrator.stage import Config, Context, Inputs, Row
from orchestrator.translation.config import ENDPOINT
from orchestrator.translation.rows import (
    Conversation,
    ReplyCache,
    SourceRow,
    Translator,
    distinct,
    identity_of,
    in_shard,
    read_rows,
)
from orchestrator.translation.template import template_of
from orchestrator.translation.verdicts import Fault, judge

REPLIES, VERDICTS = "replies.jsonl", "verdicts.jsonl"
"""The files of the two stages' products, one row a line."""

ACCEPTED = "accepted"
"""Stands for the reason where a row was not refused."""


class Answered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line of `REPLIES`: what the model gave for a distinct row.

    Attributes:
        row: digest of the row.
        translations: of its texts; accepted, or the last that could be read; empty if there are none.
        refused: kinds of the faults of each refused reply.
        faults: of the last reply, if none was accepted.
    """

    row: str
    translations: dict[str, str]
    refused: tuple[tuple[str, ...], ...] = ()
    faults: tuple[Fault, ...] = ()


class Judged(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line of `VERDICTS`: a row of the source.

    Attributes:
        id: of the row.
        row: digest of the row.
        translations: as in `Answered`.
        faults: why it was refused; empty if it was accepted.
        flags: what a person should look at.
        refused: as in `Answered`.
    """

    id: str
    row: str
    translations: dict[str, str]
    faults: tuple[Fault, ...] = ()
    flags: tuple[str, ...] = ()
    refused: tuple[tuple[str, ...], ...] = ()


def rows_of_shard(config: Config, context: Context) -> list[SourceRow]:
    """Return the rows of the stage's shard.

    Raises:
        StageFailure: the source cannot be read (cause ``data``).
    """
    try:
        rows = read_rows(Path(context.uses.source.path), config.task)
    except UserError as error:
        raise StageFailure("data", str(error)) from error
    return in_shard(rows, int(config.shard), config.num_shards)


def cache_folder(cache_dir: str | None) -> Path:
    """Return the folder of cached replies: the setting, or ``translations`` beside fetched data sets."""
    return home_expanded(cache_dir) if cache_dir else data.root(None) / "translations"


def translate(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Write the replies for the rows of a shard.

    Returns:
        One row: how many rows there are, how many have an accepted reply, requests and tokens.

    Raises:
        StageFailure: the endpoint refuses all requests, or too many rows stayed without a reply.
    """
    rows = rows_of_shard(config, context)
    cache = ReplyCache(cache_folder(context.uses.cache_dir), config.language, identity_of(config))
    conversations = list(distinct(rows, config.language, cache, config.max_attempts))
    open_ = [conversation for conversation in conversations if conversation.messages() is not None]
    if open_:
        translator(config, inputs, context).run(open_, context)
    unanswered = [conversation for conversation in open_ if conversation.problem == "unanswered"]
    if len(unanswered) > context.uses.max_unanswered * len(conversations):
        # The retries of the stage are cheap, since all other replies are cached.
        raise StageFailure(
            "communication",
            f"{len(unanswered)} of {len(conversations)} rows stayed without a reply (max_unanswered)",
        )
    refused = [conversation for conversation in open_ if conversation.problem == "refused-request"]
    if len(refused) > len(conversations) / 2:
        # A filter of contents refuses some rows. Most are refused only where a field of the request is wrong.
        what = f"the endpoint refused {len(refused)} of {len(conversations)} rows: {refused[0].detail}"
        raise StageFailure("config", what)
    write_lines(context.output / REPLIES, map(_answered, conversations))
    new = [reply for c in conversations for reply in c.replies[len(c.replies) - c.num_new :]]
    return [
        {
            "language": config.language,
            "shard": int(config.shard),
            "num_rows": len(rows),
            "num_distinct": len(conversations),
            "num_answered": sum(bool(c.verdicts) and not c.verdicts[-1].faults for c in conversations),
            "num_requests": len(new),
            "num_cached": sum(len(c.replies) - c.num_new for c in conversations),
            "prompt_tokens": sum(reply.prompt_tokens for reply in new),
            "completion_tokens": sum(reply.completion_tokens for reply in new),
        }
    ]


def translator(config: Config, inputs: Inputs, context: Context) -> Translator:
    """Return the endpoint or local model of the config.

    Raises:
        StageFailure: it cannot be used, for example because no key is set here (cause ``config``).
    """
    if config.engine != ENDPOINT:
        from orchestrator.translation.local import LocalModel  # imports torch

        return LocalModel(config, inputs, context)
    from orchestrator.translation.endpoint import Endpoint, access

    settings = context.uses.endpoint
    try:
        found = access(settings.url_env, settings.key_env)
    except UserError as error:
        raise StageFailure("config", f"{error.what} where this worker runs") from error
    body = {"model": config.model.name, "max_tokens": config.max_tokens, **_tree(config.request)}
    return Endpoint(found, settings, body)


def _tree(config: Any) -> dict[str, Any]:
    return config.to_dict() if isinstance(config, Config) else dict(config)


def _answered(conversation: Conversation) -> Answered:
    best = conversation.best
    verdicts = conversation.verdicts
    refused = tuple(tuple(sorted({f.kind for f in v.faults})) for v in verdicts if v.faults)
    faults = verdicts[-1].faults if verdicts else ()
    if conversation.problem:
        faults = (Fault(conversation.problem, "there was no reply"),)
    return Answered(
        row=conversation.digest,
        translations=dict(best.translations) if best else {},
        refused=refused,
        faults=faults,
    )


def validate(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Judge the translations of a shard in one language.

    Returns:
        One row for each reason, with the number of rows that were refused for it, and one for those accepted.
    """
    (folder,) = inputs.each("translate").values()
    answers = {one.row: one for one in read_lines(folder / REPLIES, Answered)}
    judged = [_judged(row, answers[row.digest], config.language) for row in rows_of_shard(config, context)]
    write_lines(context.output / VERDICTS, judged)
    counts = Counter(one.faults[0].kind if one.faults else ACCEPTED for one in judged)
    return [
        {"language": config.language, "shard": int(config.shard), "reason": reason, "num_rows": number}
        for reason, number in sorted(counts.items())
    ]


def _judged(row: SourceRow, answer: Answered, language: str) -> Judged:
    faults = answer.faults
    flags: tuple[str, ...] = ()
    if answer.translations:
        verdict = judge(template_of(row.line), row.line, answer.translations, language)
        # The texts alone do not show what was around them in the reply.
        around = tuple(fault for fault in answer.faults if fault.kind == "prose-around")
        faults, flags = verdict.faults or around, verdict.flags
    return Judged(
        id=row.line["id"],
        row=row.digest,
        translations=answer.translations,
        faults=faults,
        flags=flags,
        refused=answer.refused,
    )


def write_lines(path: Path, lines: Iterable[msgspec.Struct]) -> None:
    """Write structs as JSON lines."""
    with path.open("wb") as stream:
        stream.writelines(msgspec.json.encode(line) + b"\n" for line in lines)


def read_lines(path: Path, of: type[Any]) -> list[Any]:
    """Return the structs of a file of JSON lines."""
    decoder = msgspec.json.Decoder(of)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]


def pretty(tree: Mapping[str, Any]) -> bytes:
    """Return a tree as JSON for people."""
    return json.dumps(tree, ensure_ascii=False, indent=1).encode() + b"\n"
