"""The keys of `sweep watch`: what each shows, and that only a confirmed change is ever written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from textual.widgets import Input

from orchestrator.api.requests import build_request
from orchestrator.api.state import open_view
from orchestrator.store import layout
from orchestrator.store.ledger import open_ledger
from orchestrator.watching.screens import KEYS, Confirm
from tests.store import builders, states
from tests.watching.terminals import Shown, compare, run, terminal

ONCE = """
config: {seed: 0, count: {num_steps: 3, checkpoint_every: 1, step_s: 0.0,
  fail: {how: data, step: 2, attempts: 1}}}
axes: {seed: [0, 1, 2]}
stages: [count]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with a study."""
    states.make(tmp_path / "store")
    return tmp_path / "store"


def files(root: Path) -> dict[str, int]:
    """All files of a store, with the times of their last change."""
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def requests(root: Path, sweep: str = "study") -> list[tuple[str, tuple[str, ...] | None]]:
    """The requests of a sweep after the first one: verb and cells."""
    return [(each.verb, each.cells) for each in open_ledger(str(root)).requests(sweep)][1:]


def test_arrows_move_over_rows_and_columns_and_stop_at_the_edges(root: Path):
    async def keys() -> None:
        async with terminal(str(root)) as shown:
            await shown.press("up", "left")
            assert shown.place == (0, 0)
            await shown.press("down", "right", "j", "end")
            assert shown.place == (4, 1)
            await shown.press("down", *["right"] * 4)
            assert shown.place == (4, 3)
            await shown.press("home", "left", "h", "k")
            assert shown.place == (0, 1)
            await shown.until_shown("model=small task=calls mixture=none")
            await shown.pilot.click("#board", offset=(21, 4))
            await shown.until_shown("model=large task=math mixture=en+es")

    run(keys())


def test_n_goes_from_failure_to_failure_and_round(root: Path):
    async def keys() -> None:
        async with terminal(str(root)) as shown:
            seen = []
            for _ in range(7):
                await shown.press("n")
                seen.append(shown.place)
            assert len(set(seen)) == 6 and seen[0] == seen[6]
            await shown.press("N")
            assert shown.place == seen[5]

    run(keys())


def test_w_shows_the_evidence_and_escape_goes_back(root: Path):
    async def keys() -> None:
        async with terminal(str(root)) as shown:
            await shown.press("n", "w")
            await shown.until_shown("attempt 1: claimed")
            assert "why small.calls.en-00000006" in shown.text()
            assert "when mended: sweep rerun study --only" in shown.text()
            await shown.press("escape")
            await shown.until_shown("6 failed")

    run(keys())


def test_l_shows_the_log_and_follows_it_until_somebody_scrolls_up(root: Path):
    async def keys() -> None:
        async with terminal(str(root)) as shown:
            made = open_ledger(str(root)).revision("study", 1).sweep
            await shown.press("down", "down", "down")
            await shown.until_read()
            await shown.press("l")
            await shown.until_shown("step 40 of 100")
            assert "step 1 of 100\n" not in shown.text()  # the end of it
            cell = shown.app.cell
            assert cell is not None
            fit = next(made.stages[c.stage_digests[0]] for c in made.cells if c.id == cell.id)
            with (root / layout.log(fit, 1)).open("a") as stream:
                stream.write("\x1b[31mstep 41\x1b[0m\r\x1b[32mstep 41 of 100\n")
            await shown.until_shown("step 41 of 100")
            assert "\x1b" not in shown.text()
            await shown.press("home")
            await shown.until_shown("step 1 of 100")
            with (root / layout.log(fit, 1)).open("a") as stream:
                stream.write("step 42 of 100\n")
            await shown.pilot.pause(0.6)
            assert "step 42" not in shown.text()
            await shown.press("end")
            await shown.until_shown("step 42 of 100")

    run(keys())


def test_m_shows_the_next_metric_and_enter_the_cell_on_a_whole_screen(root: Path):
    async def keys() -> None:
        async with terminal(str(root), (120, 24)) as shown:
            await shown.press("n")
            await shown.until_shown("loss 3.636 at step 1 of fit")
            await shown.press("m")
            await shown.until_shown("tokens_per_second 1000 at step 1")
            await shown.press("m", "enter")
            await shown.until_shown("fit: tried to allocate 2 GiB (oom_gpu)")
            await shown.until_shown("loss 3.636 at step 1 of fit")
            assert "6 failed" not in shown.text()
            await shown.press("escape")
            await shown.until_shown("6 failed")

    run(keys())


def test_brackets_select_among_the_cells_of_one_position(tmp_path: Path):
    made = states.make(
        tmp_path / "s", {"rate": ("1", "2"), "seed": ("0", "1", "2")}, cycle=("done", "failed")
    )

    async def keys() -> None:
        async with terminal(made.ledger.objects.url) as shown:
            await shown.until_shown("rate=1 seed=1  [2/3]  failed")  # what needs someone first
            await shown.press("]")
            await shown.until_shown("rate=1 seed=2  [3/3]  done")
            await shown.press("]")
            await shown.until_shown("rate=1 seed=0  [1/3]  done")
            await shown.press("[", "[")
            await shown.until_shown("rate=1 seed=1  [2/3]  failed")

    run(keys())


def test_help_names_each_key_and_each_mark(root: Path):
    async def keys() -> None:
        async with terminal(str(root), (80, 40)) as shown:
            await shown.press("question_mark")
            await shown.until_shown("Keys of sweep watch")
            compare("help-80x40", shown.text())
            assert all(f"\n{keys:<8}" in shown.text() for keys, _ in KEYS)

    run(keys())


def test_a_last_message_of_the_board_after_the_end_is_ignored(root: Path):
    async def keys() -> None:
        async with terminal(str(root)) as shown:
            pass
        shown.app.on_board_moved()

    run(keys())


def test_a_filter_is_a_selector_and_a_wrong_one_leaves_the_last(root: Path):
    async def type_in(shown: Shown, text: str) -> None:
        await shown.press("slash")
        shown.app.query_one(Input).value = text  # a key takes the pilot a tenth of a second
        await shown.press("enter")

    async def keys() -> None:
        async with terminal(str(root)) as shown:
            await type_in(shown, "state=failed model=small")
            await shown.until_shown("3 of 20 cells  filter: state=failed model=small")
            assert "F  3 failed" in shown.text()
            await type_in(shown, "modle=small")
            await shown.until_shown("modle")
            assert "3 of 20 cells" in shown.text()
            await shown.press("slash", "x", "escape")
            assert "3 of 20 cells" in shown.text()
            await type_in(shown, "state=lost")
            await shown.until_shown("0 of 20 cells")
            await shown.press("down", "n", "w", "l", "enter", "r", "m", "right_square_bracket")
            await shown.until_shown("no cell to rerun")
            await type_in(shown, "")
            await shown.until_shown("20 cells")

    run(keys())


def test_f_goes_through_the_groups_of_failures_and_back_to_the_filter_of_before(root: Path):
    async def keys() -> None:
        async with terminal(str(root), only=("model=small",)) as shown:
            for number, cause in ((1, "data"), (1, "oom_gpu"), (1, "config")):
                await shown.press("f")
                await shown.until_shown(f"{number} of 20 cells  filter: model=small failure=")
                await shown.until_shown(f"{number} {cause} ")
            await shown.press("f")
            await shown.until_shown("10 of 20 cells  filter: model=small")

    run(keys())


def test_a_filter_of_the_command_line_is_there_from_the_start(root: Path):
    async def keys() -> None:
        async with terminal(str(root), only=("mixture=en",)) as shown:
            await shown.until_shown("4 of 20 cells  filter: mixture=en")

    run(keys())


def test_without_a_yes_nothing_is_written(root: Path):
    async def keys() -> None:
        before = files(root)
        async with terminal(str(root)) as shown:
            await shown.press("n")
            for key, answer in (("r", "n"), ("R", "escape"), ("c", "q"), ("C", "n")):
                await shown.press(key)
                await shown.until(lambda: isinstance(shown.app.screen, Confirm))
                await shown.press("enter", answer)
                await shown.until_shown("nothing was changed")
            await shown.press("w", "escape", "l", "escape", "enter", "escape", "f5")
        assert files(root) == before

    run(keys())


def test_a_cancel_names_the_number_of_cells_and_cancels_those_alone(root: Path):
    async def keys() -> None:
        async with terminal(str(root)) as shown:
            await shown.press("end", "right", "c")
            await shown.until_shown("cancel 1 cell of study@1?")
            await shown.press("y")
            await shown.until_shown("x  3 cancelled")
            assert requests(root)[-1] == ("cancel", ("small.calls.all-00000009",))
            await shown.press("C")
            await shown.until_shown("cancel 9 cells of study@1?")
            await shown.until_shown("2 running, 6 failed, 1 pending")
            await shown.until_shown("and 3 more")
            await shown.press("y")
            await shown.until_shown("x  4 cancelled")
        assert len(requests(root)[-1][1] or ()) == 9

    run(keys())


def test_a_cell_that_is_done_cannot_be_cancelled(root: Path):
    async def keys() -> None:
        async with terminal(str(root)) as shown:
            await shown.press("c")
            await shown.until_shown("nothing to cancel: 1 cell, all done")
        assert requests(root) == [("cancel", tuple(states_of(root, "cancelled")))]

    run(keys())


def states_of(root: Path, state: str) -> list[str]:
    from orchestrator.api.overview import Watched

    return [cell.id for cell in Watched("study", str(root)).look().cells if cell.state == state]


@pytest.mark.long
def test_a_rerun_that_is_confirmed_runs_the_failed_cell_to_its_end(sweep: Any):
    (sweep.folder / "once.yaml").write_text(ONCE)
    sweep("launch", "once.yaml", code=1)
    assert sweep.json("status", "once")["counts"] == {"failed": 3}

    async def keys() -> None:
        async with terminal(str(sweep.store), sweep="once") as shown:
            await shown.until_shown("3 data count")
            await shown.press("down", "r")
            await shown.until_shown("rerun 1 cell of once@1?")
            await shown.press("y")
            await shown.until_shown("rerun of 1 cell recorded and started")
            await shown.until_shown("#  1 done")
            await shown.press("R")
            await shown.until_shown("rerun 2 cells of once@1?")
            await shown.press("y")
            await shown.until_shown("#  3 done")

    run(keys())
    cells = sweep.json("status", "once")["cells"]
    verbs = [(verb, None if cells is None else len(cells)) for verb, cells in requests(sweep.store, "once")]
    assert verbs == [("rerun", 1), ("rerun", 2)]
    assert json.dumps([cell["retries"] for cell in cells]) == "[1, 1, 1]"


def test_a_rerun_that_would_be_refused_is_not_even_asked(root: Path):
    view = open_view("study", str(root))
    elsewhere = msgspec.structs.replace(builders.settings(), launcher={"name": "elsewhere"})
    launch = build_request(view, "launch", view.sweep.cells, settings=elsewhere)
    open_ledger(str(root)).add_request("study", launch)

    async def keys() -> None:
        async with terminal(str(root)) as shown:
            await shown.press("n", "r")
            await shown.until_shown("rerun refused")
            assert "'elsewhere'" in shown.text()
        assert "rerun" not in [verb for verb, _ in requests(root)]

    run(keys())
