"""The pages of a study with cells of every history are as recorded, see ../recording.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from orchestrator.api.overview import Watched
from orchestrator.serving import results
from orchestrator.serving.app import application
from orchestrator.serving.server import Guard
from orchestrator.serving.site import Served, version
from orchestrator.store import layout
from tests.recording import compare_text
from tests.seen import moment, plain, played, shown
from tests.store.study import HISTORIES, NAME, Study, sweep_of
from tests.store.study_records import NOW_S

RECORDED = Path(__file__).parent / "recorded"
CELLS = dict(zip(HISTORIES, (cell.id.replace("+", "%2B") for cell in sweep_of().cells), strict=True))
FIGURE = '<svg xmlns="http://www.w3.org/2000/svg"/>'
REPORT = {"index.html": "<style>b {}</style><b>x</b>", "a.svg": FIGURE, "rows.csv": "a,b\n", "x.bin": "x"}

PAGES: Mapping[str, Sequence[str]] = {
    "grid": (
        "/s/study",
        "/s/study?only=model%3Dsmall&page=2",
        "/s/study?only=model%3Dtiny",
        "/s/study?page=x",
        "/s/study/live?only=state%3Dfailed",
        "/s/other",
        "/nothing",
    ),
    "cells": (
        "/s/study/cells",
        "/s/study/cells?only=state%3Dfailed&page=0",
        "/s/study/cells?page=9",
        "/s/study/cells?row=1&column=1",
        "/s/study/cells?row=1&column=7",
    ),
    "cell": [
        *(f"/s/study/cell/{CELLS[name]}" for name in ("retried", "running", "waiting", "unscored")),
        f"/s/study/cell/{CELLS['retried']}?stage=fit&attempt=1",
        f"/s/study/cell/{CELLS['retried']}?stage=fit&attempt=7",
        f"/s/study/cell/{CELLS['retried']}?stage=none",
        f"/s/study/cell/{CELLS['job_failed']}/live?part=head",
        f"/s/study/cell/{CELLS['renewed']}/live",
        "/s/study/cell/none",
    ],
    "logs": (
        f"/s/study/log?cell={CELLS['running']}&after=8",
        f"/s/study/log?cell={CELLS['retried']}&stage=fit&attempt=2",
        f"/s/study/log?cell={CELLS['waiting']}",
        f"/s/study/log.txt?cell={CELLS['failed']}",
        f"/s/study/log.txt?cell={CELLS['waiting']}",
    ),
    "curves": (
        "/s/study/curves",
        f"/s/study/curves?cell={CELLS['running']}&cell={CELLS['done']}&metric=tokens_per_second&only=model%3Dlarge",
        f"/s/study/curves.json?cell={CELLS['running']}",
        f"/s/study/curves.json?cell={CELLS['done']}&cell={CELLS['done']}&stage=score&metric=loss",
        f"/s/study/curves.json?cell={CELLS['done']}&stage=none",
        "/s/study/curves.json?cell=none",
    ),
    "results": (
        "/s/study/results",
        "/s/study/results?only=mixture%3Dnone&sort=accuracy&desc=1&page=2",
        "/s/study/results?col.accuracy=%3E0.5&sort=accuracy",
        "/s/study/results.csv?sort=accuracy&desc=1&col.language=e",
        "/s/study/results.csv?only=nothing%3D1",
    ),
    "report": ("/s/study/report", *(f"/s/study/report/{name}" for name in [*REPORT, "..%2Fx"])),
    "index": ("/", "/live", "/favicon.ico"),
}  # fmt: skip
SHORT = {
    r"<!DOCTYPE html>(?s:.*?)<title>": "(page) <title>",
    r"(?s:<link.*?)<body>(?s:.*?)<nav ": "(sheets and scripts)\n<nav ",
    r"seen=[0-9a-f]{16}": "seen=PART",
    version(): "VERSION",
}
"""What is the same on all pages."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store, with a second sweep that is done."""
    root = tmp_path_factory.mktemp("study") / "store"
    played(root, 15, "workers")
    with moment(NOW_S):
        study = Study(root)
        for name, text in REPORT.items():
            path = study.root / layout.report(NAME) / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return root


