"""The pages over real HTTP: who gets in, what they hold, and that they change nothing."""

from __future__ import annotations

import html
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from orchestrator.store import layout
from orchestrator.testing import wait_for
from tests.conftest import Sweep
from tests.serving.pages import Served, content, next_page
from tests.store import states
from tests.store.states import Made

HOSTILE = ("<script>alert(1)</script>", "a&b\"'", "../../etc/passwd", "{{7*7}}")
"""Labels that would be markup, or a path, where they are not escaped."""
SILENT = r"The store has not answered since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def made(root: Path) -> Made:
    study = states.make(root / "store")
    states.make(root / "store", {"text": HOSTILE, "size": ("1", "2")}, name="hostile")
    log = root / "store" / layout.log(study.fit(study.of("failed")[0]), 1)
    log.write_bytes(b"\x1b[31mred\x1b[0m <b>bold</b>\x00\xff\r\n10 %\r20 %\r100 %\nValueError: <img src=x>\n")
    return study


@pytest.fixture(scope="module")
def served(root: Path, made: Made) -> Iterator[Served]:
    running = Served(root / "store", "study", "hostile")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def test_one_line_is_printed_at_once_and_its_token_opens_the_page_by_a_cookie(served: Served) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{20,}", served.url)
    answer = httpx.get(served.url, trust_env=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    name, *flags = re.split(r"[=;] ?", answer.headers["set-cookie"])
    assert name == f"sweep_{served.base.rpartition(':')[2]}"  # cookies ignore ports
    assert {"HttpOnly", "SameSite", "Strict", "Path", "/"} <= {*flags}


def test_without_the_token_nothing_is_shown(served: Served, made: Made) -> None:
    for path in ("/", "/s/study", "/static/x/app.js", "/?token=wrong", "/?token=", "/s/study?token=x"):
        answer = httpx.get(served.base + path, trust_env=False)
        assert answer.status_code == 401, path
        assert "study" not in answer.text
    wrong = {"cookie": f"sweep_{served.base.rpartition(':')[2]}={'x' * 32}"}
    assert httpx.get(served.base, headers=wrong, trust_env=False).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "[::1"])
def test_a_foreign_host_is_refused_even_with_the_token(
    served: Served, client: httpx.Client, host: str
) -> None:
    assert httpx.get(served.url, headers={"host": host}, trust_env=False).status_code == 400
    assert client.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1234", "[::1]:80"])
