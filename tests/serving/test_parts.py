"""The parts of the page that need no server: logs, results, hosts, looks."""

from __future__ import annotations

import hashlib
import html
import re
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from orchestrator.api.overview import Watched
from orchestrator.serving import cells, live, results, site
from orchestrator.serving.app import application
from orchestrator.serving.drawing import HERE, number
from orchestrator.serving.live import Live
from orchestrator.serving.server import is_loopback, named_host
from orchestrator.store.objects import PosixStore
from orchestrator.testing import wait_for
from tests.execution.waiting import running
from tests.store import states

ROWS: list[dict[str, Any]] = [
    {"cell": "a", "score": 0.5, "language": "en", "rate": 10},
    {"cell": "b", "score": None, "language": "es", "rate": 1},
    {"cell": "c", "score": 0.25, "language": "en-gb", "rate": 100},
]


@pytest.mark.parametrize(
    ("column", "text", "cells"),
    [
        ("language", "en", "ac"),
        ("language", "en*", "ac"),
        ("language", "=en", "a"),
        ("language", "!=en", "bc"),
        ("language", "EN", "ac"),
        ("score", ">0.3", "a"),
        ("score", "<=0.5", "ac"),
        ("rate", "1", "b"),
        ("rate", "10", "a"),
        ("rate", ">x", ""),
        ("nothing", "x", ""),
        ("score", "  ", "abc"),
    ],
)
def test_a_filter_keeps_what_its_condition_says(column: str, text: str, cells: str) -> None:
    assert "".join(row["cell"] for row in results.kept(ROWS, {column: text})) == cells


def test_rows_without_a_value_are_last_in_both_orders() -> None:
    assert [row["cell"] for row in results.ordered(ROWS, "score", descending=False)] == ["c", "a", "b"]
    assert [row["cell"] for row in results.ordered(ROWS, "score", descending=True)] == ["a", "c", "b"]
    mixed = [{"x": "10"}, {"x": 9}, {"x": True}, {"x": float("inf")}]
    assert [row["x"] for row in results.ordered(mixed, "x", descending=False)] == [
        True,
        9,
        float("inf"),
        "10",
    ]


def test_the_next_page_of_results_has_the_same_cells_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states.make(tmp_path)
    monkeypatch.setattr(results, "PAGE_ROWS", 4)
    client = TestClient(application({"study": site.Served(Watched("study", str(tmp_path)))}))
    page = client.get("/s/study/results?sort=seconds&desc=1&only=model%3Dsmall&page=2").text
    for rel, page_number in (("prev", "1"), ("next", "3")):
        (link,) = re.findall(rf'href="([^"]*)" rel="{rel}"', page)
        params = dict(httpx.URL(html.unescape(link)).params)
        assert params == {"only": "model=small", "sort": "seconds", "desc": "1", "page": page_number}


def test_a_page_beyond_the_last_is_the_last() -> None:
    rows = [{"cell": str(n)} for n in range(250)]
    found = results.page_of(rows, filters={}, number=9)
    assert (found.number, found.num_pages, len(found.rows), found.total) == (3, 3, 50, 250)
    assert results.page_of([], filters={}).num_pages == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x\x1b]8;;http://a\x1b\\y", "xy"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("10 %\r50 %\r100 %\nend", "100 %\nend"),
        ("\x00\x07\u202e", "\\x00\\x07\\u202e"),
    ],
)
def test_a_log_becomes_plain_lines(text: str, shown: str) -> None:
    assert cells.plain_log(text) == shown


def test_a_log_read_in_parts_is_the_whole_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "naïve 漢字 \x1b[31mred\x1b[0m and \U0001f600\n" * 40
    (tmp_path / "log.txt").write_bytes(whole.encode())
    store = PosixStore(tmp_path)
    for size in (7, 11, 64):
        monkeypatch.setattr(cells, "LOG_CHUNK", size)
        text, position = "", 0
        while (part := cells.part_from(store, "log.txt", position)).end > position:
            text, position = text + part.text, part.end
        assert text == cells.plain_log(whole)
    assert cells.part_from(store, "nothing.txt", 0) == cells.LogPart("", 0, 0)


def test_the_end_of_a_huge_log_begins_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(b"".join(b"line %d\n" % n for n in range(100_000)))
    part = cells.last_part(PosixStore(tmp_path), "log.txt")
    assert part.text.startswith("line ") and part.text.endswith("line 99999\n")
    assert len(part.text) <= cells.LOG_TAIL
    (tmp_path / "one.txt").write_bytes(b"x" * 1_000_000)
    assert len(cells.last_part(PosixStore(tmp_path), "one.txt").text) == cells.LOG_TAIL