@pytest.fixture
def client(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of the pages, at a moment."""
    monkeypatch.setattr(results, "PAGE_ROWS", 3)
    with moment(NOW_S):
        served = {name: Served(Watched(name, str(root))) for name in (NAME, "simulated")}
        with TestClient(application(served)) as client:
            yield client


def page(client: TestClient, path: str, root: Path) -> str:
    """What is answered to a request."""
    answer = client.get(path)
    lines = [f"{name}: {value}" for name, value in answer.headers.items() if name != "content-length"]
    return plain(
        "\n".join([f"GET {path}: {answer.status_code}", *lines, answer.text, ""]), {str(root): "STORE"}
    )


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_of_a_study_are_as_recorded(client: TestClient, root: Path, name: str) -> None:
    text = "\n".join(page(client, path, root) for path in PAGES[name])
    compare_text(RECORDED / f"{name}.txt", re.sub(r"\n\n+", "\n\n", text), SHORT)


def test_all_of_a_page_is_as_recorded(client: TestClient, root: Path) -> None:
    compare_text(RECORDED / "whole.txt", page(client, "/s/study/report", root), {version(): "VERSION"})


def test_a_part_that_the_browser_shows_already_is_not_sent_again(client: TestClient) -> None:
    for path in ("/live", "/s/study/live", f"/s/study/cell/{CELLS['done']}/live?part=head"):
        (seen,) = set(re.findall(r"seen=([0-9a-f]{16})", client.get(path).text))
        again = client.get(path, params={"seen": seen, **({"part": "head"} if "part" in path else {})})
        assert again.status_code == 204 and again.headers["x-read-at"] == again.headers["x-now"] != ""


def test_a_file_of_several_sweeps_is_as_recorded(root: Path, tmp_path: Path) -> None:
    with moment(NOW_S):
        shown(root, "serve", NAME, "simulated", "--file", tmp_path / "page.html")
    words = {r"(?s:<style>.*?</style>)": "(style)", r"'sha256-[^']*'": "(digest)"}
    text = plain((tmp_path / "page.html").read_text(), {str(root): "STORE"})
    compare_text(RECORDED / "file.txt", re.sub(r"\n\n+", "\n\n", text), words)


REQUESTS: Sequence[tuple[str, str, dict[str, str]]] = (
    *(("GET", "/s/study/report", {"host": host}) for host in ("box", "BOX:80", "127.0.0.1", "evil", "")),
    ("GET", "/?token=secret", {}),
    ("GET", "/?token=secret&only=a%3Db&page=2", {}),
    ("GET", "/?token=wrong", {}),
    ("GET", "/?token=", {"cookie": "sweep_81=secret"}),
    ("GET", "/s/study?token=secret", {}),
    ("GET", "/s/study/report/a.svg", {"cookie": "a=b; sweep_80=secret"}),
    ("HEAD", "/s/study/report/index.html", {"cookie": 'sweep_80="secret"'}),
    ("GET", "/s/study/report", {"cookie": "sweep_81=secret"}),
    ("GET", "/s/study/report", {"cookie": "sweep_80=secres"}),
    ("POST", "/", {"cookie": "sweep_80=secret"}),
)


def test_what_is_answered_to_strangers_is_as_recorded(root: Path) -> None:
    with moment(NOW_S):
        app = Guard(application({NAME: Served(Watched(NAME, str(root)))}), "secret", 80, names=["Box"])
        client, found, before = TestClient(app, "http://localhost", follow_redirects=False), [], set()
        for method, path, headers in REQUESTS:
            answer = client.request(method, path, headers=headers)
            found += [f"{method} {path} {headers}: {answer.status_code} {answer.text[:100].strip()}"]
            # The length is also that of the store's path.
            fields = {name: value for name, value in answer.headers.items() if name != "content-length"}
            headers_now = {f"  {name}: {value}" for name, value in fields.items()}
            found += sorted(headers_now - before)  # after the first one, what is new
            before = before or headers_now
    compare_text(RECORDED / "strangers.txt", "\n".join(found), SHORT)
