"""Cells as runs in MLflow: where they go, and how metrics, configs and rows are named there.

A sweep is a run, and its cells are nested runs. They are found by the tag `polysweep.run`, never by name. How
much of a cell was sent is a tag of its run, written by the request that carries the metrics, so the server
itself holds the cursor. A server may stop between the two parts of a request. What is then sent again has
equal times, steps and values, of which a server on a database keeps one.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orchestrator.core.secrets import masked
from orchestrator.core.tree import convert
from orchestrator.errors import UserError, counted
from orchestrator.trackers.mlflow_server import STATUS, Server, address_of, milliseconds
from orchestrator.trackers.protocol import (
    BROKEN,
    DONE,
    RUNNING,
    STOPPED,
    Described,
    Followed,
    MetricPoint,
    MirrorProgress,
    as_text,
    flat,
    is_number,
    summary_of,
)

MAX_METRICS, MAX_PARAMS, MAX_TAGS = 900, 100, 100
"""Of one `log-batch`: the server takes 1000 entries in all, with 100 params and 100 tags among them."""
MAX_VALUE, MAX_TAG, MAX_KEY = 500, 5000, 250
"""Characters of a param's value (of all servers up to 2.7), of a tag's, and of a name."""

_RUN, _SWEEP, _STATE = "polysweep.run", "polysweep.sweep_id", "polysweep.state"
_SENT, _RESULT = "polysweep.sent.", "polysweep.result."


class MlflowOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`tracker.mlflow` of `conf/tracker/mlflow.yaml`.

    Attributes:
        experiment: name of the experiment; it is made if it is not there.
    """

    experiment: str = "polysweep"


@dataclass
class FoundRun:
    """A run on the server: its id there, the params that it has, and how much of a cell it was sent."""

    id: str
    params: set[str] = field(default_factory=set)
    progress: MirrorProgress = field(default_factory=MirrorProgress)


class MlflowMirror:
    """The mirror to the MLflow server that MLFLOW_TRACKING_URI names.

    Args:
        options: `tracker.mlflow`.

    Raises:
        UserError: an option is unknown or has a wrong type.
    """

    title = "MLflow"
    problem = ""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = convert(dict(options), MlflowOptions, key="tracker.mlflow")
        if not self.options.experiment.strip():
            raise UserError("tracker.mlflow.experiment is empty", fix="tracker.mlflow.experiment=NAME")
        self._server: Server | None = None
        self._experiment = ""
        self._sweep: Followed | None = None
        self._found: dict[str, FoundRun] | None = None
        self._opened: set[str] = set()

    def check(self) -> None:
        """Raise `UserError` unless the environment names a server."""
        address_of(os.environ)

    def begin(self, sweep: Followed) -> None:
        """Remember the sweep. The first request is made when something is to be sent."""
        self._server = Server(os.environ)
        self._sweep = sweep

    def progress(self, id: str) -> MirrorProgress:
        """Return what the server has of a cell."""
        found = self._runs().get(id)
        return found.progress if found else MirrorProgress()

    def open(self, cell: Described) -> MlflowRun:
        """Return the run of a cell; create it, and the sweep's, if necessary."""
        sweep, server = self._followed()
        found = self._runs()
        parent = self._create(sweep.id, sweep.name, "", {"polysweep.sweep": sweep.name}, cell.began)
        self._show(parent, RUNNING)
        tags = {
            "polysweep.sweep": cell.sweep,
            "polysweep.cell": cell.cell,
            "polysweep.revision": str(cell.revision),
            **{f"axis.{clean(name)}": label for name, label in cell.axes.items()},
        }
        run = self._create(cell.id, cell.cell, parent.id, tags, cell.began)
        params = {clean(key): as_text(value)[:MAX_VALUE] for key, value in flat(masked(cell.config))}
        missing = [{"key": key, "value": value} for key, value in params.items() if key not in run.params]
        for first in range(0, len(missing), MAX_PARAMS):
            server.call("runs/log-batch", {"run_id": run.id, "params": missing[first : first + MAX_PARAMS]})
        run.params |= params.keys()
        found[cell.id] = run
        self._opened.add(cell.id)
        return MlflowRun(server, cell.id, run)

    def forget(self, id: str) -> bool:
        """Search again before the next request: after an error it is unclear what the server has."""
        self._found = None
        return True

    def end(self) -> None:
        """Set the status of the sweep's run by those of its cells."""
        sweep, _ = self._followed()
        parent = (self._found or {}).get(sweep.id)
        if self._found is None or parent is None:
            return
        states = {run.progress.state for run in self._found.values() if run is not parent}
        if len(self._found) <= sweep.num_cells:
            states.add(STOPPED)  # cells that never began have no run
        self._show(parent, next((s for s in (RUNNING, BROKEN, STOPPED) if s in states), DONE))

    def _show(self, run: FoundRun, state: str) -> None:
        """Set the status of a run, if it has another one."""
        if run.progress.state != state:
            self._followed()[1].set_state(run.id, state, 0.0)
            run.progress = msgspec.structs.replace(run.progress, state=state)

    def summary(self) -> str:
        """Return one line about what was done."""
        runs = f"{counted(len(self._opened), 'run')} in experiment {self.options.experiment}"
        return f"{self.title}: {runs if self._opened else 'nothing new'}"

    def _followed(self) -> tuple[Followed, Server]:
        assert self._sweep is not None and self._server is not None
        return self._sweep, self._server

    def _create(self, key: str, name: str, parent: str, tags: dict[str, str], began: float) -> FoundRun:
        """Return the run with a key; create it if there is none."""
        sweep, server = self._followed()
        found = self._runs()
        if key not in found:
            nested = {"mlflow.parentRunId": parent} if parent else {}
            body = {
                "experiment_id": self._experiment,
                "run_name": name,
                "start_time": milliseconds(began) or int(time.time() * 1000),
                "tags": pairs({_RUN: key, _SWEEP: sweep.id, "mlflow.source.name": "sweep", **nested, **tags}),
            }
            made = server.call("runs/create", body)["run"]["info"]["run_id"]
            found[key] = FoundRun(made, progress=MirrorProgress(state=RUNNING))
        return found[key]

    def _runs(self) -> dict[str, FoundRun]:
        """Return the runs of the sweep by key, as one search found them."""
        if self._found is None:
            sweep, server = self._followed()
            self._experiment = server.experiment(self.options.experiment)
            found: dict[str, FoundRun] = {}
            for run in server.search(self._experiment, f"tags.`{_SWEEP}` = '{sweep.id}'"):
                tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", ())}
                # Of two mirrors that created a run at one moment, all use the one that is found first.
                found.setdefault(tags.get(_RUN, ""), found_run(run, tags))
            self._found = found
        return self._found


