"""Cells as runs in Weights & Biases: where they go, and how metrics and rows are named there.

It does not read the store. The library is imported when the first run is opened, never by a stage's process.
"""

from __future__ import annotations

import hashlib
import netrc
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from orchestrator.core.secrets import masked
from orchestrator.core.tree import convert
from orchestrator.errors import UserError, counted, home_expanded, one_line, words_of
from orchestrator.store import layout
from orchestrator.trackers.protocol import (
    DONE,
    Described,
    Followed,
    MetricPoint,
    MirrorProgress,
    Notes,
    log,
    summary_of,
)

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

    How much a run was sent is noted when it is closed, apart for each server and for the offline runs. What a
    server has beyond that, because a mirror was killed or an offline run was uploaded, it counts in lines.

    Args:
        options: `tracker.options`.
        folder: folder for its files, unless the options or the environment name one; None for the sweep's
            folder in the store.

    Raises:
        UserError: an option is unknown or has a wrong type.
    """

    title = "W&B"

    def __init__(self, options: Mapping[str, Any], folder: Path | None = None) -> None:
        self.options = convert(dict(options), WandbOptions, key="tracker.options")
        if not self.options.project.strip() or set(self.options.project) & set("/\\#?%:"):
            raise UserError(
                f"tracker.options.project is {self.options.project!r}", allowed="a name without / \\ # ? % :"
            )
        named = self.options.dir or os.environ.get("WANDB_DIR") or folder
        self.folder = home_expanded(named).absolute() if named else None
        self.mode = self.options.mode or mode_of(os.environ)
        self.problem = ""
        self._notes: dict[str, Notes] = {}
        self._online = self._replaced = self._kept = 0
        self._open = 0  # offline runs that are not closed: a teardown would end them too
        self._retry_s = 0.0

    def check(self) -> None:
        """Do nothing: without a key, runs are kept on this machine."""

    def begin(self, sweep: Followed) -> None:
        """Take the sweep's folder for the files, and for the notes."""
        own = layout.mirror(sweep.name, "wandb")
        place = sweep.ledger.objects.workspace(own)
        self.folder = self.folder or place.parent
        server = [os.environ.get("WANDB_BASE_URL", ""), self.options.entity, self.options.project]
        digest = hashlib.sha256(msgspec.json.encode(server)).hexdigest()[:8]
        names = {"offline": "mirrored.json", "online": f"online-{digest}.json"}
        self._notes = {mode: Notes(sweep.ledger.objects, own, name) for mode, name in names.items()}

    def progress(self, id: str) -> MirrorProgress:
        """Return what was noted of a run."""
        return self._notes[self.mode].of(id)

    def forget(self, id: str) -> bool:
        """Keep what is known: an open run may still send it."""
        return False

    def end(self) -> None:
        """Do nothing: W&B has no run for a sweep."""

    def open(self, cell: Described) -> WandbRun:
        """Open or resume the run of a cell; use another id if that run was deleted in W&B."""
        # The settings of a run come too late for its first lines.
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        if self.mode != "online" or self._open or time.monotonic() < self._retry_s:
            return self._offline(wandb, cell)
        noted = self._notes["online"].of(cell.id)
        first = noted.id or cell.id
        for number in range(1, MAX_IDS + 1):
            id = first if number == 1 else f"{first}-{number}"
            try:
                run = self._init(wandb, cell, id, "online")
            except Exception as error:
                if was_deleted(error) and number < MAX_IDS:
                    log(f"{cell.cell}: its run {id} was deleted in W&B, another takes its place")
                    noted = MirrorProgress()
                    continue
                if self._online:  # the server worked before, so the next pass tries again
                    raise
                self._retry_s = time.monotonic() + RETRY_S
                wandb.teardown()  # its service would otherwise still hold the run's id
                self.problem = f"it takes no runs, they are kept here: {one_line(words_of(error))}"
                log(f"W&B takes no runs, they are kept here: {type(error).__name__}: {error}")
                return self._offline(wandb, cell)
            self._online += 1
            self._replaced += number > 1
            # More lines there than noted: the first ones to come are there already.
            skip = max(0, run.starting_step - noted.lines)
            known = msgspec.structs.replace(noted, id="" if id == cell.id else id)
            return WandbRun(run, id, known, skip, lambda sent: self._uploaded(cell.id, sent))
        raise AssertionError("the last id was tried")

    def _offline(self, wandb: Any, cell: Described) -> WandbRun:
        def closed(sent: MirrorProgress) -> None:
            self._open -= 1
            self._notes["offline"].note(cell.id, sent)

        run = self._init(wandb, cell, cell.id, "offline")
        self._kept += 1
        self._open += 1
        return WandbRun(run, cell.id, self._notes["offline"].of(cell.id), 0, closed)

    def _uploaded(self, id: str, sent: MirrorProgress) -> None:
        """Note what the server has, and delete the offline runs that hold a part of it."""
        self._notes["online"].note(id, sent)
        assert self.folder is not None
        for path in self.folder.glob(f"wandb/offline-run-*-{id}"):
            shutil.rmtree(path, ignore_errors=True)

    def _init(self, wandb: Any, cell: Described, id: str, mode: str) -> Any:
        """Start a run of the library.

        Raises:
            PermissionError: the folder for its files is not writable.
            Exception: whatever the library raises.
        """
        assert self.folder is not None
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

    def summary(self) -> str:
        """Return one line about what was done, and what is left to do."""
        parts = []
        if self._online:
            replaced = f", of which {self._replaced} replace runs deleted there" if self._replaced else ""
            parts.append(f"{counted(self._online, 'run')} in project {self.options.project}{replaced}")
        if self._kept:
            upload = f"wandb sync {self.folder}/wandb/offline-run-*"
            parts.append(f"{counted(self._kept, 'run')} kept here; upload: {upload}")
        return f"W&B: {', '.join(parts) or 'nothing new'}"


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
        progress: what it has.
        skip: number of lines that it has beyond that.
        closed: called with what it has, once it has ended.
    """

    def __init__(
        self,
        run: Any,
        id: str,
        progress: MirrorProgress,
        skip: int,
        closed: Callable[[MirrorProgress], None],
    ) -> None:
        self._run = run
        self._skip = skip
        self._closed = closed
        self.id = id
        self.progress = progress

    def log(self, points: Sequence[MetricPoint], sent: MirrorProgress) -> int:
        """Log ``train/loss`` against ``train/step``; leave out what is not a number."""
        new = points[self._skip :]
        self._skip -= len(points) - len(new)
        for point in new:
            numbers = {name: value for name, value in point.metrics.items() if isinstance(value, int | float)}
            line = {**numbers, "attempt": point.attempt, "step": point.step}
            self._run.log({f"{point.stage}/{name}": value for name, value in line.items()})
        self.progress = sent
        return len(new)

    def results(self, stage: str, rows: Sequence[dict[str, Any]], at: float, sent: MirrorProgress) -> None:
        """Put rows into the run's summary."""
        self._run.summary.update(summary_of(stage, rows))
        self.progress = sent

    def mark(self, state: str, at: float) -> None:
        """Do nothing: the library uploads by itself."""

    def close(self, state: str) -> None:
        """End the run, with exit code 0 if the cell is done."""
        self._run.finish(exit_code=0 if state == DONE else 1)
        self._closed(self.progress)


def mode_of(environment: Mapping[str, str]) -> str:
    """Return ``online`` or ``offline``: as WANDB_MODE demands, else by whether W&B has a key to use."""
    mode = environment.get("WANDB_MODE", "").strip().lower()
    if mode in ("online", "offline"):
        return mode
    return "online" if mode not in ("disabled", "dryrun") and has_key(environment) else "offline"


def has_key(environment: Mapping[str, str]) -> bool:
    """Whether WANDB_API_KEY or the netrc file has a key for the server."""
    if environment.get("WANDB_API_KEY"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    names = [environment["NETRC"]] if environment.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in map(home_expanded, names):
        try:
            found = netrc.netrc(path).hosts.get(host or "")
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        if found and found[2]:
            return True
    return False


def _facts(cell: Described) -> dict[str, Any]:
    return {"sweep": cell.sweep, "revision": cell.revision, "cell": cell.cell, "axes": cell.axes}
