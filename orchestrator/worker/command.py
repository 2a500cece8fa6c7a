"""Stages that are a command line: filling it in, running it, reading its result rows.

What a command may name, each in braces: ``output``, ``scratch``, ``checkpoints``, ``resume``, ``metrics``,
``attempt``, ``python`` (the interpreter that runs us), ``config.KEY``, ``uses.KEY``, ``inputs.STAGE``. The
environment has SWEEP_OUTPUT, SWEEP_METRICS and SWEEP_CONFIG, a JSON file of `config` and `uses`.

- To be able to go on, a command saves into ``{checkpoints}/<step>/``: a name of digits alone, given by
  renaming a finished folder of another name. When it has ended, we write the manifest of each, which makes
  it count; not after it was killed by a signal. ``{resume}`` is the newest such folder of any earlier
  attempt, or empty; it lies in ``{checkpoints}`` too and is not to be saved again.
- A stop comes as SIGTERM: the command saves and exits with a code other than 0, because 0 always means
  done. It is killed when it takes longer than `GRACE_S`. Where a scheduler sends SIGTERM to all processes it
  comes twice, and one that ends by it at once was stopped, not failed; SIGUSR1 and SIGUSR2 are ignored unless
  the command heeds them.
- It may append metrics to ``{metrics}``: a JSON object a line with its ``step``, counted from 1.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.core.rows import checked_rows
from orchestrator.errors import StageFailure, nearest
from orchestrator.stage import MANIFEST, Config, Context, Inputs, Row, write_checkpoint_manifest
from orchestrator.store import layout

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.\[\]\-+]*)\}")
GRACE_S = 30.0
_RUMOUR_S, _HINT_S = 0.2, 2.0
"""How long a command's end may precede the news of the stop that it heeded: any end, and one by SIGTERM."""


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
    """Returns what a command may name, as the module says."""
    values = {
        "output": str(context.output),
        "scratch": str(context.scratch),
        "checkpoints": str(context.folder / layout.CHECKPOINTS),
        "resume": str(context.resume.folder) if context.resume else "",
        "metrics": str(context.folder / layout.METRICS),
        "attempt": str(context.attempt),
        "python": sys.executable,
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
    """Runs a command until it ends, and seals its checkpoints; passes a stop on as SIGTERM.

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
    environment = _environment(config, context)
    try:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdin=subprocess.DEVNULL)
    except (FileNotFoundError, PermissionError) as error:
        raise StageFailure("config", f"cannot run {words[0]!r}: {error.strerror}") from error
    code = _wait(process, context)
    if code >= 0:
        _seal_checkpoints(context)
    if code != 0:
        _await_stop(context, _HINT_S if code in (-signal.SIGTERM, 128 + signal.SIGTERM) else _RUMOUR_S)
        context.stop_if_asked()
        how = f"exited with code {code}" if code > 0 else f"was killed by signal {-code}"
        raise StageFailure("unknown", f"the command {how}: {shlex.join(words)}")


def _environment(config: Config, context: Context) -> dict[str, str]:
    path = context.scratch / "config.json"
    path.write_text(
        json.dumps({"config": config.to_dict(), "uses": context.uses.to_dict()}, ensure_ascii=False)
    )
    ours_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {
        **os.environ,
        "PATH": ours_first,  # so that `python` is the one with the user's packages
        "SWEEP_CONFIG": str(path),
        "SWEEP_OUTPUT": str(context.output),
        "SWEEP_METRICS": str(context.folder / layout.METRICS),
    }


def _wait(process: subprocess.Popen[bytes], context: Context) -> int:
    asked_s: float | None = None
    while (code := process.poll()) is None:
        time.sleep(0.05)
        if context.stop_asked and asked_s is None:
            asked_s = time.monotonic()
            process.terminate()
        elif asked_s is not None and time.monotonic() - asked_s > GRACE_S:
            process.kill()
    return code


def _await_stop(context: Context, patience_s: float) -> None:
    """Gives a signal that went to all processes the time to arrive here too."""
    end_s = time.monotonic() + patience_s
    while not context.stop_asked and time.monotonic() < end_s:
        time.sleep(0.02)


def _seal_checkpoints(context: Context) -> None:
    """Writes the manifest of each folder that the command gave the name of a step."""
    for path in sorted((context.folder / layout.CHECKPOINTS).iterdir()):
        is_step = re.fullmatch("[0-9]+", path.name) and path.is_dir() and not path.is_symlink()
        if is_step and not (path / MANIFEST).exists():
            write_checkpoint_manifest(path, step=int(path.name), attempt=context.attempt)


def read_rows(path: Path) -> tuple[Row, ...]:
    """Reads a file of JSON lines, one result row each.

    Raises:
        StageFailure: the file is missing, or a line is no JSON object of finite values (cause ``data``).
    """
    try:
        # not splitlines: JSON strings may hold the other line separators of Unicode as they are
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        rows = [json.loads(line) for line in lines]
        return checked_rows(rows, cause="data")
    except (OSError, ValueError) as error:
        raise StageFailure("data", f"cannot read the results {path.name}: {error}") from error
    except StageFailure as failure:
        raise StageFailure("data", f"{path.name}: {failure}") from None
