"""The grid as one file without a server, and in reports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.api.overview import Watched
from orchestrator.serving import drawing
from orchestrator.testing import wait_for
from tests.conftest import Sweep
from tests.store import states
from tests.store.states import Made

MODELS = ("qwen-0.6b", "qwen-1.7b", "gemma-1b", "gemma-4b", "llama-1b")
AXES = {"model": MODELS, "task": ("math", "calls"), "mixture": tuple(f"mixture-{n}" for n in range(23))}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("file")


@pytest.fixture(scope="module")
def made(root: Path) -> Made:
    return states.make(root / "store", AXES)


def test_a_file_of_230_cells_is_small_complete_and_needs_nothing_else(root: Path, made: Made) -> None:
    run = Sweep(root, root / "store")
    assert "page.html" in run("serve", "study", "--file", "page.html")
    data = (root / "page.html").read_bytes()
    page = data.decode()
    assert len(data) < 300_000
    assert page.count('<td class="box ') == 230
    assert not re.search(r"<script|<link|src=|href=|url\(|@import", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert drawing.source_of(style) in policy[1]
    for label in ("mixture-22", "llama-1b", "calls", "ValueError: row # has no answer"):
        assert label in page
    assert [path.name for path in root.iterdir() if ".tmp" in path.name] == []


def test_the_file_needs_no_web_server_and_the_server_names_what_is_missing(root: Path, made: Made) -> None:
    program = (
        "import sys; sys.modules['uvicorn'] = sys.modules['starlette'] = None\n"
        "from orchestrator.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", program, "serve", "study", "--store", str(root / "store")]
    done = subprocess.run(
        [*words, "--file", str(root / "bare.html")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mixture-22" in (root / "bare.html").read_text()
    missing = subprocess.run(words, capture_output=True, text=True, check=False)
    assert missing.returncode == 2 and "pip install 'polysweep[serve]'" in missing.stderr
    assert missing.stdout == ""


def test_the_file_is_replaced_again_and_again_as_a_whole_until_a_signal(root: Path, made: Made) -> None:
    path = root / "again.html"
    words = [sys.executable, "-m", "orchestrator", "serve", "study", "--store", str(root / "store")]
    process = subprocess.Popen(
        [*words, "--file", str(path), "--every", "1"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and str(path) in process.stdout.readline()
        assert '<meta http-equiv="refresh" content="1">' in path.read_text()
        first = path.stat().st_ino
        wait_for(lambda: path.stat().st_ino != first)  # replaced as a whole, never written in place
        process.terminate()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--file", "no/such/page.html"), "no folder"),
        (("--file", "page.html", "--port", "1"), "--port is of a server"),
        (("--file", "page.html", "--every", "0"), "at least 1 seconds"),
        (("--file", "."), "is a folder"),
        (("--file", "pipe"), "is no regular file"),
        (("--file", "circle"), "Symlink loop"),
    ],
)
def test_a_wrong_file_is_refused(root: Path, made: Made, words: tuple[str, ...], said: str) -> None:
    if words[1] == "pipe":
        os.mkfifo(root / "pipe")
    if words[1] == "circle":
        (root / "circle").symlink_to("circle")
    assert said in Sweep(root, root / "store")("serve", "study", *words, code=2)


def test_a_file_for_which_there_is_no_room_is_named_and_the_one_before_stays(root: Path, made: Made) -> None:
    (root / "room").mkdir()
    page = root / "room" / "page.html"
    page.write_text("before")
    words = [sys.executable, "-m", "orchestrator", "serve", "study", "--store", str(root / "store")]
    # No file may grow beyond 8 blocks, so the write fails in the middle as on a full disk.
    limited = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *words, "--file", str(page)]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and f"cannot write {page}: " in done.stderr
    assert page.read_text() == "before" and [*page.parent.iterdir()] == [page]


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(root: Path, made: Made) -> None:
    (root / "published").mkdir()
    (root / "link.html").symlink_to("published/page.html")
    Sweep(root, root / "store")("serve", "study", "--file", "link.html")
    assert (root / "link.html").is_symlink() and "mixture-22" in (root / "published/page.html").read_text()


def test_a_report_embeds_the_grid(tmp_path: Path) -> None:
    states.make(tmp_path / "store", {"model": ("a", "b"), "mixture": ("en", "es")}, ("done", "failed"))
    Sweep(tmp_path, tmp_path / "store")("report", "study", "--out", "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count('<td class="box ') == 4
    assert '<th scope="col">a</th>' in page and '<th scope="row">es</th>' in page
    assert "prefers-color-scheme" not in page  # reports are light


def test_a_grid_of_ten_thousand_positions_is_cut_into_pages(tmp_path: Path) -> None:
    states.make(tmp_path / "store", {"rate": [*map(str, range(700))], "name": ("a", "b")}, ("pending",))
    found = Watched("study", str(tmp_path / "store")).look()
    assert drawing.rows_a_page(found.grid) == drawing.MAX_SPOTS // 2
    part = drawing.drawn(found, drawing.nowhere, first=600, most=600)
    assert (part.first, part.last, part.total, len(part.rows)) == (601, 700, 700, 100)
    page = drawing.file_page([found])
    assert "The first 600 of 700 rows" in page and page.count('<td class="box ') == 1200


def test_texts_of_others_are_escaped_in_a_file(tmp_path: Path) -> None:
    states.make(tmp_path / "store", {"text": ("<img src=x onerror=alert(1)>", "\u202eab\x1b[31m")})
    page = drawing.file_page([Watched("study", str(tmp_path / "store")).look()])
    assert not {"\u202e", "\x1b"} & {*page} and r"\u202eab\x1b[31m" in page
    assert "<img" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
