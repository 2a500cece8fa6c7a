"""Make the screenshots of the docs: ``python docs/screenshots.py [serve ...]``.

A small sweep really runs meanwhile. Needs Chromium, as of the package `chromium` of Debian.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

DOCS = Path(__file__).parent

MOST_BYTES = 150_000
"""Greatest size of a picture, in bytes."""

SWEEP = """
description: a study in small
config: {num_steps: 80, step_s: 0.08, m: 0, t: 0, x: 0}
axes:
  model: {qwen-0.6b: {m: 0}, qwen-1.7b: {m: 1}, gemma-1b: {m: 2}, gemma-4b: {m: 3}}
  task: {math: {t: 0}, calls: {t: 1}}
  mixture: {none: {x: 0}, en: {x: 1}, en+es: {x: 2}, en+sw: {x: 3}, no-bn: {x: 4}, all: {x: 5}}
stages: {train: {run: "study:train", reads: [m, t, x, num_steps], uses: [step_s]}}
"""

STAGE = """
import math
import random
import time


def train(config, inputs, context):
    noise = random.Random(f"{config.m} {config.t} {config.x}")
    scale, last = 1.5 + 0.4 * config.m, 0.9 + 0.1 * config.x - 0.08 * config.m
    for step in range(1, config.num_steps + 1):
        time.sleep(context.uses.step_s)
        loss = last + scale * math.exp(-step / 15) + noise.gauss(0, 0.03)
        print(f"step {step} of {config.num_steps}: loss {loss:.4f}", flush=True)
        context.log(step, num_steps=config.num_steps, loss=loss, tokens_per_second=8000 / (1 + config.m))
        if config.x == 3 and config.t == 1 and step == 12:
            raise ValueError(f"row {1000 * config.m + step} of calls.sw has no answer")
    return [{"loss": loss, "accuracy": 0.9 - loss / 3}]
"""

SEEN_S = 20.0
"""When the pictures are taken, in seconds after the first cell started: some cells are done, some run."""


def sweep(*words: str, store: Path) -> subprocess.Popen[str]:
    """Start the command in the folder of the store."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=store.parent,
        env={**os.environ, "SWEEP_STORE": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
        process_group=0,
    )


@contextmanager
def running_study() -> Iterator[Path]:
    """Run the sweep `study` in the background until some of its cells are done; yield its store."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.yaml").write_text(SWEEP, encoding="utf-8")
        (folder / "study.py").write_text(STAGE, encoding="utf-8")
        store = folder / "store"
        launch = sweep("launch", "study.yaml", "launcher.workers=7", store=store)
        try:
            while not [*store.glob("payload/*/*/*/log.txt")]:
                if launch.poll() is not None:
                    raise RuntimeError("the launch ended before anything started")
                time.sleep(0.1)
            time.sleep(SEEN_S)
            yield store
        finally:
            os.killpg(launch.pid, signal.SIGINT)
            launch.communicate()


def serve() -> Iterator[Path]:
    """Make the pictures of the page: the grid, one cell, and curves; yield their files."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with running_study() as store, sync_playwright() as playwright:
        server = sweep("serve", "study", store=store)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            base = url.partition("/?")[0]
            looks = {
                "serve-grid": ("light", ""),
                "serve-curves": ("light", "/curves?only=model%3Dqwen-0.6b task%3Dmath"),
                "serve-cell": ("dark", "/cell/FAILED"),
            }
            for name, (scheme, path) in looks.items():
                page = browser.new_page(viewport={"width": 1180, "height": 700}, color_scheme=scheme)
                page.goto(url)
                if "FAILED" in path:
                    failed = page.locator("td.box.failed a").first.get_attribute("href")
                    page.goto(base + str(failed))
                else:
                    page.goto(f"{base}/s/study{path}")
                if path:
                    page.locator(".chart canvas").wait_for()
                page.screenshot(path=DOCS / f"{name}.png")
                page.close()
                yield DOCS / f"{name}.png"
        finally:
            browser.close()
            server.terminate()
            server.communicate()


MAKERS: Mapping[str, Callable[[], Iterator[Path]]] = {"serve": serve}
"""Name of a page of the docs to the function that makes its pictures."""


def main(names: list[str]) -> int:
    """Make the pictures of some pages; of all by default."""
    for name in names or MAKERS:
        for path in MAKERS[name]():
            size = path.stat().st_size
            print(f"{path}: {size:,} bytes")
            if size > MOST_BYTES:
                print(f"error: more than {MOST_BYTES:,} bytes", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
