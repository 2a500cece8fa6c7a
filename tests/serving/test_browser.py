"""The pages in a real browser: what is painted, clicked, followed and read aloud."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.cli.launches import Running, wait_for
from tests.conftest import Sweep
from tests.serving.pages import Served
from tests.store import states
from tests.store.states import Made

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium, as of the package `chromium` of Debian")

AXE = "axe-core@4.14.1"

SLOW = """
description: some of it fails while one looks
config: {seed: 0, count: {num_steps: 60, checkpoint_every: 20, step_s: 0.1, fail: null}}
axes:
  kind:
    good: {seed: 0}
    bad: {seed: 1, count.fail: {how: config, step: 25, attempts: 9}}
stages: [count]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def made(root: Path) -> Made:
    return states.make(root / "store")


@pytest.fixture(scope="module")
def served(root: Path, made: Made) -> Iterator[Served]:
    running = Served(root / "store", "study")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Opened:
    """A browser window that has opened a served page, and what went wrong in it."""

    def __init__(self, browser: Browser, served: Served, **options: Any) -> None:
        self.context: BrowserContext = browser.new_context(viewport={"width": 1280, "height": 860}, **options)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.addresses: list[str] = []
        self.page.on(
            "console", lambda message: self.errors.append(message.text) if message.type == "error" else None
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.base = served.base
        self.page.goto(served.url)

    def go(self, path: str) -> Page:
        """Opens a path."""
        self.page.goto(self.base + path)
        return self.page


@pytest.fixture(scope="module")
def opened(browser: Browser, served: Served) -> Iterator[Opened]:
    window = Opened(browser, served)
    yield window
    # Nothing was blocked by the policy, no script failed, and no request left the machine.
    assert window.errors == []
    assert {address.startswith(served.base) for address in window.addresses} == {True}
    window.context.close()


def test_the_address_of_the_start_page_holds_no_token_any_more(opened: Opened, served: Served) -> None:
    assert opened.page.url == served.base + "/"
    assert "token" not in opened.page.evaluate("location.href + document.cookie")


def test_a_click_on_a_box_leads_to_its_cell_with_curve_and_log(opened: Opened, made: Made) -> None:
    page = opened.go("/")
    page.locator("td.box a").nth(0).click()
    page.wait_for_url("**/cell/**")
    cell = made.of("done")[0]
    assert page.locator("h1").inner_text() == cell
    page.locator(".chart canvas").wait_for(timeout=60_000)
    assert f"{'score'} of {cell}: done" in page.locator("pre.log").inner_text()


def test_a_click_on_a_column_sorts_the_results_and_a_filter_keeps_the_order(opened: Opened) -> None:
    page = opened.go("/s/study/results")

    def column(number: int) -> list[str]:
        return page.locator(f"tbody tr td:nth-child({number})").all_inner_texts()

    page.get_by_role("link", name="mixture").click()
    assert column(4) == sorted(column(4))
    page.get_by_role("link", name="mixture").click()
    assert column(4) == sorted(column(4), reverse=True)
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("mixture")
    page.get_by_label("Filter stage").fill("score")
    page.get_by_role("button", name="Filter").click()
    assert {*page.locator("tbody tr").evaluate_all("rows => rows.map(row => row.cells[6].innerText)")} == {
        "score"
    }
    assert column(4) == sorted(column(4), reverse=True)


def test_chosen_curves_are_drawn_over_each_other(opened: Opened, made: Made) -> None:
    page = opened.go("/s/study/curves")
    page.locator("input[name=cell]").evaluate_all("boxes => boxes.forEach(box => box.checked = false)")
    for cell in made.of("done")[:3]:
        page.locator(f"input[value='{cell}']").check()
    page.get_by_role("button", name="Draw").click()
    page.locator(".chart canvas").wait_for(timeout=60_000)
    labels = page.locator(".u-legend .u-series th").all_inner_texts()
    assert [label.strip(": ") for label in labels[1:]] == made.of("done")[:3]


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened: Opened) -> None:
    page = opened.go("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        shown = page.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return [e.tagName + (e.className || ''), s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
        )
        if shown[0] == "BODY":
            break  # behind the last one
        assert shown[1] != "none" and shown[2] >= 1, shown
        seen.add(shown[0])
    assert {"A", "INPUT", "BUTTON", "DIVscroll"} <= {name.removesuffix("brand") for name in seen}


PAGES = ("", "/cells", "/curves", "/results", "/report", "/cell/CELL")


