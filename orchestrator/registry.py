"""The literal tables from names in a sweep file to objects, and the import of such an object.

To add a stage, task, launcher, tracker or report, write its module and add one line here. A module is
imported when its name is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import UserError, nearest

STAGES: Mapping[str, str] = {
    "count": "orchestrator.count:COUNT",
    "tokenizer": "orchestrator.sft.stages:TOKENIZER",
    "base": "orchestrator.sft.stages:BASE",
    "prepare": "orchestrator.sft.stages:PREPARE",
    "train": "orchestrator.sft.stages:TRAIN",
    "evaluate": "orchestrator.sft.stages:EVALUATE",
}
"""Name of a stage to its `StageSpec`."""

FORMER: Mapping[str, tuple[str, str]] = {
    "evaluate": ("orchestrator.sft.stages:EVALUATE_BEFORE", "scored again from kept predictions"),
}
"""Name of a stage to the `StageSpec`s of its earlier versions, the latest first, and a phrase.

The stage's product can be made from theirs, see `orchestrator.stage.Context`; the phrase describes how.
"""

TASKS: Mapping[str, str] = {
    "math": "orchestrator.tasks.math:MATH",
    "api_calling": "orchestrator.tasks.api_calling:API_CALLING",
}
"""Name of a task to its `Task`."""

DATA: Mapping[str, str] = {
    "describe": "orchestrator.tasks.dataset:describe",
    "check": "orchestrator.tasks.checking:check",
    "import": "orchestrator.sft.fetching:import_data",
    "measures": "orchestrator.sft.fetching:measures",
    "summary": "orchestrator.tasks.dataset:summary",
    "setting": "orchestrator.tasks.dataset:setting",
}
"""Verb of `sweep data` to the function that does it."""

GENERATORS: Mapping[str, str] = {
    "transformers": "orchestrator.sft.generators.transformers:TransformersEngine",
    "vllm": "orchestrator.sft.generators.vllm:VllmEngine",
}
"""`evaluation.engine` to a class that is an `Engine`."""

LAUNCHERS: Mapping[str, str] = {
    "local": "orchestrator.launchers.local:LocalLauncher",
    "slurm": "orchestrator.launchers.slurm.launcher:SlurmLauncher",
    "ray": "orchestrator.launchers.ray.launcher:RayLauncher",
}
"""`launcher.name` to a class that is a `Launcher`, or a `Submitter`, whose workers start later."""

SCHEDULERS: Mapping[str, str] = {
    "slurm": "orchestrator.launchers.slurm.query:SlurmScheduler",
    "ray": "orchestrator.launchers.ray.scheduler:RayScheduler",
}
"""`Submission.launcher` to a class that is a `Scheduler`, which answers queries about its jobs."""

TRACKERS: Mapping[str, str] = {
    "store": "orchestrator.trackers.base:StoreTracker",
    "wandb": "orchestrator.trackers.wandb_mirror:WandbMirror",
}
"""`tracker.name` to a class that is a `Tracker`, or a mirror, which follows the store instead of a stage."""

REPORTS: Mapping[str, str] = {
    "accuracy": "orchestrator.study.summary:write",
    "general": "orchestrator.reports.general:write",
    "study": "orchestrator.study.report:write",
}
"""`report` of a sweep to a function ``(rows, folder) -> list[Path]``; see `orchestrator.reporting`."""

FITTING: Mapping[str, str] = {"study": "orchestrator.study.tables.results:fits"}
"""Report to a function ``(rows, *, about) -> bool``: whether it suits rows of sweeps that name no report."""

TABLE_READER = "orchestrator.study.tables.results:read_table"
"""A function ``(path) -> rows`` that reads a table made elsewhere."""


def load(target: str, *, where: str = "") -> Any:
    """Import ``module:object``.

    Args:
        target: the object's path.
        where: where the path was found, for the message.

    Raises:
        UserError: the target is malformed, or the module or object does not exist.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{target!r} is not of the form module:object", where=where)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # An error about another module is one inside the found module: its own traceback helps more.
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UserError(f"no module {module_name!r} can be imported", where=where) from error
        raise
    if not hasattr(module, attribute):
        raise UserError(
            f"module {module_name!r} has no {attribute!r}",
            where=where,
            allowed=nearest(attribute, vars(module)),
        )
    return getattr(module, attribute)


def lookup(table: Mapping[str, str], name: str, *, kind: str) -> Any:
    """Load the object that a name stands for; a ``module:object`` outside the table is loaded directly.

    Args:
        table: names to targets.
        name: the name.
        kind: what it names, for the message.

    Raises:
        UserError: the name is not in the table and is not a ``module:object``.
    """
    # A name of ours comes first. A colon marks an object of the user's, which needs no entry.
    if name in table:
        return load(table[name])
    if ":" in name:
        return load(name, where=kind)
    raise UserError(f"unknown {kind} {name!r}", allowed=nearest(name, table))
