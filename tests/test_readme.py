"""The sweeps of README and tutorial, run as a newcomer would: files and commands are taken from the pages."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/tutorial.md")}
TUTORIAL = PAGES["docs/tutorial.md"]


def files_of(page: str) -> dict[str, str]:
    return dict(re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


def commands_of(page: str) -> list[str]:
    return re.findall(r"^\$ (cd .+|sweep .+)$", page, re.MULTILINE)


FILES, COMMANDS = files_of(TUTORIAL), commands_of(TUTORIAL)


def readme_console() -> list[tuple[str, str]]:
    """The commands of README's own sweep, without `sweep`, each with the output that README shows."""
    console = PAGES["README.md"].partition("```console\n$ cd curve\n")[2].partition("```")[0]
    blocks = re.split(r"^\$ sweep ", console, flags=re.MULTILINE)[1:]
    return [(command, shown) for command, _, shown in (block.partition("\n") for block in blocks)]


def shown_by_readme() -> list[str]:
    """The commands of README that a test here runs."""
    return ["cd curve", *(f"sweep {command}" for command, _ in readme_console())]


def write_files(folder: Path) -> None:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def run_commands(folder: Path, sweep: list[str], environment: dict[str, str]) -> str:
    output = ""
    for command in COMMANDS:
        words = shlex.split(command.partition("#")[0])
        if words[0] == "cd":
            folder = folder / words[1]
            continue
        assert words[0] == "sweep"
        done = subprocess.run(
            [*sweep, *words[1:]],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        output += done.stdout
    with (folder / "rows.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    assert {row["close"] for row in rows if row["stage"] == "score" and row["rate"] == "0.1"} == {"true"}
    assert {row["close"] for row in rows if row["stage"] == "score" and row["rate"] == "0.01"} == {"false"}
    return output


def environment(**more: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "SWEEP_STORE"} | more


@pytest.mark.long
def test_the_tutorials_own_sweep_of_15_lines_runs_as_it_says(tmp_path):
    assert len(FILES["descent/descent.yaml"].splitlines()) <= 15
    write_files(tmp_path)
    output = run_commands(tmp_path, [sys.executable, "-m", "orchestrator"], environment())
    assert "6 cells, 12 stages" in output
    assert "descent@1: 6 cells: 6 done" in output
    assert "verified by content" in output


def test_readmes_sweep_in_two_files_prints_what_readme_shows(tmp_path):
    page = PAGES["README.md"]
    for name, text in files_of(page).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for command, shown in readme_console():
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *shlex.split(command)],
            cwd=tmp_path / "curve",
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (1 if command.startswith("launch") else 0), done.stderr
        assert shown.strip() in done.stdout
    assert len(list(csv.DictReader((tmp_path / "curve/rows.csv").open()))) == 4
    assert len(page.splitlines()) <= 120 and max(map(len, page.splitlines())) <= 100


@pytest.mark.long
def test_from_a_wheel_the_configs_travel_inside_and_tutorials_own_sweep_runs(tmp_path):
    wheels, site, folder = tmp_path / "wheels", tmp_path / "site", tmp_path / "work"
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(wheels),
    ]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
    )
    write_files(folder)
    run_commands(folder, [sys.executable, "-m", "orchestrator"], environment(PYTHONPATH=str(site)))
    listed = subprocess.run(
        [sys.executable, "-m", "orchestrator", "plan", "smoke"],
        cwd=folder,
        env=environment(PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "16 cells" in listed.stdout