def test_bytes_that_are_no_text_end(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(b"\xff\xfe\x80\x80\x80\x80\xf0")
    store, text, position = PosixStore(tmp_path), "", 0
    while (part := cells.part_from(store, "log.txt", position)).end > position:
        text, position = text + part.text, part.end
    assert position == 7 and set(text) == {"\ufffd"}


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("127.0.0.1:80", "127.0.0.1"),
        ("LOCALHOST", "localhost"),
        ("[::1]:80", "::1"),
        ("[::1", ""),
        ("a:b", ""),
        ("a:1:2", ""),
        ("", ""),
        ("[::1]x", ""),
    ],
)
def test_the_host_of_a_header_is_its_name_alone(header: str, host: str) -> None:
    assert named_host(header) == host


def test_loopback_is_this_machine_alone() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.0.0.1.example")))


def test_a_look_that_hangs_delays_nobody_for_long_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SILENT_S", 0.1)
    hangs = threading.Event()
    answers = threading.Event()
    number = iter(range(100))

    def look() -> int:
        if hangs.is_set():
            answers.wait(60)  # unless the look is waited for, its end comes after this
        return next(number)

    found = Live(look)
    assert found.get(wait_s=60).value == 0
    hangs.set()
    wait_for(lambda: found.get(wait_s=0.05).is_silent)
    stale = found.get(wait_s=0.05)
    assert (stale.value, stale.is_silent, stale.is_late) == (0, True, True)
    hangs.clear()
    answers.set()
    fresh = found.get(wait_s=60)
    assert fresh.value and not fresh.is_silent and not fresh.is_late


def test_an_error_of_a_look_is_shown_and_the_next_look_may_succeed() -> None:
    fails = [True]

    def look() -> str:
        if fails[0]:
            raise OSError("stale file handle")
        return "seen"

    found = Live(look, pause_s=0.01)
    assert (found.get(wait_s=60).problem, found.get(wait_s=60).value) == ("stale file handle", None)
    fails[0] = False
    assert found.get(wait_s=60).value == "seen"


def test_many_viewers_share_a_look() -> None:
    number = iter(range(100))
    may_end = threading.Event()

    def look() -> int:
        assert may_end.wait(30)
        return next(number)

    found = Live(look)
    values: list[int | None] = []
    threads = [threading.Thread(target=lambda: values.append(found.get(wait_s=30).value)) for _ in range(20)]
    for thread in threads:
        thread.start()
    # No look can end before all have asked: one serves those before it began, a second one the others.
    while sum("wait_for" in running(thread) for thread in threads) < len(threads):
        time.sleep(0.01)
    may_end.set()
    for thread in threads:
        thread.join()
    assert len(values) == len(threads) and set(values) <= {0, 1}
    assert next(number) == (2 if 1 in values else 1)


def test_a_time_of_change_that_is_read_too_late_vouches_for_no_earlier_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "QUICK_S", -1.0)  # as if looks took long
    monkeypatch.setattr(site, "SOON_S", 3600.0)
    monkeypatch.setattr(site, "STALE_S", 3600.0)
    monkeypatch.setattr(live, "SILENT_S", 3600.0)
    states.make(tmp_path / "store")
    served = site.Served(Watched("study", str(tmp_path / "store")))
    before, seen = served.seen()
    hangs, may_end = threading.Event(), threading.Event()

    def look() -> site.Stamp:
        if hangs.is_set():
            may_end.wait(120)
        return site.stamp_of(seen.view)

    served._stamps = Live(look)
    served._stamps.get(wait_s=60)  # the same as before
    hangs.set()
    wait_for(lambda: served.seen()[0].number > before.number)
    may_end.set()


def test_numbers_are_for_people() -> None:
    assert [number(each) for each in (None, 3, 1234.5, 0.1234)] == ["", "3", "1,234", "0.123"]


def test_vendored_files_are_those_of_the_table() -> None:
    folder = HERE / "static" / "vendor"
    table = re.findall(
        r"^\| (\S+) \| .* \| \[.*\]\((\S+)\) \| ([0-9a-f]{64}) \|$",
        (folder / "VERSIONS.md").read_text(),
        re.M,
    )
    assert {name for name, _, _ in table} == {p.name for p in folder.iterdir() if p.suffix in (".js", ".css")}
    for name, licence, digest in table:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert (folder / licence).stat().st_size > 100
