"""What mirrors and channels send, and what they print, is as recorded, see ../recording.py."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SweepError
from orchestrator.registry import MIRRORS, lookup
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.trackers import notifier, protocol
from orchestrator.trackers.mirror import MirrorPasses
from orchestrator.trackers.protocol import Described, Followed, MetricPoint, MirrorProgress, Unavailable
from tests.recording import Answers, answer, compare, compare_text, plain
from tests.seen import moment
from tests.store.study import Study
from tests.store.study_records import NOW_S
from tests.trackers.mlflow_server import SmallMlflow
from tests.trackers.receiver import Loopback, QuietHandler, receiving, refusing

RECORDED = Path(__file__).parent / "recorded"


class Answering(Loopback):
    """Answers each request by the next of some answers, and by the last one from then on."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any, dict[str, str]]] = []
        self.got: list[str] = []
        outer = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                outer.got.append(f"POST {self.path} {body}")
                self.answer()

            def do_GET(self) -> None:
                outer.got.append(f"GET {self.path}")
                self.answer()

            def answer(self) -> None:
                status, body, headers = outer.answers[0] if len(outer.answers) == 1 else outer.answers.pop(0)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        super().__init__(Handler)


CELL = Described(
    id="s-c-1",
    cell="c",
    sweep="s",
    revision=2,
    config={"lr": 0.1, "model": {"name": "m", "sizes": [1, 2]}, "api_key": "x", "none": None, "a*b": True},
    axes={"lr": "0.1", "odd name*": "x" * 300},
    stages=("fit", "score"),
    began=1000.5,
)
POINTS = [
    MetricPoint("fit", 1, 3, 1001.25, {"loss": 0.5, "word": "x", "time_s": 1.0, "flag": True}),
    MetricPoint("fit", 2, 4, 0.0, {"loss": float("inf"), "big": 10**400, "a/../b*": 2}),
]
ROWS = [
    {"eval_language": "en", "accuracy": 0.5, "n": 3, "none": None},
    {"eval_language": "es", "accuracy": 0.25, "n": 3, "list": [1]},
    {"eval_language": None, "accuracy": 0.125, "n": 3},
]
"""What a cell sends."""


def sent_through(name: str, options: dict[str, Any], ledger: Ledger) -> None:
    """Send a cell through a mirror: metrics, results and each state."""
    mirror = lookup(MIRRORS, name, kind="mirror")(options)
    mirror.check()
    mirror.begin(Followed("s-1", "s", 2, 3, ledger))
    run = mirror.open(CELL)
    first = MirrorProgress(bytes={"payload/fit/d/1": 70}, lines=2)
    run.log(POINTS, first)
    run.mark("running", 0.0)
    run.results("score", ROWS, 1002.0, MirrorProgress(bytes=first.bytes, products=["d.1"], lines=2))
    run.mark("failed", 1003.0)
    run.mark("done", 1004.0)
    run.close("done")
    mirror.end()
    assert run.progress.products == ["d.1"] and mirror.progress(CELL.id).products in (["d.1"], [])
    print(mirror.title, "|", mirror.summary(), "|", mirror.forget(CELL.id))


def test_what_a_cell_is_in_other_systems_is_as_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    stop_clock(monkeypatch)
    ledger = open_ledger(str(tmp_path / "store"), create=True)
    server, lines = Answering(), list[str]()
    run = {"info": {"run_id": "r1", "status": "KILLED"}, "data": {"tags": [], "params": []}}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server.address}/")
    server.answers = [
        (404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}, {}),
        (200, {"experiment_id": "7"}, {}),
        (200, {"runs": [run], "next_page_token": "t"}, {}),
        (200, {"runs": []}, {}),
        (200, {"run": {"info": {"run_id": "r2"}}}, {}),
        (200, {"run": {"info": {"run_id": "r3"}}}, {}),
        (200, {}, {}),
    ]
    sent_through("mlflow", {"experiment": "mine"}, ledger)
    lines += ["## MLflow", *server.got]
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{server.address}/?write_token=a-token")
    server.answers, server.got = [(200, {"data": None}, {})], []
    sent_through("trackio", {"project": "mine"}, ledger)
    lines += ["## Trackio", *server.got]
    server.close()
    sent_through("tensorboard", {"dir": str(tmp_path / "tb")}, ledger)
    folder = tmp_path / "tb" / CELL.id
    lines += ["## TensorBoard", *(f"{path.name} {path.stat().st_size}" for path in sorted(folder.iterdir()))]
    lines += [(folder / "polysweep.json").read_text(), *events(folder)]
    lines += ["## what they print", capsys.readouterr().out]
    compare_text(
        RECORDED / "mirrored.txt", "\n".join(lines), {server.address: "SERVER", str(tmp_path): "FOLDER"}
    )


