"""Bars of long steps: on a terminal, after a while, on standard error alone, and gone at the end."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.launches import screen

PROGRAM = """
import os, sys, time
from orchestrator.cli import output
output.DELAY_S = {delay_s}
with output.LongStep("collecting", writes=True) as step:
    for number in (1, 3):
        if number == 3:
            print("a line of the step")
            with open("big", "wb") as file:
                file.write(b"x" * 3_000_000)
        step(number, 4)
        while {waits} and not os.path.exists(f"shown {{number}} of 4"):
            time.sleep(0.01)
print("[1]")
"""


def run(folder: Path, *, delay_s: float = 0.1, out: bool = False, **environment: str) -> tuple[str, str]:
    """Run the program; see `on_terminal`. Without a longer delay it waits until the bar is seen."""
    program = PROGRAM.format(delay_s=delay_s, waits=delay_s < 1 and not environment)
    return on_terminal(folder, "-c", program, out=out, **environment)


def on_terminal(folder: Path, *words: str, out: bool = False, **environment: str) -> tuple[str, str]:
    """Run Python with standard error on a terminal; return what this shows, and standard output.

    Args:
        folder: to run it in.
        words: its arguments.
        out: whether standard output is the terminal too.
        environment: variables.
    """
    ours, its = pty.openpty()
    known = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env={**known, "TERM": "xterm-256color", **environment},
        stdin=its,
        stdout=its if out else subprocess.PIPE,
        stderr=its,
    )
    os.close(its)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break
        shown += data
        for text in re.findall(rb"\d of 4", shown):
            (folder / f"shown {text.decode()}").touch()
        if not data:
            break
    os.close(ours)
    said = process.stdout.read().decode() if process.stdout else ""
    assert process.wait(timeout=60) == 0
    return shown.decode(), said


def test_a_long_step_shows_a_bar_that_is_gone_at_its_end(tmp_path: Path) -> None:
    shown, said = run(tmp_path)
    assert "collecting" in shown and "1 of 4" in shown and "3 of 4" in shown and "0:00:0" in shown
    assert re.search(r"[3-9] MB written", shown)
    assert said == "a line of the step\n[1]\n" and screen(shown) == []


def test_lines_of_the_step_stay_above_the_bar(tmp_path: Path) -> None:
    shown, _ = run(tmp_path, out=True)
    assert "3 of 4" in shown and screen(shown) == ["a line of the step", "[1]"]


@pytest.mark.parametrize(
    "quiet",
    [
        {"delay_s": 3600.0},
        pytest.param({"TERM": "dumb"}, marks=pytest.mark.long),
        pytest.param({"NO_COLOR": "1"}, marks=pytest.mark.long),
    ],
)
def test_a_short_step_and_a_terminal_that_cannot_show_bars_show_none(
    tmp_path: Path, quiet: dict[str, object]
) -> None:
    assert run(tmp_path, **quiet) == ("", "a line of the step\n[1]\n")  # type: ignore[arg-type]


def test_without_a_terminal_nothing_is_shown(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(delay_s=0.0, waits=False)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("a line of the step\n[1]\n", "")


@pytest.mark.long
def test_a_plan_that_takes_long_shows_a_bar_and_prints_pure_json(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nfrom orchestrator.costs import Estimate\n"
        "def estimate(config, **_):\n    time.sleep(3.5)\n    return Estimate(wall_hours=1.0)\n"
        "def main(config, inputs, context):\n    return []\n"
    )
    stages = "stages: {fit: {run: 'slow:main', reads: [x], estimate: 'slow:estimate'}}"
    (tmp_path / "s.yaml").write_text(f"config: {{x: 1}}\naxes: {{x: [1]}}\n{stages}\n")
    store = {"SWEEP_STORE": str(tmp_path / "store")}
    shown, said = on_terminal(tmp_path, "-m", "orchestrator", "plan", "s.yaml", "--json", **store)
    assert json.loads(said)["sweep"] == "s"
    assert "planning" in shown and screen(shown) == []
