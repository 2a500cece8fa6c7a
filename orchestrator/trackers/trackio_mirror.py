"""Cells as runs in Trackio, by the HTTP API of a dashboard that its own `trackio show` serves.

Each line of metrics has an id that its content gives, and the server takes an id once. So the note of how far
a run was sent only saves requests. The server gives each line the time of its arrival.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from orchestrator.core.secrets import masked
from orchestrator.core.tree import convert
from orchestrator.errors import UserError, counted, one_line
from orchestrator.store import layout
from orchestrator.trackers.protocol import (
    Described,
    Followed,
    HttpServer,
    MetricPoint,
    MirrorProgress,
    Notes,
    is_address,
    is_number,
    summary_of,
)

_URL = "TRACKIO_SERVER_URL"


class TrackioOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`tracker.trackio` of `conf/tracker/trackio.yaml`.

    Attributes:
        project: the project on the server.
    """

    project: str = "polysweep"


class TrackioMirror:
    """The mirror to the server that TRACKIO_SERVER_URL names, with its ``write_token``.

    Args:
        options: `tracker.trackio`.

    Raises:
        UserError: an option is unknown or has a wrong type.
    """

    title = "Trackio"
    problem = ""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = convert(dict(options), TrackioOptions, key="tracker.trackio")
        if not self.options.project.strip():
            raise UserError("tracker.trackio.project is empty", fix="tracker.trackio.project=NAME")
        self._server: HttpServer | None = None
        self._notes: Notes | None = None
        self._opened: set[str] = set()

    def check(self) -> None:
        """Raise `UserError` unless the environment names a server."""
        server_of(os.environ)

    def begin(self, sweep: Followed) -> None:
        """Take the notes about this server and project."""
        self._server = server_of(os.environ)
        place = hashlib.sha256(f"{self._server.host} {self.options.project}".encode()).hexdigest()[:8]
        own = layout.mirror(sweep.name, "trackio")
        self._notes = Notes(sweep.ledger.objects, own, f"sent-{place}.json")

    def progress(self, id: str) -> MirrorProgress:
        """Return what was noted of a run."""
        assert self._notes is not None
        return self._notes.of(id)

    def open(self, cell: Described) -> TrackioRun:
        """Return the run of a cell; the server makes it with its first line."""
        assert self._server is not None and self._notes is not None
        self._opened.add(cell.id)
        return TrackioRun(self._server, self._notes, self.options.project, cell)

    def forget(self, id: str) -> bool:
        """Read the note again: it is never ahead of the server."""
        return True

    def end(self) -> None:
        """Do nothing: a sweep is a group of runs."""

    def summary(self) -> str:
        """Return one line about what was done."""
        runs = f"{counted(len(self._opened), 'run')} in project {self.options.project}"
        return f"{self.title}: {runs if self._opened else 'nothing new'}"


class TrackioRun:
    """One cell's run in Trackio.

    Args:
        server: the server.
        notes: of what runs were sent.
        project: of the run.
        cell: the cell.
    """

    def __init__(self, server: HttpServer, notes: Notes, project: str, cell: Described) -> None:
        self._server = server
        self._notes = notes
        self._project = project
        self._cell = cell
        self.id = cell.id
        self.progress = notes.of(cell.id)

    def log(self, points: Sequence[MetricPoint], sent: MirrorProgress) -> int:
        """Send ``train/loss`` at its step; what is no number is left out."""
        self._send([self._entry(p.stage, p.metrics, p.step, [p.attempt, p.at]) for p in points], sent)
        return len(points)

    def results(self, stage: str, rows: Sequence[dict[str, Any]], at: float, sent: MirrorProgress) -> None:
        """Send every number of the rows as one line at step 0."""
        self._send([self._entry("", summary_of(stage, rows), 0, [at])], sent)

    def mark(self, state: str, at: float) -> None:
        """Do nothing: a run has no state there."""

    def close(self, state: str) -> None:
        """Do nothing: each batch was noted when it was sent."""

    def _entry(self, stage: str, values: Mapping[str, Any], step: int, of: list[float]) -> dict[str, Any]:
        numbers = {f"{stage}/{k}".lstrip("/"): v for k, v in values.items() if is_number(v) and k != "time_s"}
        content = msgspec.json.encode([self.id, stage, step, *of, numbers], order="sorted")
        config = {**masked(self._cell.config), "_Group": self._cell.sweep}
        return {
            "project": self._project,
            "run": self._cell.cell,
            "run_id": self.id,
            "metrics": numbers,
            "step": step,
            "config": {**config, "polysweep": {"cell": self._cell.cell, "revision": self._cell.revision}},
            "log_id": hashlib.sha256(content).hexdigest(),
        }

    def _send(self, lines: list[dict[str, Any]], sent: MirrorProgress) -> None:
        """Send lines, then note it."""
        for line in lines[1:]:
            del line["config"]  # the server takes the first of a request
        answer = self._server.request(
            "/api/bulk_log", {"args": [], "kwargs": {"logs": lines, "hf_token": None}}
        )
        try:
            error = str(answer.json().get("error") or "")
        except (ValueError, AttributeError):
            raise self._server.unexpected(answer.status_code, _URL) from None
        if "write_token" in error:
            raise self._server.refused("")
        if error or answer.status_code != 200:
            raise RuntimeError(f"Trackio refuses a line: {one_line(error) or answer.status_code}")
        self._notes.note(self.id, sent)
        self.progress = sent


def server_of(environment: Mapping[str, str]) -> HttpServer:
    """Return the server that TRACKIO_SERVER_URL names.

    Raises:
        UserError: it is not set, or is no address of a server.
    """
    text = environment.get(_URL, "")
    if not is_address(text):
        # The value is not shown: it may hold the token.
        raise UserError(
            f"{_URL} {'names no server' if text else 'is not set'}, and tracker=trackio sends to one",
            allowed="the address with write_token that `trackio show` prints",
            fix=f"export {_URL}='http://127.0.0.1:7860?write_token=...'",
        )
    url = urlsplit(text)
    token = parse_qs(url.query).get("write_token", [""])[0]
    address = url._replace(query="", fragment="").geturl().rstrip("/")
    return HttpServer(address, names=_URL, headers={"x-trackio-write-token": token})
