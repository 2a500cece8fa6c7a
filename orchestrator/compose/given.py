"""Sweeps that the command line alone describes: as the content of the sweep file that they stand for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError


def of_app(script: str, options: Mapping[str, Sequence[str]]) -> tuple[str, dict[str, Any]]:
    """Return the name and the content of the sweep of a Hydra app.

    Args:
        script: as the key ``app`` of a sweep file.
        options: option of the command line to its values.

    Raises:
        UserError: an option is given twice.
    """
    app: dict[str, Any] = {"script": script}
    if options["volatile"]:
        app["volatile"] = list(options["volatile"])
    for name in ("python", "checkpoints"):
        if value := _once(name, options[name]):
            app[name] = value
    words = shlex.split(script) or [""]
    name = words[1].rpartition(".")[2] if words[0] == "-m" and words[1:] else Path(words[0]).stem
    return name, {"description": f"the Hydra app {script}", "app": app if app.keys() > {"script"} else script}


def _once(name: str, values: Sequence[str]) -> str | None:
    if len(values) > 1:
        raise UserError(f"--{name} is given {len(values)} times", allowed="one value")
    return values[0] if values else None
