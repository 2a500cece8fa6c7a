"""Cells as runs in Weights & Biases: where they go, how a metric and a row are named there.

It knows no store. The library is imported when the first run is opened, never by a stage's process.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from orchestrator.core.secrets import masked
from orchestrator.core.typed import typed
from orchestrator.errors import UserError
from orchestrator.trackers.follow import Described

INIT_S = 20.0
"""How long the server may take to answer; then runs are kept on this machine, for ``wandb sync``."""


class WandbOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`tracker.options` of `conf/tracker/wandb.yaml`.

    Attributes:
        project: in W&B.
        entity: the team or user; None for the default one of the key.
        mode: online or offline; None for what WANDB_MODE says, else online where a key is found.
        dir: where its files go; None for WANDB_DIR, else the sweep's folder in the store.
    """

    project: str = "polysweep"
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None
    dir: str | None = None


class WandbMirror:
    """Opens runs; where the server does not answer the first one, all are offline ones.

    Args:
        options: `tracker.options`.
        folder: where files go unless the options or the environment say otherwise.

    Raises:
        UserError: an unknown option or a wrong type.
    """

    follows_store = True

    def __init__(self, options: Mapping[str, Any], folder: Path) -> None:
        self.options = typed(dict(options), WandbOptions, key="tracker.options")
        if not self.options.project.strip() or set(self.options.project) & set("/\\#?%:"):
            raise UserError(
                f"tracker.options.project is {self.options.project!r}", allowed="a name without / \\ # ? % :"
            )
        self.folder = Path(self.options.dir or os.environ.get("WANDB_DIR") or folder).expanduser().absolute()
        self.mode = self.options.mode or mode_of(os.environ)
        self._num_opened = 0

    def open(self, cell: Described) -> WandbRun:
        """Opens the run of a cell, or goes on with it."""
        import wandb

        try:
            run = WandbRun(self._init(wandb, cell))
            self._num_opened += 1
            return run
        except Exception as error:
            if self.mode != "online" or self._num_opened:  # a server that answered once may answer again
                raise
            self.mode = "offline"
            wandb.teardown()  # else its service still holds the run's id
            print(f"W&B cannot be reached, runs are kept here: {type(error).__name__}: {error}", flush=True)
            return WandbRun(self._init(wandb, cell))

    def _init(self, wandb: Any, cell: Described) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):  # the library would quietly use a temporary folder
            raise PermissionError(f"{self.folder} is not writable")
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_S,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,  # of this machine, which is not where the cell ran
            x_disable_stats=True,
        )
        run = wandb.init(
            project=self.options.project,
            entity=self.options.entity,
            dir=str(self.folder),
            id=cell.id,
            name=cell.cell,
            group=cell.sweep,
            config={**masked(cell.config), "polysweep": _facts(cell)},
            mode=self.mode,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        for stage in cell.stages:  # a retried stage logs steps again: its own axis, not W&B's growing one
            run.define_metric(f"{stage}/step")
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        return run

    def farewell(self, num_runs: int) -> str:
        """Says in one line what was done, and what is left to do."""
        if not num_runs:
            return "W&B: nothing new"
        runs = "1 run" if num_runs == 1 else f"{num_runs} runs"
        if self.mode == "online":
            return f"W&B: {runs} in project {self.options.project}"
        return f"W&B: {runs} kept here; upload: wandb sync {self.folder / 'wandb'}/offline-run-*"


class WandbRun:
    """One cell's run in W&B."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        """Logs ``train/loss`` against ``train/step``; what is no number is left out."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self._run.log({f"{stage}/{name}": value for name, value in {**numbers, "step": step}.items()})

    def results(self, stage: str, rows: Sequence[dict[str, Any]]) -> None:
        """Puts rows into the run's summary."""
        self._run.summary.update(summary_of(stage, rows))

    def close(self, *, done: bool) -> None:
        """Ends the run, with exit code 0 when the cell is done."""
        self._run.finish(exit_code=0 if done else 1)


def summary_of(stage: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Names every number of the rows: by stage and column, and by the texts in which the rows differ.

    Six rows with ``eval_language`` and ``accuracy`` become ``evaluate/accuracy/en`` and so on. A column that
    is the same in all rows keeps its plain name, as do all columns of a single row.
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    constant = {name for name in columns if all(row.get(name) == rows[0].get(name) for row in rows)}
    labels = [
        n for n in columns if n not in constant and all(isinstance(row.get(n), str | None) for row in rows)
    ]
    summary: dict[str, Any] = {}
    for number, row in enumerate(rows, start=1):
        label = "/".join(str(row[name]) for name in labels if row.get(name) is not None) or str(number)
        for name, value in row.items():
            if isinstance(value, str | int | float) and name not in labels:
                summary[f"{stage}/{name}" if name in constant else f"{stage}/{name}/{label}"] = value
    return summary


def mode_of(environment: Mapping[str, str]) -> str:
    """Returns ``offline`` where W&B has no key to use, unless WANDB_MODE says otherwise."""
    said = environment.get("WANDB_MODE", "").strip().lower()
    if said in ("online", "offline"):
        return said
    return "online" if said not in ("disabled", "dryrun") and has_key(environment) else "offline"


def has_key(environment: Mapping[str, str]) -> bool:
    """Whether WANDB_API_KEY or the netrc file has a key for the server."""
    if environment.get("WANDB_API_KEY"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    names = [environment["NETRC"]] if environment.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in (Path(name).expanduser() for name in names):
        try:
            found = netrc.netrc(path).hosts.get(host or "")
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        if found and found[2]:
            return True
    return False


def _facts(cell: Described) -> dict[str, Any]:
    return {"sweep": cell.sweep, "revision": cell.revision, "cell": cell.cell, "axes": cell.axes}
