"""`tracker=trackio` against a server on loopback with the one call of Trackio's API that the mirror needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.trackers.protocol import Described, Followed, MetricPoint, MirrorProgress, Unavailable
from orchestrator.trackers.trackio_mirror import TrackioMirror, TrackioRun
from tests.store.builders import ledger_at
from tests.trackers.receiver import Loopback, QuietHandler

TOKEN = "a-token-to-write"


class SmallTrackio(Loopback):
    """Takes lines, each id once, as Trackio 0.43 does; a wrong token is an error in the answer."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[str, Any]] = {}
        self.num_requests = 0
        outer = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                outer.num_requests += 1
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                found: dict[str, Any] = {"data": None}
                if self.headers.get("x-trackio-write-token") != TOKEN:
                    found = {"error": "A write_token is required to log metrics or upload to this server."}
                elif self.path == "/api/bulk_log" and body.keys() == {"args", "kwargs"}:
                    for line in body["kwargs"]["logs"]:
                        outer.lines.setdefault(line["log_id"], line)
                text = json.dumps(found).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        super().__init__(Handler)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallTrackio]:
    server = SmallTrackio()
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{server.address}?write_token={TOKEN}")
    yield server
    server.close()


def test_numbers_of_a_cell_are_lines_of_its_run_and_a_refused_token_is_named_without_it(
    server: SmallTrackio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> tuple[TrackioMirror, TrackioRun]:
        mirror = TrackioMirror({"project": "mine"})
        mirror.begin(Followed("id", "s", 1, 1, ledger_at(tmp_path)))
        config = {"lr": 0.1, "api_key": "x"}
        cell = Described(id="c-id", cell="c", sweep="s", revision=1, config=config, axes={}, stages=("fit",))
        return mirror, mirror.open(cell)

    mirror, run = opened()
    assert run.progress == MirrorProgress()
    points = [MetricPoint("fit", 1, step, 1.5, {"loss": 0.5, "word": "x"}) for step in (3, 4)]
    sent = MirrorProgress(bytes={"fit": 7})
    assert run.log(points, MirrorProgress()) == 2
    run.results("fit", [{"loss": 0.25, "text": "x"}], 2.0, sent)
    run.results("fit", [{"loss": 0.25, "text": "x"}], 2.0, sent)  # as after a kill: the same line
    lines = [*server.lines.values()]
    assert [(line["step"], line["metrics"]) for line in lines] == [
        (3, {"fit/loss": 0.5}),
        (4, {"fit/loss": 0.5}),
        (0, {"fit/loss": 0.25}),
    ]
    assert {(line["project"], line["run"], line["run_id"]) for line in lines} == {("mine", "c", "c-id")}
    assert lines[0]["config"]["lr"] == 0.1 and lines[0]["config"]["api_key"] != "x"
    assert opened()[1].progress == sent and mirror.summary() == "Trackio: 1 run in project mine"
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{server.address}?write_token=another")
    with pytest.raises(Unavailable, match="refuses us") as error:
        opened()[1].log(points, MirrorProgress())
    assert "another" not in str(error.value) and len(server.lines) == 3


@pytest.mark.parametrize(
    ("options", "url", "what"),
    [
        ({}, "", "TRACKIO_SERVER_URL is not set"),
        ({}, "host?write_token=secret", "TRACKIO_SERVER_URL names no server"),
        ({"project": " "}, "http://host", "tracker.trackio.project is empty"),
        ({"projekt": "x"}, "http://host", "tracker.trackio"),
    ],
)
def test_what_cannot_work_is_refused_before_a_launch(
    options: dict[str, Any], url: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_SERVER_URL", url)
    with pytest.raises(UserError, match=what) as error:
        TrackioMirror(options).check()
    assert "secret" not in str(error.value)


@pytest.mark.long
def test_each_line_and_result_is_there_once_and_the_token_nowhere_else(
    two: Any, server: SmallTrackio, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = two("launch", "two.yaml", "tracker=trackio")
    assert "Trackio: 2 runs in project polysweep" in said and len(server.lines) == 18
    cells = {cell["cell"] for cell in two.json("status", "two")["cells"]}
    assert {line["run"] for line in server.lines.values()} == cells
    steps = [line["step"] for line in server.lines.values() if "count/value" in line["metrics"]]
    assert sorted(steps) == sorted([*range(1, 9)] * 2)
    num_requests = server.num_requests
    assert "nothing was missing" in two("sync", "two", "--to", "trackio")
    assert server.num_requests == num_requests
    for path in two.store.glob("sweeps/two/trackio/sent-*.json"):  # killed before anything was noted
        path.unlink()
    two("sync", "two", "--to", "trackio")
    assert len(server.lines) == 18
    assert not [p for p in two.store.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{server.address}?write_token=another")
    assert "Trackio: 2 runs" not in two("launch", "two.yaml", "tracker=trackio")  # nothing to send
    two("discard", "two", "seed=0", "--stage", "count", "--reason", "again")
    said = two("launch", "two.yaml", "tracker=trackio")
    assert said.count("refuses us") == 1 and "check TRACKIO_SERVER_URL" in said and "another" not in said
    monkeypatch.delenv("TRACKIO_SERVER_URL")
    assert "TRACKIO_SERVER_URL is not set" in two("launch", "two.yaml", "tracker=trackio", code=2)