class MlflowRun:
    """One cell's run in MLflow.

    Args:
        server: the server.
        id: key of the run.
        run: as it was found there.
    """

    def __init__(self, server: Server, id: str, run: FoundRun) -> None:
        self._server = server
        self._run = run
        self.id = id

    @property
    def progress(self) -> MirrorProgress:
        """What the run has."""
        return self._run.progress

    def log(self, points: Sequence[MetricPoint], sent: MirrorProgress) -> int:
        """Send ``train/loss`` at its step and time; what is no number is left out."""
        metrics = [
            entry(f"{point.stage}/{name}", value, point.step, point.at)
            for point in points
            for name, value in point.metrics.items()
            if is_number(value) and name != "time_s"
        ]
        self._send(metrics, sent)
        return len(points)

    def results(self, stage: str, rows: Sequence[dict[str, Any]], at: float, sent: MirrorProgress) -> None:
        """Send every number of the rows as a metric at step 0."""
        found = summary_of(stage, rows).items()
        self._send([entry(name, value, 0, at) for name, value in found if is_number(value)], sent)

    def mark(self, state: str, at: float) -> None:
        """Set the status of the run, if it has another one, and when it ended."""
        if self._run.progress.state != state:
            body = {"run_id": self._run.id, "tags": pairs({_STATE: state})}
            self._server.call("runs/log-batch", body)
            self._server.set_state(self._run.id, state, at)
            self._run.progress = msgspec.structs.replace(self._run.progress, state=state)

    def close(self, state: str) -> None:
        """Do nothing: all was sent, and marked."""

    def _send(self, metrics: list[dict[str, Any]], sent: MirrorProgress) -> None:
        """Send metrics, and with the last of them the cursor."""
        before = self._run.progress
        tags = {f"{_SENT}{key}": str(n) for key, n in sent.bytes.items() if before.bytes.get(key) != n}
        tags |= {f"{_RESULT}{key}": "sent" for key in sent.products if key not in before.products}
        for first in range(0, max(1, len(metrics)), MAX_METRICS):
            part = metrics[first : first + MAX_METRICS]
            body: dict[str, Any] = {"run_id": self._run.id, "metrics": part}
            if first + MAX_METRICS >= len(metrics):
                body["tags"] = pairs(tags)
            self._server.call("runs/log-batch", body)
        self._run.progress = msgspec.structs.replace(sent, state=before.state, id="")


def found_run(run: Any, tags: Mapping[str, str]) -> FoundRun:
    """Return a run of a search with the progress that its tags hold."""
    known = {status: state for state, status in STATUS.items()}
    # Anybody may edit tags there. What is sent again for a damaged one, the server keeps once.
    sent = {
        key.removeprefix(_SENT): int(n)
        for key, n in tags.items()
        if key.startswith(_SENT) and re.fullmatch("[0-9]+", n)
    }
    progress = MirrorProgress(
        bytes=sent,
        products=[key.removeprefix(_RESULT) for key in tags if key.startswith(_RESULT)],
        state=known.get(run["info"].get("status", ""), RUNNING),
    )
    params = {param["key"] for param in run["data"].get("params", ())}
    return FoundRun(run["info"]["run_id"], params, progress)


def clean(name: str) -> str:
    """Return a name that every server takes: letters, digits and ``_ - . space : /``, and no path upwards.

    A name that has to be changed ends with a digest, so that no two become one.
    """
    parts = [part for part in re.sub(r"[^\w.\- :/]", "_", name).split("/") if part not in ("", ".", "..")]
    text = "/".join(parts)
    if text == name and len(text) <= MAX_KEY:
        return name
    return f"{text[: MAX_KEY - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def entry(name: str, value: float, step: int, at: float) -> dict[str, Any]:
    """Return a metric of a request. The time is that of the record, so that it is the same each time."""
    return {"key": clean(name), "value": float(value), "timestamp": milliseconds(at), "step": step}


def pairs(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as a request has them."""
    return [{"key": clean(key), "value": value[:MAX_TAG]} for key, value in tags.items()][:MAX_TAGS]
