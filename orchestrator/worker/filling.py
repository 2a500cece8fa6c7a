"""Filling in a command line: what its ``{name}`` stand for, as words or as text for a shell."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.core.commandspec import IN_A_SHELL, PLACEHOLDER, open_quote
from orchestrator.errors import StageFailure, nearest
from orchestrator.stage import Config, Context, Inputs, StageSpec
from orchestrator.store import layout

ARGS = "args"
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def values_of(
    spec: StageSpec, config: Config, inputs: Inputs, context: Context, python: str | None = None
) -> dict[str, list[str]]:
    """Returns what each name in braces stands for; all but `args` are one word.

    Args:
        spec: of the stage.
        config, inputs, context: as a function stage gets them.
        python: the stage's own interpreter, None for the one that runs Polysweep.
    """
    plain = {
        "output": str(context.output),
        "scratch": str(context.scratch),
        "checkpoints": str(context.folder / layout.CHECKPOINTS),
        "resume": str(context.resume.folder) if context.resume else "",
        "metrics": str(context.folder / layout.METRICS),
        "attempt": str(context.attempt),
        "python": python or sys.executable,
    }
    for root, tree in (("config", config.to_dict()), ("uses", context.uses.to_dict())):
        plain.update((f"{root}.{key}", _text(value)) for key, value in _flat(tree))
    for stage in spec.after:
        if stage in inputs:
            for label, folder in inputs.each(stage).items():
                plain[f"inputs.{stage}.{label}" if label else f"inputs.{stage}"] = str(folder)
    values = {name: [value] for name, value in plain.items()}
    values[ARGS] = list(arguments(config.to_dict()))
    if "{work}" in (spec.command or ""):
        values["work"] = [str(context.work)]
    return values


def arguments(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yields a config as ``--key value``.

    A nested key is joined by dots. True is the bare ``--key``; false, null and an empty list are left out.
    The items of a list follow its key. A value that begins with ``-`` and is no number is given as
    ``--key=value``.
    """
    for key, value in _flat(tree):
        if value is None or value is False or value == []:
            continue
        if value is True:
            yield f"--{key}"
            continue
        words = [_text(item) for item in value] if isinstance(value, list) else [_text(value)]
        if len(words) == 1 and words[0].startswith("-") and not _NEGATIVE.fullmatch(words[0]):
            yield f"--{key}={words[0]}"
        else:
            yield from (f"--{key}", *words)


def as_words(command: str, values: Mapping[str, list[str]]) -> list[str]:
    """Splits a command line as a shell would (none runs), then fills in each word.

    Raises:
        StageFailure: a name is not known, or a name for several words is part of one (cause ``config``).
    """
    words: list[str] = []
    for word in shlex.split(command):
        match = PLACEHOLDER.fullmatch(word)
        if match and match.group(1) == ARGS:
            words += values[ARGS]
        else:
            words.append(PLACEHOLDER.sub(lambda match: _one(match, values), word))
    return words


def as_shell_text(command: str, values: Mapping[str, list[str]]) -> str:
    """Fills in a text for a shell, such that each value stays what it is, inside quotes and outside.

    Raises:
        StageFailure: as `as_words`.
    """
    parts, quote, end = [], "", 0
    for match in IN_A_SHELL.finditer(command):
        between = command[end : match.start()]
        quote, end = open_quote(between, quote), match.end()
        several = match.group(1) == ARGS and not quote
        value = shlex.join(values[ARGS]) if several else _one(match, values)
        parts.append(between)
        if quote == '"':
            parts.append(re.sub(r'([\\"$`])', r"\\\1", value))
        elif quote == "'":
            parts.append(value.replace("'", "'\"'\"'"))
        else:
            parts.append(value if several else shlex.quote(value))
    return "".join([*parts, command[end:]])


def _one(match: re.Match[str], values: Mapping[str, list[str]]) -> str:
    name = match.group(1)
    if name not in values:
        raise StageFailure("config", f"unknown {{{name}}} in the stage's command; {nearest(name, values)}")
    if name == ARGS:
        raise StageFailure("config", "{args} stands for several words: it must be a word of its own")
    return values[name][0]


def _flat(tree: Mapping[str, Any], root: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted keys and values; an empty section has none."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{root}{key}.")
        else:
            yield f"{root}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
