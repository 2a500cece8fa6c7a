"""Sweeps that the command line alone describes: as the content of the sweep file that they stand for.

A Hydra app, and a command with names of keys in braces::

    --app train.py model=a,b        {app: train.py}
    --run 'python fit.py {lr}'      {config: {lr: 0.1}, stages: {run: {command: ...}}}
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.compose.axes import cut, parse_override, values_of
from orchestrator.compose.overrides import is_engine_key
from orchestrator.core.commandspec import PLACEHOLDER, PLAIN
from orchestrator.core.sweep import MAX_NAME
from orchestrator.core.tree import place
from orchestrator.errors import UserError, nearest

Options = Mapping[str, Sequence[str]]

STAGE = "run"
"""Name of the stage that runs a command of the command line."""

_OF_APP = ("python", "volatile", "checkpoints")
_OF_RUN = ("python", "results", "metric", "checkpoints", "keep", "shell")


def given(
    app: str | None, command: str | None, words: Sequence[str], options: Options
) -> tuple[str, dict[str, Any]]:
    """Return the name and the content of a sweep.

    Args:
        app: a Hydra app's script, or None.
        command: a command with keys in braces, or None.
        words: overrides.
        options: option of the command line to its values.

    Raises:
        UserError: both or options that do not fit are given, or a key of the command is not set.
    """
    if app is not None and command is not None:
        raise UserError("both --app and --run are given", allowed="one of them")
    fitting = _OF_APP if app is not None else _OF_RUN
    for name, values in options.items():
        if values and name not in fitting:
            raise UserError(f"--{name} does not go with {'--app' if app is not None else '--run'}")
        if len(values) > 1 and name not in ("volatile", "metric", "keep"):
            raise UserError(f"--{name} is given {len(values)} times", allowed="one value")
    return _of_app(app, options) if app is not None else _of_command(command or "", words, options)


def app_words(script: str, *, where: str = "") -> list[str]:
    """Return the words of an app's script: a path, or ``-m`` and a module, and arguments.

    Raises:
        UserError: a quote is not closed.
    """
    try:
        return shlex.split(script)
    except ValueError as error:
        raise UserError(f"app is {cut(script)!r}: {str(error).lower()}", where=where) from None


def app_name(script: str) -> str:
    """Return the name of an app's sweep: the stem of its script, or the last part of its module."""
    words = app_words(script) or [""]
    return words[1].rpartition(".")[2] if words[0] == "-m" and words[1:] else Path(words[0]).stem


def _of_app(script: str, options: Options) -> tuple[str, dict[str, Any]]:
    app: dict[str, Any] = {"script": script}
    if options["volatile"]:
        app["volatile"] = list(options["volatile"])
    for name in ("python", "checkpoints"):
        if options[name]:
            app[name] = options[name][0]
    return app_name(script), {
        "description": f"the Hydra app {script}",
        "app": app if app.keys() > {"script"} else script,
    }


def _of_command(command: str, words: Sequence[str], options: Options) -> tuple[str, dict[str, Any]]:
    config: dict[str, Any] = {}
    keys: list[str] = []
    for word in words:
        override = parse_override(word)
        key = override.key_or_group
        if key in ("expect_cells", "max_cells") or is_engine_key(key):
            continue
        if override.is_delete() or override.package is not None or override.is_add():
            raise UserError(
                f"{word!r} goes with a config", allowed="with --run: KEY=VALUE or KEY=VALUE,VALUE"
            )
        if key in PLAIN:
            raise UserError(
                f"{key} is a name of Polysweep's own in a command",
                where=word,
                fix=f"another name for the key: --{key} {{my_{key}}} in the command, and my_{key}=VALUE",
            )
        keys.append(key)
        place(config, key, values_of(override)[0])
    named = [name for name in PLACEHOLDER.findall(command) if name not in PLAIN and not _is_rooted(name)]
    if missing := [name for name in named if name not in keys]:
        if is_engine_key(name := missing[0]):
            raise UserError(
                f"the command has {{{name}}}, but {name}=VALUE is a setting of Polysweep",
                fix=f"another name for the key: {{my_{name}}} in the command, and my_{name}=VALUE",
            )
        raise UserError(
            f"the command has {{{missing[0]}}}, but nothing sets it",
            allowed=nearest(missing[0], [*keys, *PLAIN]),
            fix=f"{missing[0]}=VALUE, or {missing[0]}=VALUE,VALUE for an axis; "
            f"{{{{{missing[0]}}}}} in the command for the text {{{missing[0]}}}",
        )
    used = {*named, *(key for key in keys if f"{{config.{key}}}" in command)}
    if "{args}" not in command and (unused := [key for key in keys if key not in used]):
        raise UserError(
            f"{unused[0]} is set, but the command does not use it",
            fix=f"--{unused[0]} {{{unused[0]}}} in the command, or {{args}} for all keys",
        )
    stage: dict[str, Any] = {
        "command": PLACEHOLDER.sub(lambda m: f"{{config.{m[1]}}}" if m[1] in named else m[0], command),
        "reads": list(dict.fromkeys(keys)),
    }
    for name in ("python", "results", "checkpoints"):
        if options[name]:
            stage[name] = options[name][0].removeprefix("{output}/")
    if options["shell"]:
        stage["shell"] = True
    if options["keep"]:
        stage["keep"] = list(options["keep"])
    if options["metric"]:
        stage["metric"] = dict(map(metric, options["metric"]))
    return _name_of(command), {"description": command, "config": config, "stages": {STAGE: stage}}


def _is_rooted(name: str) -> bool:
    return name.partition(".")[0] in ("config", "uses", "inputs") and "." in name


def metric(text: str) -> tuple[str, str]:
    """Return the column and the pattern of an option ``--metric NAME=REGEX``.

    Raises:
        UserError: the text has another form.
    """
    name, equals, pattern = text.partition("=")
    if not (name and equals and pattern):
        raise UserError(f"--metric {text!r}", allowed=r"NAME=REGEX, such as 'loss=final loss: ([\d.]+)'")
    return name, pattern


def _name_of(command: str) -> str:
    """Return the stem of the first script in a command, else the name of its program."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    module = next((name for flag, name in itertools.pairwise(words) if flag == "-m"), "")
    plain = [word for word in words if "{" not in word and not word.startswith("-")]
    files = [word for word in plain if re.search(r"\.\w{1,4}$", word)]
    scripts = [word for word in files if re.search(r"\.(py|sh|bash|R|jl|pl|rb|lua)$", word)]
    stem = module.rpartition(".")[2] or Path((scripts or files or plain or ["run"])[0]).stem
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).strip("-.")[:MAX_NAME] or STAGE
