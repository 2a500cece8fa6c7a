"""Cells as runs in Weights & Biases: where they go, and how metrics and rows are named there.

It does not read the store. The library is imported when the first run is opened, never by a stage's process.
"""

from __future__ import annotations

import netrc
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from orchestrator.core.secrets import masked
from orchestrator.core.tree import convert
from orchestrator.errors import UserError
from orchestrator.trackers.mirror import Described

INIT_S = 20.0
"""Seconds to wait for the server. After that, runs are stored on this machine, for ``wandb sync``."""


RETRY_S = 300.0
"""Seconds during which runs are stored offline before the server is tried again."""

MAX_IDS = 3
"""Ids to try for a cell whose run was deleted."""


class WandbOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`tracker.options` of `conf/tracker/wandb.yaml`.

    Attributes:
        project: the project in W&B.
        entity: the team or user; None for the default of the API key.
        mode: online or offline; None for the value of WANDB_MODE, else online if a key is found.
        dir: folder for its files; None for WANDB_DIR, else the sweep's folder in the store.
    """

    project: str = "polysweep"
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None
    dir: str | None = None


class WandbMirror:
    """The mirror that opens runs in W&B. While the server is unavailable, it opens offline runs.

    Args:
        options: `tracker.options`.
        folder: folder for its files, unless the options or the environment name one.

    Raises:
        UserError: an option is unknown or has a wrong type.
    """

    follows_store = True

    def __init__(self, options: Mapping[str, Any], folder: Path) -> None:
        self.options = convert(dict(options), WandbOptions, key="tracker.options")
        if not self.options.project.strip() or set(self.options.project) & set("/\\#?%:"):
            raise UserError(
                f"tracker.options.project is {self.options.project!r}", allowed="a name without / \\ # ? % :"
            )
        self.folder = Path(self.options.dir or os.environ.get("WANDB_DIR") or folder).expanduser().absolute()
        self.mode = self.options.mode or mode_of(os.environ)
        self._online = self._replaced = self._kept = 0
        self._open = 0  # offline runs that are not closed: a teardown would end them too
        self._retry_s = 0.0

    def open(self, cell: Described) -> WandbRun:
        """Open or resume the run of a cell; use another id if that run was deleted in W&B."""
        import wandb

        if self.mode != "online" or self._open or time.monotonic() < self._retry_s:
            return self._offline(wandb, cell)
        for number in range(1, MAX_IDS + 1):
            id = cell.id if number == 1 else f"{cell.id}-{number}"
            try:
                run = WandbRun(self._init(wandb, cell, id, "online"), id)
            except Exception as error:
                if was_deleted(error) and number < MAX_IDS:
                    print(
                        f"{cell.cell}: its run {id} was deleted in W&B, another takes its place", flush=True
                    )
                    continue
                if self._online:  # the server worked before, so the next pass tries again
                    raise
                self._retry_s = time.monotonic() + RETRY_S
                wandb.teardown()  # its service would otherwise still hold the run's id
                print(f"W&B takes no runs, they are kept here: {type(error).__name__}: {error}", flush=True)
                return self._offline(wandb, cell)
            self._online += 1
            self._replaced += number > 1
            return run
        raise AssertionError("the last id was tried")

    def _offline(self, wandb: Any, cell: Described) -> WandbRun:
        run = WandbRun(self._init(wandb, cell, cell.id, "offline"), cell.id, self._closed)
        self._kept, self._open = self._kept + 1, self._open + 1
        return run

    def _closed(self) -> None:
        self._open -= 1

    def _init(self, wandb: Any, cell: Described, id: str, mode: str) -> Any:
        """Start a run of the library.

        Raises:
            PermissionError: the folder for its files is not writable.
            Exception: whatever the library raises.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):  # the library would silently use a temporary folder
            raise PermissionError(f"{self.folder} is not writable")
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_S,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,  # facts about this machine, where the cell did not run
            x_disable_stats=True,
        )
        run = wandb.init(
            project=self.options.project,
            entity=self.options.entity,
            dir=str(self.folder),
            id=id,
            name=cell.cell,
            group=cell.sweep,
            config={**masked(cell.config), "polysweep": _facts(cell)},
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        # W&B's own step may only grow, but a retried stage logs steps again: give each stage its own axis.
        for stage in cell.stages:
            run.define_metric(f"{stage}/step")
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        return run

    def farewell(self) -> str:
        """Return one line about what was done, and what is left to do."""
        parts = []
        if self._online:
            anew = f", {self._replaced} anew for such as were deleted there" if self._replaced else ""
            parts.append(f"{_runs(self._online)} in project {self.options.project}{anew}")
        if self._kept:
            upload = f"wandb sync {self.folder / 'wandb'}/offline-run-*"
            parts.append(f"{_runs(self._kept)} kept here; upload: {upload}")
        return f"W&B: {', '.join(parts) or 'nothing new'}"


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def was_deleted(error: Exception) -> bool:
    """Return whether W&B refuses an id because its run was deleted: such an id is never available again.

    The server answers 409, which the library passes on only in the text of its error (wandb 0.25 to 0.31).
    """
    return re.search(r"\bHTTP 409\b|previously created and deleted", str(error)) is not None


class WandbRun:
    """One cell's run in W&B.

    Args:
        run: the library's run.
        id: its id in W&B.
        closed: called once it has ended.
    """

    def __init__(self, run: Any, id: str, closed: Callable[[], None] = lambda: None) -> None:
        self._run, self.id, self._closed = run, id, closed

    def log(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        """Log ``train/loss`` against ``train/step``; leave out what is not a number."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self._run.log({f"{stage}/{name}": value for name, value in {**numbers, "step": step}.items()})

    def results(self, stage: str, rows: Sequence[dict[str, Any]]) -> None:
        """Put rows into the run's summary."""
        self._run.summary.update(summary_of(stage, rows))

    def close(self, *, done: bool) -> None:
        """End the run, with exit code 0 if the cell is done."""
        try:
            self._run.finish(exit_code=0 if done else 1)
        finally:
            self._closed()


def summary_of(stage: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return every number of the rows under a name: stage, column, and the texts in which the rows differ.

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
    """Return ``online`` or ``offline``: as WANDB_MODE demands, else by whether W&B has a key to use."""
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
