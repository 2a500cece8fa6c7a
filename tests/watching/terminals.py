"""The application on a terminal that is not there: what it shows as plain text, and keys that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from orchestrator.api.overview import Watched
from orchestrator.watching.app import WatchApp
from orchestrator.watching.board import Board

SNAPSHOTS = Path(__file__).parent / "snapshots"
AGE_S = 2.0
"""Age of what is shown, by the clock of these tests."""


class Shown:
    """An application that runs, with a clock that stands still."""

    def __init__(self, app: WatchApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    def text(self) -> str:
        """What the screen shows, without colours and trailing spaces."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips) + "\n"

    async def press(self, *keys: str) -> None:
        """Press keys."""
        await self.pilot.press(*keys)

    async def until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.02)
        await self.pilot.pause()

    async def until_shown(self, text: str) -> None:
        """Wait until the screen shows a text."""
        try:
            await self.until(lambda: text in self.text())
        except TimeoutError:
            raise AssertionError(f"{text!r} is not shown:\n{self.text()}") from None

    async def until_read(self) -> None:
        """Wait until the selected cell's curve and log are shown."""
        await self.until(
            lambda: self.app.cell and self.app.detail and self.app.detail.cell == self.app.cell.id
        )

    @property
    def place(self) -> tuple[int, int]:
        """Row and column of the cursor."""
        return tuple(self.app.query_one(Board).place)


@contextlib.asynccontextmanager
async def terminal(
    url: str,
    size: tuple[int, int] = (80, 24),
    *,
    sweep: str = "study",
    only: tuple[str, ...] = (),
    interval_s: float = 0.2,
) -> AsyncIterator[Shown]:
    """Run the application on a terminal of a size, and wait until it has shown the sweep."""
    watched = Watched(sweep, url)
    app = WatchApp(watched, only, interval_s, clock=lambda: (app.found.at if app.found else 0.0) + AGE_S)
    async with app.run_test(size=size) as pilot:
        shown = Shown(app, pilot)
        await shown.until(lambda: app.found)
        await shown.until_read()
        yield shown


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test to its end."""
    asyncio.run(test)


def compare(name: str, text: str) -> None:
    """Compare a screen with the snapshot of this name; SWEEP_SNAPSHOTS=write writes it."""
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("SWEEP_SNAPSHOTS") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path}\n{text}"
