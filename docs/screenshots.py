"""Make the pictures of the docs: ``python docs/screenshots.py [NAME]...``; without a name, all of them.

A name also stands for all that begin with it, so ``serve`` makes ``serve-grid`` and the like.

Each maker shows the real thing on a store that is made for it, and draws with the Chromium of the system.
"""

from __future__ import annotations

import asyncio
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

CHROMIUM = "/usr/bin/chromium"
MAX_BYTES = 150_000
"""Most bytes of a picture."""

STUDY = {
    "model": ("qwen3-0.6b", "qwen3-1.7b", "qwen3-8b", "gemma3-1b", "gemma3-4b"),
    "task": ("math", "api_calling"),
    "mixture": ("none", "en", "en+es", "en+ja", "en+bn", "en+sw", "no-en", "no-es", "no-ja", "core", "all"),
}
STATES = (*["done"] * 9, "running", "done", "failed", *["done"] * 6, "running", "out_of_memory", "pending")
"""What the cells of a study are like in the pictures, one after the other."""


def study(root: Path) -> None:
    """Make a store with a study that is in the middle of its work."""
    from tests.store import states

    states.make(root, STUDY, STATES)


def watch(root: Path) -> bytes:
    """Return a picture of `sweep watch`."""
    from orchestrator.api.overview import Watched
    from orchestrator.watching.app import WatchApp

    study(root)
    app = WatchApp(Watched("study", str(root)))

    async def shown() -> str:
        async with app.run_test(size=(110, 26)) as pilot:
            while app.detail is None:
                await asyncio.sleep(0.05)
            await pilot.press(*["right"] * 4, *["down"] * 2)
            while app.cell is None or app.detail is None or app.detail.cell != app.cell.id:
                await asyncio.sleep(0.05)
            await pilot.pause(0.5)
            return app.export_screenshot(title="sweep watch study")

    svg = asyncio.run(shown())
    # The picture names a font on another machine; the fonts of this one do.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code", "DejaVu Sans Mono")
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    page = f"<body style='margin:0'>{svg}</body>"
    return drawn(page, round(float(width)), round(float(height)))


def serve(root: Path, path: str, scheme: Literal["light", "dark"] = "light") -> bytes:
    """Return a picture of a page of `sweep serve`.

    Args:
        root: an empty place for a store.
        path: of the page; ``CELL`` stands for a cell that runs.
        scheme: the colours.
    """
    from playwright.sync_api import sync_playwright

    study(root)
    words = [sys.executable, "-m", "orchestrator", "serve", "study", "--store", str(root)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1180, "height": 740}, color_scheme=scheme)
            tab.goto(url)
            if path == "CELL":
                path = tab.locator("td.box.running a").first.get_attribute("href") or ""
            tab.goto(url.partition("/?")[0] + path)
            if path:
                tab.locator(".chart canvas").wait_for()
            picture = tab.screenshot()
            browser.close()
    finally:
        server.terminate()
        server.communicate()
    return picture


def drawn(page: str, width: int, height: int) -> bytes:
    """Return a picture of a page as PNG.

    Args:
        page: its HTML.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": height})
        tab.set_content(page)
        picture = tab.screenshot()
        browser.close()
    return picture


def small(picture: bytes) -> bytes:
    """Return a picture with few colours, which takes a third of the space."""
    from PIL import Image

    stream = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(64).save(stream, "PNG", optimize=True)
    return stream.getvalue()


MAKERS: dict[str, Callable[[Path], bytes]] = {
    "watch": watch,
    "serve-grid": lambda root: serve(root, ""),
    "serve-curves": lambda root: serve(root, "/s/study/curves?only=model%3Dqwen3-0.6b"),
    "serve-cell": lambda root: serve(root, "CELL", "dark"),
}
"""Name of a picture in this folder to the function that draws it, given an empty place for a store."""


def main() -> int:
    """Make the pictures that are named."""
    for name in [name for name in MAKERS if not sys.argv[1:] or name.startswith(tuple(sys.argv[1:]))]:
        with tempfile.TemporaryDirectory() as folder:
            picture = small(MAKERS[name](Path(folder, "store")))
        path = DOCS / f"{name}.png"
        path.write_bytes(picture)
        print(f"{path}: {len(picture)} bytes")
        if len(picture) > MAX_BYTES:
            print(f"  more than {MAX_BYTES}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
