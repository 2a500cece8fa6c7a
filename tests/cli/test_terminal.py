"""What verbs print on a terminal: no word is broken at 80 columns, no escapes where none may be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.output import layout, printable
from tests.cli import launches

STYLE = re.compile(r"\x1b\[\d+m")


def on_terminal(*words: str, folder: Path, **environment: str) -> str:
    """Return what a verb shows on a terminal of its own."""
    code, shown = launches.on_terminal(
        [sys.executable, "-m", "orchestrator", *words], folder=folder, env=environment
    )
    assert code == 0, shown
    return shown


def test_a_plan_at_80_columns_breaks_no_id_and_its_costs_can_be_read(tmp_path):
    shown = on_terminal("plan", "smoke", "model=tiny-qwen3", "task=math", folder=tmp_path)
    lines = launches.screen(shown)
    in_a_pipe = subprocess.run(
        [sys.executable, "-m", "orchestrator", "plan", "smoke", "model=tiny-qwen3", "task=math"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    ids = re.findall(r"tiny-qwen3\.math\.\S+", in_a_pipe)
    assert len(ids) == 4
    assert all(name in lines for name in ids)
    tables = [
        line for line in lines if not line.lstrip().startswith(("assumed", "note", "in total", "smoke@1"))
    ]
    assert max(map(len, tables)) <= 80
    assert any(re.search(r"GPU-hours [\d.]+  GPUs 1$", line) for line in lines)


OWN = "config: {seed: 0}\naxes: {seed: [0]}\nstages: {s: {command: 'sleep 1', reads: [seed]}}\n"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_escape_is_printed_where_none_may_be(tmp_path, environment):
    (tmp_path / "own.yaml").write_text(OWN)
    launched = on_terminal("launch", "own.yaml", "launcher.workers=1", folder=tmp_path, **environment)
    shown = on_terminal("status", "own", folder=tmp_path, **environment)
    assert "\x1b" not in launched + shown
    assert "1 done" in launched and "done" in shown


def test_ones_own_sweeps_are_listed_above_those_that_ship(tmp_path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "zzz.yaml").write_text(OWN)
    lines = launches.screen(on_terminal("list", folder=tmp_path))
    assert lines[0].split()[0] == "sweep" and lines[1].split()[0] == "zzz"
    assert any(line.startswith("bilingual ") for line in lines[2:])


def test_a_terminal_that_may_gets_bold_names_and_a_pipe_gets_none(tmp_path):
    assert "\x1b[1msweep\x1b[0m" in on_terminal("list", folder=tmp_path)
    piped = subprocess.run(
        [sys.executable, "-m", "orchestrator", "list"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "\x1b" not in piped
    assert len([line for line in piped.splitlines() if "multilingual_220 " in line]) == 1


def plain(text: str, held: str) -> str:
    return text


def table(columns, rows, width):
    return layout(columns, rows, width, style=plain, title=plain)


def test_words_are_wrapped_between_words_and_ids_stay_whole():
    rows = [
        ["a-cell-with-an-id-of-thirty-chars", "failed", "a long reason that has many words in it, really"]
    ]
    assert table(["cell", "state", "reason"], rows, 72) == [
        "cell                               state   reason",
        "a-cell-with-an-id-of-thirty-chars  failed  a long reason that has many",
        "                                           words in it, really",
    ]


def test_a_table_that_cannot_fit_becomes_a_block_a_row():
    rows = [["m", "a-cell-with-an-id-of-thirty-chars", "3", "words that have to be wrapped somewhere"]]
    assert table(["model", "cell", "GPUs", "what would run"], rows, 40) == [
        "a-cell-with-an-id-of-thirty-chars",
        "  model m  GPUs 3",
        "  what would run: words that have to",
        "    be wrapped somewhere",
    ]


def test_wide_characters_take_two_columns_and_control_characters_are_shown():
    assert table(["text", "n"], [["日本語", "1"], ["ab", "2"]], None) == [
        "text    n",
        "日本語  1",
        "ab      2",
    ]
    assert printable("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\\nc\\u202e"
    assert printable("ಕನ್ನಡ বাংলা") == "ಕನ್ನಡ বাংলা"