def test_a_forwarded_port_is_no_foreign_host(client: httpx.Client, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_pages_can_only_be_read(client: httpx.Client, method: str) -> None:
    answer = client.request(method, "/s/study")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert client.head("/s/study").status_code == 200


def test_every_answer_has_a_strict_policy_and_no_page_holds_what_it_forbids(
    client: httpx.Client, served: Served, made: Made
) -> None:
    cell = made.of("failed")[0]
    paths = [f"/s/study{rest}" for rest in ("", "/cells", "/curves", "/results", "/report", f"/cell/{cell}")]
    for path in ["/", *paths, "/s/nothing", "/nothing"]:
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert (
            "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", answer.text), (
            path
        )
        # Nothing is loaded from elsewhere.
        assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", answer.text), path
        assert served.token not in answer.text
    assert served.token not in served.errors.read_text()


def test_the_first_html_has_the_grid_as_a_table_with_its_axis_values(
    client: httpx.Client, made: Made
) -> None:
    page = client.get("/s/study").text
    for label in (*states.STUDY["mixture"], "math", "calls"):
        assert re.search(rf'<th scope="\w+"[^>]*>{re.escape(label)}</th>', page), label
    assert '<th scope="colgroup" colspan="2">small</th>' in page
    assert page.count('<td class="box ') == len(made.kinds)
    assert f"/s/study/cell/{quote(made.of('done')[0], safe='')}" in page
    assert "ValueError: row # has no answer" in page  # failures by cause
    assert "8 of 20" in page
    index = client.get("/").text
    assert "study@1" in index and "hostile@1" in index and '<th scope="row">en+es</th>' in index


def test_a_part_that_has_not_changed_is_answered_with_no_content(client: httpx.Client) -> None:
    page = client.get("/s/study").text
    (address,) = re.findall(r'hx-get="([^"]*)"', page)
    same = client.get(address.replace("&amp;", "&"))
    assert same.status_code == 204
    assert float(same.headers["x-read-at"]) > 0
    other = client.get(re.sub("seen=.*", "seen=x", address))
    assert other.status_code == 200 and 'id="live"' in other.text


def test_a_discard_is_seen_by_the_very_next_page(tmp_path: Path, sweep: Sweep) -> None:
    made = states.make(tmp_path / "store")
    served = Served(tmp_path / "store", "study")
    try:
        with served.client() as client:
            cell = made.of("done")[0]
            assert "all stages are done" in client.get(f"/s/study/cell/{cell}").text
            sweep("discard", "study", cell, "--stage", "fit", "--reason", "wrong data")
            assert "all stages are done" not in next_page(client, f"/s/study/cell/{cell}", time.time())
    finally:
        served.kill()


def test_a_silent_store_is_named_with_the_time_and_the_page_recovers(tmp_path: Path) -> None:
    states.make(tmp_path / "store")
    served = Served(tmp_path / "store", "study")
    try:
        with served.client() as client:
            assert "has not answered" not in client.get("/").text
            (tmp_path / "store").rename(tmp_path / "away")
            page = wait_for(lambda: re.search(SILENT, text := client.get("/").text) and text)
            assert '<th scope="row">en+es</th>' in page  # the last look is still shown
            (tmp_path / "away").rename(tmp_path / "store")
            wait_for(lambda: "has not answered" not in client.get("/").text)
    finally:
        served.kill()


def test_results_are_filtered_sorted_and_paged_on_the_server(client: httpx.Client, made: Made) -> None:
    def cells(query: str) -> list[str]:
        page = client.get(f"/s/study/results{query}").text
        return re.findall(r'<th scope="row"><a href="[^"]*">([^<]*)</a>', page)

    assert len(cells("")) == 18
    assert len(cells("?col.stage=fit&col.mixture=en*")) < len(cells("?col.stage=fit"))
    assert {*cells("?col.seconds=>100")} == {*cells("?col.stage=fit")}
    ordered = cells("?sort=cell")
    assert ordered == sorted(ordered) and cells("?sort=cell&desc=1") == ordered[::-1]
    assert {*cells("?only=model%3Dsmall")} == {cell for cell in cells("") if cell.startswith("small")}
    assert 'aria-sort="ascending"' in client.get("/s/study/results?sort=seconds").text
    assert client.get("/s/study/results?page=99").status_code == 200
    table = client.get("/s/study/results.csv?col.stage=score").text.splitlines()
    assert table[0].startswith("cell,model,task,mixture,") and len(table) == 9


def test_a_log_is_read_in_parts_without_what_acts_on_a_terminal(client: httpx.Client, made: Made) -> None:
    cell = made.of("failed")[0]
    page = client.get(f"/s/study/cell/{cell}").text
    assert "red &lt;b&gt;bold&lt;/b&gt;\\x00\ufffd\n100 %\n" in page and "\x1b" not in page
    part = client.get("/s/study/log", params={"cell": cell, "stage": "fit"}).json()
    assert part["text"].endswith("ValueError: <img src=x>\n") and part["is_over"] is True
    rest = client.get("/s/study/log", params={"cell": cell, "stage": "fit", "after": part["next"]}).json()
    assert rest == {"text": "", "next": part["next"], "is_over": True}
    whole = client.get("/s/study/log.txt", params={"cell": cell, "stage": "fit"})
    assert whole.headers["content-type"].startswith("text/plain") and b"\x00\xff" in whole.content
    why = client.get(f"/s/study/cell/{cell}").text
    assert "row " in why and "has no answer" in why and "claimed 2026-01-01" in why


def test_curves_of_several_cells_come_as_numbers(client: httpx.Client, made: Made) -> None:
    cells = made.of("done")[:2]
    found = client.get("/s/study/curves.json", params={"cell": cells, "metric": "loss"}).json()
    assert [curve["cell"] for curve in found["curves"]] == cells
    assert found["curves"][0]["points"][0][0] == 1 and found["metric"] == "loss"
    page = client.get("/s/study/curves", params={"cell": cells}).text
    assert page.count(" checked") == 2


def test_a_curve_with_values_that_are_no_numbers_is_drawn_without_them(tmp_path: Path) -> None:
    made = states.make(tmp_path / "store", {"model": ("a", "b")}, ("done",))
    rows = ("1.0", "NaN", "Infinity", "1e300", "9" * 400, '"text"', "3.0")
    lines = [f'{{"step": {number}, "loss": {value}}}\n' for number, value in enumerate(rows)]
    texts = ("".join(lines) + "[" * 100_000 + "\n", "".join(lines[:2]))
    for cell, text in zip(made.of("done"), texts, strict=True):
        (tmp_path / "store" / layout.metrics(made.fit(cell), 1)).write_text(text)
    chosen = {"cell": made.of("done"), "stage": "fit", "metric": "loss"}
    served = Served(tmp_path / "store", "study")
    try:
        with served.client() as client:
            found, diverged = client.get("/s/study/curves.json", params=chosen).json()["curves"]
            page = client.get("/s/study/curves", params=chosen).text
        assert (found["points"], found["num_hidden"]) == ([[0, 1.0], [6, 3.0]], 4)
        assert '<td class="number">inf</td>' in page and '<td class="number">nan</td>' in page
        assert (diverged["points"], diverged["num_hidden"]) == ([[0, 1.0]], 1)
    finally:
        served.kill()


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../../../etc/passwd",
        "/static/x/..%2f..%2fsecurity.py",
        "/s/study/report/..%2f..%2fstore.json",
        "/s/study/report/../../../store.json",
        "/s/study/report/%2fetc%2fpasswd",
        "/s/study/cell/..%2f..%2f..%2fstore.json",
        "/s/study/cell/%00",
        "/s/..%2fstudy",
        "/s/study/log?cell=%00",
        "/s/study/log.txt?cell=../../store.json",
        "/s/study/curves?cell=nothing",
    ],
)
def test_no_path_leads_out(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text and "format" not in answer.text


def test_cells_are_listed_from_the_first_and_by_the_place_in_the_grid(
    client: httpx.Client, made: Made
) -> None:
    def cells(query: str) -> list[str]:
        page = client.get(f"/s/study/cells{query}").text
        return re.findall(r'<th scope="row"><a href="[^"]*">([^<]*)</a>', page)

    assert cells("") == cells("?page=1") == cells("?page=0") == [*made.kinds]
    assert cells("?page=2") == []
    for row, mixture in enumerate(("none", "en", "en+es")):
        assert cells(f"?row={row}&column=2") == [
            next(cell for cell in made.kinds if f"large.math.{mixture}-" in cell)
        ]
    assert client.get("/s/study/cells?row=9&column=0").status_code == 404


def test_links_of_results_keep_the_cells_the_filters_and_the_order(client: httpx.Client) -> None:
    chosen = {"only": "model=small", "col.stage": "fit"}
    page = client.get("/s/study/results", params={**chosen, "sort": "seconds", "desc": "1"}).text
    found = [httpx.URL(html.unescape(link)) for link in re.findall(r'href="([^"]*results[^"]*)"', page)]
    kept = [dict(url.params) for url in found if url.query]
    assert len(kept) > 5 and all(chosen.items() <= each.items() for each in kept), kept
    assert {**chosen, "sort": "seconds"} in kept  # a second click turns the order round
    csv = next(url for url in found if url.path.endswith(".csv"))
    assert dict(csv.params) == {**chosen, "sort": "seconds", "desc": "1"}


def test_an_address_without_a_page_is_answered_with_a_page_that_names_it_so(client: httpx.Client) -> None:
    for path in ("/nothing", "/s/study/nothing", "/s/other"):
        answer = client.get(path)
        assert answer.status_code == 404 and "This page cannot be shown" in answer.text, path


@pytest.mark.parametrize("query", ["?page=x", "?page=-1", "?only=nothing%3D1", "?only='", "?row=x&column=0"])
def test_a_wrong_parameter_is_named(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/s/study/cells{query}")
    assert answer.status_code == 400 and "This page cannot be shown" in answer.text


@pytest.mark.parametrize("path", ["cells?only=", "cell/", "report/"])
def test_an_error_does_not_repeat_a_long_text_as_a_whole(client: httpx.Client, path: str) -> None:
    answer = client.get(f"/s/study/{path}{'x' * 50_000}")
    assert answer.status_code in (400, 404) and len(answer.content) < 5_000


def test_labels_that_look_like_markup_stay_text(client: httpx.Client) -> None:
    pages = [client.get(f"/s/hostile{path}").text for path in ("", "/cells", "/results", "/curves")]
    found = re.findall(r'href="(/s/hostile/cell/[^"]*)"', pages[0])
    assert len(found) == 2 * len(HOSTILE)
    for path in found:
        answer = client.get(path)
        assert answer.status_code == 200, path
        pages.append(answer.text)
    for page in pages:
        assert "<script>alert" not in page and "49" not in re.findall(r"<th scope=\"row\">([^<]*)", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in pages[0]


def test_a_page_needs_its_report_to_be_written_and_serves_it_without_scripts(
    root: Path, client: httpx.Client
) -> None:
    assert "No report was written yet" in client.get("/s/study/report").text
    folder = root / "store" / layout.report("study")
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<style>b { color: red }</style><script>alert(1)</script><b>it</b>")
    (folder / "other.bin").write_bytes(b"MZ")
    assert "/s/study/report/report.html" in client.get("/s/study/report").text
    answer = client.get("/s/study/report/report.html")
    policy = answer.headers["content-security-policy"]
    assert "script-src" not in policy and "default-src 'none'" in policy and "style-src 'sha256-" in policy
    assert client.get("/s/study/report/other.bin").headers["content-disposition"] == "attachment"


def test_nothing_is_written_to_the_store_and_a_signal_ends_it_quietly(root: Path, made: Made) -> None:
    log = root / "store" / layout.log(made.fit(made.of("done")[0]), 1)
    log.write_bytes(b"line\n" * 2_000_000)
    before = content(root / "store")
    served = Served(root / "store", "study")
    try:
        with served.client() as client:
            for path in ("/", "/s/study/results", f"/s/study/cell/{made.of('failed')[0]}", "/s/study/curves"):
                assert client.get(path).status_code == 200
            with client.stream(
                "GET", "/s/study/log.txt", params={"cell": made.of("done")[0], "stage": "fit"}
            ) as stream:
                next(stream.iter_bytes())
                assert served.stop() == (0, "")
        assert content(root / "store") == before
        assert "Traceback" not in served.errors.read_text()
    finally:
        served.kill()


def test_a_read_that_hangs_keeps_neither_other_pages_nor_the_end(tmp_path: Path) -> None:
    made = states.make(tmp_path / "store")
    cell = made.of("done")[0]
    log = tmp_path / "store" / layout.log(made.fit(cell), 1)
    log.unlink()
    os.mkfifo(log)  # nobody writes to it, so whoever opens it waits
    served = Served(tmp_path / "store", "study")
    try:
        with served.client() as client:
            with pytest.raises(httpx.ReadTimeout):
                client.get("/s/study/log", params={"cell": cell, "stage": "fit"}, timeout=0.5)
            assert client.get("/s/study").status_code == 200
            assert served.stop()[0] == 0  # whoever reads the log waits for ever
    finally:
        served.kill()


def test_two_servers_of_one_host_do_not_overwrite_each_others_cookie(served: Served, root: Path) -> None:
    other = Served(root / "store", "study")
    try:
        with served.client() as client:
            assert client.get(other.url).status_code == 200
            assert len(client.cookies) == 2
            assert (
                client.get(served.base + "/").status_code == client.get(other.base + "/").status_code == 200
            )
    finally:
        other.kill()


def test_ctrl_c_ends_it_quietly_too_and_a_token_may_come_from_the_environment(root: Path, made: Made) -> None:
    token = "chosen-by-me_0123456789"
    served = Served(root / "store", "study", "--token-env", "PAGE_TOKEN", env={"PAGE_TOKEN": token})
    try:
        assert served.token == token
        assert served.stop(signal.SIGINT)[0] == 0
        assert "Traceback" not in served.errors.read_text()
    finally:
        served.kill()


def test_mistakes_are_named_before_anything_is_served(root: Path, made: Made) -> None:
    run = Sweep(root, root / "store")
    assert "known: " in run("serve", "nothing", code=2) or "did you mean" in run("serve", "nothing", code=2)
    assert "can be reached from other machines" in run("serve", "study", "--host", "0.0.0.0", code=2)
    assert "holds no token" in run("serve", "study", "--token-env", "NO_SUCH_NAME", code=2)
    assert "99999 is no port" in run("serve", "study", "--port", "99999", code=2)
    assert "named twice" in run("serve", "study", "study@1", code=2)
    assert "--every is of --file" in run("serve", "study", "--every", "3", code=2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in run("serve", "study", "--port", str(port), code=2)
