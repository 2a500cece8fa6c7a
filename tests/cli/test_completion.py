"""Completion in a real bash: verbs, options, choices and names of sweeps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("completion")  # they share what is expensive to make


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of one's own, and the command `sweep` and its completion beside it."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "night.yaml").write_text("stages: []\n")
    (folder / "own.yaml").write_text("stages: []\n")
    command = folder / "bin" / "sweep"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m orchestrator "$@"\n')
    command.chmod(0o755)
    for shell in ("bash", "zsh", "fish"):
        made = subprocess.run([command, "completion", shell], capture_output=True, text=True, check=True)
        (folder / f"sweep.{shell}").write_text(made.stdout)
    return folder


def completed(place: Path, *words: str) -> list[str]:
    """What bash offers for the last of some words."""
    script = f"""
    source "{place}/sweep.bash"
    COMP_WORDS=(sweep "$@")
    COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
    _sweep
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words],
        cwd=place,
        env={**os.environ, "PATH": path, "SWEEP_STORE": str(place / "store")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return sorted(filter(None, done.stdout.splitlines()))


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["st"], ["status"]),
        (["help", "sta"], ["status"]),
        (["status", "ni"], ["night"]),
        (["launch", "ow"], ["own.yaml", "own.yaml"]),
        (["plan", "multilingual_220_"], ["multilingual_220_tiny"]),
        (["logs", "night", "cell", "--f"], ["--follow"]),
        (["collect", "night", "--format", ""], ["csv", "json", "parquet"]),
        (["completion", "z"], ["zsh"]),
        (["collect", "night", "--out", "ow"], ["own.yaml"]),
    ],
)
def test_bash_offers_what_may_follow(place, words, offered):
    assert completed(place, *words) == offered


def test_every_verb_is_offered_and_so_are_its_options(place):
    from orchestrator.cli.main import VERBS

    assert set(VERBS) <= set(completed(place, ""))
    for verb in ("plan", "clean"):
        assert "--json" in completed(place, verb, "smoke", "--")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_read_by_their_shell_without_an_error(place, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    flag = "--no-execute" if shell == "fish" else "-n"
    done = subprocess.run(
        [shell, flag, place / f"sweep.{shell}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_shell_it_says_which_there_are(sweep):
    assert "bash, zsh, fish" in sweep("completion", code=2)
    assert "invalid choice" in sweep("completion", "tcsh", code=2)
