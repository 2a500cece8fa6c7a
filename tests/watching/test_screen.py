"""What `sweep watch` shows: on small and large terminals, without colours, and of a store that is silent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.store import layout
from orchestrator.watching.board import Board
from tests.store import states
from tests.watching.terminals import compare, run, terminal

SIZES = ((80, 24), (40, 12), (200, 60))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a study that nobody changes."""
    root = tmp_path_factory.mktemp("watched") / "store"
    states.make(root)
    return str(root)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_the_grid_totals_failures_and_the_selected_cell_fit_on_the_screen(url: str, size: tuple[int, int]):
    async def look() -> None:
        async with terminal(url, size) as shown:
            await shown.press("n")  # the next cell that failed: its state has no ages in it
            await shown.until_read()
            compare("study-{}x{}".format(*size), shown.text())

    run(look())


def test_without_colours_the_same_marks_are_shown_and_no_colour_is(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")

    async def look() -> None:
        async with terminal(url) as shown:
            await shown.press("n")
            await shown.until_read()
            compare("study-80x24", shown.text())
            strips = shown.app.screen._compositor.render_strips()
            styles = [segment.style for strip in strips for segment in strip if segment.style]
            assert all(style.color is None or style.color.is_default for style in styles)
            # The cursor is seen without them.
            assert any(style.reverse for style in styles)

    run(look())


def test_a_terminal_that_changes_its_size_keeps_the_cell_and_shows_what_fits(url: str):
    async def look() -> None:
        async with terminal(url) as shown:
            await shown.press("down", "right")
            cell = shown.app.cell
            for size in ((40, 12), (20, 5), (3, 2), (200, 60), (80, 24)):
                await shown.pilot.resize_terminal(*size)
                await shown.pilot.pause()
                assert shown.app.cell is not None and cell is not None
                assert shown.app.cell.id == cell.id
            await shown.until_shown("model=small task=calls mixture=en")

    run(look())


def test_many_cells_are_few_widgets_and_a_cursor_at_the_end_is_on_the_screen(tmp_path: Path):
    axes = {"rate": [f"r{n}" for n in range(1000)], "name": ["a", "b", "c"], "seed": ["0", "1"]}
    made = states.make(tmp_path / "store", axes, cycle=("pending",))

    async def look() -> None:
        async with terminal(made.ledger.objects.url) as shown:
            assert len(shown.app.screen.query("*")) < 30
            await shown.press("end", "right")
            await shown.until_shown("name=b rate=r999 seed=0  [1/2]")
            assert shown.place == (999, 1)
            assert "r999" in shown.text() and "rate" in shown.text().splitlines()[3]

    run(look())


def test_a_finished_sweep_is_shown_with_nothing_left(tmp_path: Path):
    made = states.make(tmp_path / "store", {"mixture": ("en", "es")}, cycle=("done",))

    async def look() -> None:
        async with terminal(made.ledger.objects.url) as shown:
            await shown.until_shown("#  2 done")
            assert "nothing is left to run" in shown.text()
            assert "nothing failed" in shown.text()

    run(look())


def test_a_store_that_goes_away_is_named_and_shown_again_when_it_is_back(tmp_path: Path):
    root = tmp_path / "store"
    states.make(root)

    async def look() -> None:
        async with terminal(str(root)) as shown:
            root.rename(tmp_path / "away")
            await shown.until_shown("store silent since")
            await shown.press("down", "?")
            await shown.until_shown("Keys of sweep watch")
            await shown.press("escape")
            assert shown.place == (1, 0)
            (tmp_path / "away").rename(root)
            await shown.until(lambda: "silent" not in shown.text())

    run(look())


def test_a_store_that_hangs_stops_no_key(tmp_path: Path):
    root = tmp_path / "store"
    states.make(root)

    async def look() -> None:
        async with terminal(str(root)) as shown:
            mark = root / layout.STORE
            content = mark.read_bytes()
            mark.unlink()
            os.mkfifo(mark)  # whoever opens it waits, as on a file server that does not answer
            await shown.pilot.pause(0.5)
            await shown.press("down", "down", "right")
            assert shown.place == (2, 1)
            shown.app._clock = lambda: shown.app.found.at + 60.0 if shown.app.found else 0.0
            await shown.until_shown("store silent since")
            # Opening both ends lets the reader go on; what it reads is no store.
            end = os.open(mark, os.O_RDWR | os.O_NONBLOCK)
            os.write(end, content)
            os.close(end)
            mark.unlink()
            mark.write_bytes(content)
            at = shown.app.found.at if shown.app.found else 0.0
            await shown.until(lambda: shown.app.found and shown.app.found.at > at)

    run(look())


def test_what_changes_in_the_store_is_shown_and_the_cursor_stays(tmp_path: Path):
    root = tmp_path / "store"
    made = states.make(root)

    async def look() -> None:
        async with terminal(str(root)) as shown:
            await shown.press("down", "down")
            first = made.fit(made.of("failed")[0])
            (root / layout.attempt(first, 1, layout.END)).unlink()
            await shown.until_shown("5 failed")
            assert shown.place == (2, 0)
            assert shown.app.query_one(Board).has_focus

    run(look())
