"""Files of a command that a pattern names as its checkpoints, `checkpoints: "*.pt"`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.command_output import CheckpointFiles
from orchestrator.stage import Context, StageSpec


@pytest.mark.parametrize(
    ("beside", "pattern", "taken"),
    [
        ("ckpt-7.pt.tmp", "ckpt-*", "ckpt-6.pt"),
        (".ckpt-7.pt.swp", "*ckpt-*", "ckpt-6.pt"),
        ("ckpt-6.pt.sha256", "ckpt-*", "ckpt-6.pt"),
        ("ckpt-7.pt.corrupt", "ckpt-*", "ckpt-6.pt"),
        ("ckpt-7.pt.bak", "ckpt-*", "ckpt-6.pt"),
        ("ckpt-7.pt", "ckpt-*", "ckpt-7.pt"),
        ("ckpt-7.tmp", "*.tmp", "ckpt-7.tmp"),
        ("tmp-7.pt", "*.pt", "ckpt-6.pt"),
        ("tmp3vkbd6q7.pt", "*.pt", "ckpt-6.pt"),  # of Python's tempfile
        ("tmpl-7.pt", "*.pt", "tmpl-7.pt"),
        ("tmpnet-step_7.ckpt", "*7*", "tmpnet-step_7.ckpt"),
    ],
)
def test_of_files_that_a_pattern_matches_those_that_are_being_written_are_no_checkpoints(
    tmp_path: Path, beside: str, pattern: str, taken: str
) -> None:
    context = Context(tmp_path)
    files = CheckpointFiles(StageSpec(command="x", checkpoints=pattern), context)
    for number, name in enumerate(("ckpt-6.pt", beside)):
        (context.output / name).write_text("x")
        os.utime(context.output / name, (1e9 + number, 1e9 + number))
    files.look()
    files.look()
    assert [path.name for path in context.folder.glob("checkpoints/*/*")] == [taken]


def save(context: Context, name: str, content: str, written_s: float = 0) -> None:
    part = context.output / "part"
    part.write_text(content)
    if written_s:
        os.utime(part, (written_s, written_s))
    part.replace(context.output / name)


@pytest.mark.parametrize("names", [("last.pt",) * 4, ("s=1.pt", "s=2.pt", "s=3.pt", "s=4.pt")])
def test_a_file_that_is_replaced_or_deleted_before_the_next_look_is_taken(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    context = Context(tmp_path)
    files = CheckpointFiles(StageSpec(command="x", checkpoints="*.pt"), context)
    for number, name in enumerate(names, start=1):
        for old in context.output.glob("*.pt"):
            old.unlink()
        save(context, name, str(number))
        files.look()
    taken = [path.read_text() for path in sorted(context.folder.glob("checkpoints/*/*"))]
    assert taken == ["2", "3"]
    assert not list(context.scratch.glob("part*")) and not list(context.output.glob(".*"))


def test_a_file_that_is_rewritten_in_place_between_looks_is_not_taken(tmp_path: Path) -> None:
    context = Context(tmp_path)
    files = CheckpointFiles(StageSpec(command="x", checkpoints="*.pt"), context)
    for number in range(4):
        (context.output / "last.pt").write_text("x" * number)
        files.look()
    assert not list(context.folder.glob("checkpoints/*/*"))


def test_what_a_killed_command_wrote_just_before_the_last_look_is_not_taken(tmp_path: Path) -> None:
    context = Context(tmp_path)
    files = CheckpointFiles(StageSpec(command="x", checkpoints="*.pt"), context)
    (context.output / "1.pt").write_text("half")  # it is being written in place
    files.look()
    files.look(is_last=True)
    assert not list(context.folder.glob("checkpoints/*/*"))
    files.look(is_last=True, by_itself=True)
    assert list(context.folder.glob("checkpoints/1/1.pt"))


@pytest.mark.parametrize(
    "times", [(4e9, 0, 0, 0), (1, 1, 1, 1), (4e9, 4.2e9, 4.1e9, 4.05e9), (1e9, 2e9, 4e9, 0)]
)
def test_whatever_times_files_have_the_last_one_is_the_newest(
    tmp_path: Path, times: tuple[float, ...]
) -> None:
    context = Context(tmp_path)
    files = CheckpointFiles(StageSpec(command="x", checkpoints="*.pt"), context)
    for number, written_s in enumerate(times, start=1):
        save(context, f"{number}.pt", str(number), written_s)
        files.look()
        files.look()
    assert max(int(path.name) for path in context.folder.glob("checkpoints/*")) == 4


def test_a_copy_that_keeps_the_time_of_an_older_file_is_not_the_newest(tmp_path: Path) -> None:
    context = Context(tmp_path)
    files = CheckpointFiles(StageSpec(command="x", checkpoints="*.pt"), context)
    for number in (1, 2):
        save(context, f"{number}.pt", str(number), 1e9 + number)
        files.look()
        files.look()
    shutil.copy2(context.output / "1.pt", context.output / "best.pt")
    files.look()
    files.look()
    assert [path.name for path in sorted(context.folder.glob("checkpoints/*/*"))] == ["1.pt", "2.pt"]


@pytest.mark.parametrize(
    ("stem", "step"),
    [
        ("ckpt-120", 120),
        ("step=00100", 100),
        ("epoch=3-step=120-v2", 120),
        ("global_step40-loss0.25", 40),
        ("ckpt-3-200", 200),
        ("last", 1),
        ("²", 1),
    ],
)
def test_the_name_of_a_file_holds_its_step(tmp_path: Path, stem: str, step: int) -> None:
    context = Context(tmp_path)
    files = CheckpointFiles(StageSpec(command="x", checkpoints="*.pt"), context)
    (context.output / f"{stem}.pt").write_text("x")
    files.look(is_last=True, by_itself=True)
    assert [int(path.name) for path in context.folder.glob("checkpoints/*")] == [step]


def test_folders_that_a_pattern_of_files_matches_are_named_in_the_log(tmp_path: Path, capfd: Any) -> None:
    context = Context(tmp_path)
    (context.output / "checkpoint-5").mkdir()
    files = CheckpointFiles(StageSpec(command="x", checkpoints="checkpoint-*"), context)
    files.look(is_last=True, by_itself=True)
    assert "checkpoint-5 is a folder" in capfd.readouterr().out
