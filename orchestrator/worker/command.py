"""Stages that are a command line: filling it in, running it, reading its result rows."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import StageFailure, StopRequested, nearest
from orchestrator.stage import Config, Context, Inputs, Row

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.\[\]\-+]*)\}")
GRACE_S = 30.0


def fill(command: str, values: Mapping[str, str]) -> list[str]:
    """Splits a command line as a shell would (no shell runs), then fills ``{name}`` in each word.

    Raises:
        StageFailure: a name is not known (cause ``config``).
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in values:
            raise StageFailure(
                "config", f"unknown {{{name}}} in the stage's command; {nearest(name, values)}"
            )
        return values[name]

    return [_PLACEHOLDER.sub(value, word) for word in shlex.split(command)]


def placeholders(config: Config, inputs: Inputs, context: Context, after: tuple[str, ...]) -> dict[str, str]:
    """Returns what a command may name: output, scratch, resume, config.KEY, uses.KEY, inputs.STAGE."""
    values = {
        "output": str(context.output),
        "scratch": str(context.scratch),
        "checkpoints": str(context.folder / "checkpoints"),
        "resume": str(context.resume.folder) if context.resume else "",
        "attempt": str(context.attempt),
    }
    for root, tree in (("config", config.to_dict()), ("uses", context.uses.to_dict())):
        values.update(_flat(root, tree))
    for stage in after:
        if stage in inputs:
            for label, folder in inputs.each(stage).items():
                values[f"inputs.{stage}.{label}" if label else f"inputs.{stage}"] = str(folder)
    return values


def _flat(root: str, tree: Any) -> dict[str, str]:
    if isinstance(tree, dict):
        flat: dict[str, str] = {}
        for key, value in tree.items():
            flat.update(_flat(f"{root}.{key}", value))
        return flat
    return {root: tree if isinstance(tree, str) else json.dumps(tree)}


def run_command(
    command: str,
    config: Config,
    inputs: Inputs,
    context: Context,
    *,
    after: tuple[str, ...],
    folder: Path | None,
) -> None:
    """Runs a command until it ends; passes a stop on as SIGTERM.

    Args:
        command: with placeholders.
        config, inputs, context: as a function stage gets them.
        after: names of the inputs.
        folder: where it runs; None for the current folder.

    Raises:
        StageFailure: it ended with another code than 0, or cannot be started.
        StopRequested: it ended because it was asked to stop.
    """
    words = fill(command, placeholders(config, inputs, context, after))
    path = context.scratch / "config.json"
    path.write_text(
        json.dumps({"config": config.to_dict(), "uses": context.uses.to_dict()}, ensure_ascii=False)
    )
    ours_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {
        **os.environ,
        "PATH": ours_first,  # so that `python` is the one with the user's packages
        "SWEEP_CONFIG": str(path),
        "SWEEP_OUTPUT": str(context.output),
    }
    try:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdin=subprocess.DEVNULL)
    except (FileNotFoundError, PermissionError) as error:
        raise StageFailure("config", f"cannot run {words[0]!r}: {error.strerror}") from error
    asked_s: float | None = None
    while (code := process.poll()) is None:
        time.sleep(0.05)
        if context.stop_asked and asked_s is None:
            asked_s = time.monotonic()
            process.terminate()
        elif asked_s is not None and time.monotonic() - asked_s > GRACE_S:
            process.kill()
    if code != 0:
        if context.stop_asked:
            raise StopRequested("stopped")
        how = f"exited with code {code}" if code > 0 else f"was killed by signal {-code}"
        raise StageFailure("unknown", f"the command {how}: {shlex.join(words)}")


def read_rows(path: Path) -> list[Row]:
    """Reads a file of JSON lines, one result row each.

    Raises:
        StageFailure: the file is missing or a line is no JSON object (cause ``data``).
    """
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StageFailure("data", f"cannot read the results {path.name}: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise StageFailure("data", f"each line of {path.name} must be a JSON object")
    return rows
