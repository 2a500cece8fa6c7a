"""`sweep watch` as a command: what it refuses before it touches the screen, and once for real, in tmux."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.launches import on_terminal, wait_for

TMUX = shutil.which("tmux")
COUNTING = """
config: {seed: 0, count: {num_steps: 400, checkpoint_every: 50, step_s: 0.05, fail: null}}
axes: {count.num_steps: [400, 500, 600], seed: [0, 1]}
stages: [count]
"""


def test_without_a_terminal_it_names_the_verbs_that_need_none(sweep: Any):
    said = sweep("watch", "smoke", code=2)
    assert "watch needs a terminal" in said
    assert "sweep status smoke" in said and "sweep events smoke --follow" in said


def test_an_unknown_sweep_wrong_selectors_a_wrong_axis_and_a_wrong_interval_are_refused(sweep: Any):
    assert "unknown sweep 'smokey'" in sweep("watch", "smokey", code=2)
    assert "modle" in sweep("watch", "smoke", "--only", "modle=a", code=2)
    assert "'modle' is no axis" in sweep("watch", "smoke", "--rows", "modle", code=2)
    assert "0.2 to 3600 seconds" in sweep("watch", "smoke", "--interval", "0.01", code=2)


def test_without_textual_the_extra_is_named(sweep: Any):
    program = "import sys; sys.modules['textual'] = None\n"
    program += "from orchestrator.cli.main import main\nsys.exit(main())"
    code, shown = on_terminal([sys.executable, "-c", program, "watch", "smoke"], folder=sweep.folder)
    assert code == 2 and "pip install 'polysweep[watch]'" in shown


class Tmux:
    """A tmux server of the test's own, with one window of 80 x 24."""

    def __init__(self, folder: Path, store: Path) -> None:
        self._command = [str(TMUX), "-L", f"polysweep-{os.getpid()}", "-f", "/dev/null"]
        env = {**os.environ, "SWEEP_STORE": str(store), "TERM": "screen-256color"}
        env.pop("TMUX", None)
        subprocess.run(
            [*self._command, "new-session", "-d", "-x", "80", "-y", "24", "-c", str(folder)],
            env=env,
            check=True,
        )

    def do(self, *words: str) -> str:
        done = subprocess.run([*self._command, *words], check=True, capture_output=True, text=True)
        return done.stdout

    def type(self, text: str) -> None:
        self.do("send-keys", "-l", text)

    def key(self, name: str) -> None:
        self.do("send-keys", name)

    def screen(self, *options: str) -> str:
        return self.do("capture-pane", "-p", *options)

    def until(self, text: str, timeout_s: float = 60) -> str:
        deadline_s = time.monotonic() + timeout_s
        while text not in (shown := self.screen()):
            assert time.monotonic() < deadline_s, f"{text!r} is not shown:\n{shown}"
            time.sleep(0.1)
        return shown


@pytest.fixture
def tmux(sweep: Any) -> Iterator[Tmux]:
    if TMUX is None:
        pytest.skip("tmux is not installed")
    found = Tmux(sweep.folder, sweep.store)
    yield found
    found.do("kill-server")


@pytest.mark.long
def test_in_tmux_a_running_sweep_is_watched_steered_and_left(sweep: Any, tmux: Tmux):
    (sweep.folder / "counting.yaml").write_text(COUNTING)
    sweep("launch", "counting.yaml", "--detach", "launcher.workers=2")
    tmux.type(f"{sys.executable} -m orchestrator watch counting --interval 0.3")
    tmux.key("Enter")
    tmux.until("2 running")
    shown = tmux.until("count.num_steps=400 seed=")
    assert "6 cells" in shown and "ETA" in shown
    tmux.key("End")  # the longest cells are the first to run
    tmux.until("count.num_steps=600 seed=")
    first = tmux.until("running: count, step ")
    wait_for(lambda: tmux.screen() != first)
    assert "\x1b[" in tmux.screen("-e")
    tmux.key("l")
    tmux.until("count attempt 1")
    tmux.key("Escape")
    tmux.until("help")
    tmux.type("c")
    tmux.until("cancel 2 cells of counting@1?")
    tmux.type("y")
    tmux.until("2 cancelled")
    tmux.do("resize-window", "-x", "44", "-y", "14")
    tmux.until("? help  q quit")
    tmux.type("q")
    wait_for(lambda: "? help" not in tmux.screen())
    assert sweep.json("status", "counting", "--only", "count.num_steps=600")["counts"] == {"cancelled": 2}
    sweep("cancel", "counting")
    wait_for(lambda: "running" not in sweep.json("status", "counting")["counts"])