def events(folder: Path) -> Iterator[str]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for event in LegacyEventFileLoader(str(folder / "events.out.tfevents.0.polysweep")).Load():
        for value in event.summary.value:
            data = value.metadata.plugin_data.content
            start = HParamsPluginData.FromString(data).session_start_info if data else None
            named = (
                {k: str(v).split(":")[-1].strip() for k, v in sorted(start.hparams.items())} if start else ""
            )
            times = f"{start.start_time_secs} {start.group_name}" if start else value.simple_value
            yield f"{event.wall_time} {event.step} {value.tag} {times} {named}"
        if event.file_version:
            yield f"{event.wall_time} {event.file_version}"


def answers_asked(monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> Answers:
    server = Answering()

    def tried(name: str) -> object:
        try:
            sent_through(name, {}, ledger)
        except Unavailable as error:
            return ("unavailable", error.what, error.fix, error.retry_s, error.is_final)
        except (SweepError, Exception) as error:
            return f"{type(error).__name__}: {error}"
        return "sent"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{server.address}?write_token=a-token")
    for status, body, headers in (
        (401, {}, {}),
        (403, {}, {}),
        (429, {}, {"Retry-After": "7"}),
        (429, {}, {}),
        (500, b"<h1>", {}),
        (503, {}, {"Retry-After": "soon"}),
        (200, b"<h1>", {}),
        (200, [], {}),
        (200, {"error": "a write_token is required"}, {}),
        (200, {"error": "no"}, {}),
        (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no\nrun"}, {}),
        (404, {}, {}),
        (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "too many"}, {}),
        (302, {}, {"Location": "/x"}),
    ):
        server.answers = [(status, body, headers)]
        for name in ("mlflow", "trackio") if status in (200, 404) else ("mlflow",):
            yield f"{name} {status} {body!r} {headers}", tried(name)
    server.close()
    yield "nobody there", (tried("mlflow"), tried("trackio"))
    for url in ("", "host", "http://", "ftp://x", "http://h:0", "http://u:p/w@h"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        monkeypatch.setenv("TRACKIO_SERVER_URL", url)
        yield f"address {url}", (tried("mlflow"), tried("trackio"))
    for name in ("mlflow", "trackio", "tensorboard", "wandb"):
        for options in (
            {"x": 1},
            {"experiment": " "},
            {"project": " "},
            {"project": "a/b"},
            {"dir": 3},
            {"mode": "on"},
        ):
            yield f"{name} {options}", answer(lambda: lookup(MIRRORS, name, kind="mirror")(options).options)  # noqa: B023


def test_answers_of_servers_and_options_mean_what_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(str(tmp_path / "store"), create=True)
    asked = answers_asked(monkeypatch, ledger)
    found = ((q, re.sub(r"127\.0\.0\.1:\d+", "SERVER", plain(each))) for q, each in asked)
    compare(RECORDED / "answers.txt", found)


def test_what_is_mirrored_of_a_study_is_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "store"
    with moment(NOW_S):
        Study(root)
    server = SmallMlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    stop_clock(monkeypatch)
    ledger, lines = open_ledger(str(root)), list[str]()
    revision, said = ledger.revision("study", 1), list[str]()
    over = threading.Event()
    over.set()
    for _ in range(2):
        passes = MirrorPasses("mlflow", {}, ledger=ledger, revision=revision, notify=said.append)
        outcome = passes.run(over)
        lines.append(f"{sorted(outcome.sent.cells)} {outcome.sent[1:]} {outcome[2:]}")
    server.status = 401
    refused = MirrorPasses(
        "mlflow", {"experiment": "f"}, ledger=ledger, revision=revision, notify=said.append
    ).run(over)
    server.status = 503
    down = MirrorPasses(
        "mlflow", {"experiment": "e"}, ledger=ledger, revision=revision, notify=said.append
    ).run(over)
    server.close()
    lines += [f"refused: {refused}", f"down: {down}", *said, f"requests: {len(server.requests)}"]
    for id_, run in server.runs.items():
        lines += ["", f"{id_} {run['info']}"]
        lines += [f"  {kind} {json.dumps(run[kind])}" for kind in ("tags", "params")]
        lines += [f"  {name} {points}" for name, points in run["points"].items()]
    compare_text(
        RECORDED / "study.txt", "\n".join(lines), {server.address: "SERVER", str(tmp_path): "FOLDER"}
    )


class Clock:
    """A clock that stands still."""

    def time(self) -> float:
        return 1e9


def stop_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """For MLflow, which is told when a run ended of which nobody knows it."""
    for module in ("mlflow_mirror", "mlflow_server"):
        monkeypatch.setattr(f"orchestrator.trackers.{module}.time", Clock())


def channels_asked(monkeypatch: pytest.MonkeyPatch) -> Answers:
    message = {"text": "a <!channel> & b", "event": "done", "sweep": "s"}
    monkeypatch.setenv("API_TOKEN", "s3cr3t-value-of-it")
    with receiving() as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        for status in (200, 204, "cut_body", 302, 400, 429, 500, "cut"):
            receiver.answers, receiver.headers = (
                [status],
                {"Retry-After": "7"} if status in (429, 500) else {},
            )
            yield f"webhook {status}", notifier.send("webhook", "HOOK", message)
        yield "got", receiver.got[:1]
    with refusing() as port:
        monkeypatch.setenv("HOOK", f"http://127.0.0.1:{port}/secretpath")
        yield "webhook refused", notifier.send("webhook", "HOOK", message)
    for address in ("ftp://x/secretpath", "nothing", "http://", "http://[x"):
        monkeypatch.setenv("HOOK", address)
        yield f"webhook {address}", notifier.send("webhook", "HOOK", message)
    for command in (
        *(
            "cat",
            "true",
            "cat; exit 1",
            "echo first; echo no such receiver >&2; exit 3",
            "no-such-program-here",
        ),
        *(
            "kill -9 $$",
            "exit 130",
            "exit 200",
            "echo token=$API_TOKEN; exit 1",
            "printf 'a\\tb\\n\\n'; exit 4",
        ),
        *("printf '%0500d' 1; exit 5", "printf '\\xff'; exit 6"),
    ):
        yield f"command {command}", notifier.send("command", command, message)
    for channel, value in (
        ("command", ""),
        ("webhook", "HOOK"),
        ("webhook", "NOT_SET"),
        ("apprise", "NOT_SET"),
    ):
        yield f"can send {channel} {value}", notifier.can_send(channel, value)
    addresses = ["https://user:longpassword@host.example/services/T0123456?key=abc", "short"]
    for text in ("to T0123456 of host.example", "user and short key abc", "longpassword\nx", "https" * 99):
        yield f"without {text[:30]}", notifier.without_address(text, addresses)


def test_what_channels_answer_is_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notifier, "SEND_S", 60.0)
    asked = (
        (q, re.sub(r"127\.0\.0\.1:\d+", "SERVER", plain(found))) for q, found in channels_asked(monkeypatch)
    )
    compare(RECORDED / "channels.txt", asked)


def shared_asked() -> Answers:
    for value in (1, 1.5, True, float("nan"), float("inf"), 10**400, "1", None, [1]):
        yield f"number {value!r}"[:40], protocol.is_number(value)
        yield f"text {value!r}"[:40], protocol.as_text(value) if value != 10**400 else ""
    yield "flat", list(protocol.flat({"a": {"b": 1, "c": {}}, "d": [1], 3: None}))
    for rows in ([], [{}], ROWS[:1], ROWS, [{"a": 1}, {"a": 2}], [{"a": "x", "b": 1}, {"a": "y"}]):
        yield f"summary of {len(rows)} {rows[:1]}", protocol.summary_of("s", rows)
    for url in ("http://h", "https://h:8/x", "h", "", "http://", "http://h:0", "http://h:99999", "file:///x"):
        yield f"address {url}", protocol.is_address(url)


def test_what_mirrors_share_is_as_recorded() -> None:
    compare(RECORDED / "shared.txt", shared_asked())