def test_no_page_is_wider_than_a_phone(browser: Browser, served: Served, made: Made) -> None:
    window = Opened(browser, served)
    window.page.set_viewport_size({"width": 375, "height": 740})
    for path in PAGES:
        page = window.go("/s/study" + path.replace("CELL", made.of("failed")[0]))
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, path
    window.context.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the script of axe-core, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    if not shutil.which("npm"):
        pytest.skip("needs npm, which fetches axe-core")
    done = subprocess.run(
        ["npm", "pack", AXE, "--silent"], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        pytest.skip(f"npm cannot fetch {AXE}: {done.stderr[-200:]}")
    subprocess.run(["tar", "xzf", done.stdout.strip()], cwd=folder, check=True)
    return (folder / "package" / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_serious_finding_on_any_page(
    browser: Browser, root: Path, made: Made, axe: str, scheme: Any
) -> None:
    states.make(root / "store", {"rate": ("1", "2"), "seed": ("0", "1")}, name=f"other-{scheme}")
    run = Sweep(root, root / "store")
    run("serve", "study", "--file", "page.html")
    run("report", "study")
    served = Served(root / "store", "study", f"other-{scheme}")
    found = {}
    try:
        window = Opened(browser, served, color_scheme=scheme)
        cells = [made.of(kind)[0] for kind in ("failed", "done", "running")]
        paths = ["/", "/nothing", *("/s/study" + path for path in PAGES if "CELL" not in path)]
        paths += [
            "/s/study?only=state%3Dfailed",
            "/s/study/cells?row=0&column=0",
            "/s/study/report/report.html",
        ]
        paths += [f"/s/study/cell/{cell}" for cell in cells]
        for address in [*(served.base + path for path in paths), f"file://{root}/page.html"]:
            window.page.goto(address)
            window.page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
            # By the debugger, which no policy of the page stops.
            window.page.evaluate(axe)
            answer = window.page.evaluate("axe.run()")
            assert answer["passes"]
            for each in answer["violations"]:
                if each["impact"] in ("serious", "critical", "moderate"):
                    found[f"{address} {each['id']}"] = [node["html"][:200] for node in each["nodes"][:3]]
        assert found == {}, json.dumps(found, indent=1)
    finally:
        served.kill()


@pytest.mark.long
def test_a_running_sweep_is_followed_and_its_failure_appears_by_itself(
    browser: Browser, tmp_path: Path
) -> None:
    (tmp_path / "slow.yaml").write_text(SLOW)
    store = tmp_path / "store"
    launch = Running(tmp_path, store, ("launch", "slow.yaml", "launcher.workers=2"))
    served = None
    try:
        wait_for(lambda: [*store.glob("payload/*/*/*/log.txt")])
        served = Served(store, "slow")
        window = Opened(browser, served)
        grid = window.page
        grid.locator("td.box.running").nth(1).wait_for(timeout=60_000)
        window.page.evaluate("window.isTheSamePage = true")
        bad = grid.locator("td.box a").nth(1).get_attribute("href")
        page = window.context.new_page()
        page.goto(f"{window.base}{bad}")
        log = page.locator("pre.log")
        before = log.inner_text()
        page.wait_for_function(
            "n => document.querySelector('pre.log').textContent.length > n", arg=len(before)
        )
        grid.locator("td.box.failed").wait_for(timeout=60_000)
        grid.get_by_text("1 cell", exact=True).wait_for(timeout=60_000)
        assert grid.evaluate("window.isTheSamePage")  # nothing was loaded anew
        page.locator("#head .state.failed").wait_for(timeout=60_000)
        page.get_by_text("the attempt has ended").wait_for(timeout=60_000)
        grid.locator("td.box.done").wait_for(timeout=60_000)
        assert window.errors == []
    finally:
        if served is not None:
            served.kill()
        launch.interrupt()
        launch.end()


def test_a_page_names_a_server_that_is_gone(browser: Browser, root: Path, made: Made) -> None:
    served = Served(root / "store", "study")
    window = Opened(browser, served)
    assert window.page.evaluate("read('/nothing')") is None
    window.page.get_by_text("The server of this page answers with error 404 since").wait_for(timeout=60_000)
    assert window.page.evaluate("read('/live').then(response => response.ok)")
    assert served.stop()[0] == 0  # with an open page
    window.page.get_by_text("The server of this page has not answered since").wait_for(timeout=60_000)
    window.context.close()


def paints(window: Opened, path: str) -> list[float]:
    """Opens a path a few times; returns after how many milliseconds each time it was painted first."""
    found = []
    for _ in range(4):
        page = window.go(path)
        entry = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        found.append(page.wait_for_function(entry).json_value())
    return found


MANY = {
    "model": [f"model-{n}" for n in range(5)],
    "task": ("math", "calls"),
    "mixture": [f"mixture-{n}" for n in range(23)],
}


def test_230_cells_are_painted_without_a_script_or_a_further_look(browser: Browser, tmp_path: Path) -> None:
    states.make(tmp_path / "store", MANY)
    served = Served(tmp_path / "store", "study")
    try:
        window = Opened(browser, served, java_script_enabled=False)
        assert window.page.locator("td.box").count() == 230 and window.errors == []
        pages = [address for address in window.addresses if "/static/" not in address]
        assert pages == [served.url, f"{served.base}/"]
    finally:
        served.kill()


@pytest.mark.long
def test_230_cells_are_painted_at_once(browser: Browser, tmp_path: Path) -> None:
    states.make(tmp_path / "store", MANY)
    served = Served(tmp_path / "store", "study")
    try:
        window = Opened(browser, served)
        # The best of a few: other work on the machine only adds to it.
        assert min(found := paints(window, "/")) < 300, found
    finally:
        served.kill()


@pytest.mark.long
def test_ten_thousand_cells_are_painted_within_a_second(browser: Browser, tmp_path: Path) -> None:
    axes = {"rate": [*map(str, range(2500))], "name": ("a", "b"), "seed": ("0", "1")}
    states.make(tmp_path / "store", axes)
    served = Served(tmp_path / "store", "study")
    try:
        window = Opened(browser, served)
        for path in ("/", "/s/study/cells", "/s/study/results", "/s/study?page=3"):
            assert min(found := paints(window, path)) < 1000, (path, found)
        assert window.go("/").locator("td.box").count() < 2000
    finally:
        served.kill()
