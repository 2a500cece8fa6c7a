"""Checkpoints of commands: they count while the command runs, however it and those around it end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StageFailure
from orchestrator.execution.checkpoints import LEFT_S, LOOK_S, Sealer
from orchestrator.execution.command import run_command
from orchestrator.execution.command_output import Arrivals
from orchestrator.saving import MANIFEST, step_of
from orchestrator.stage import Config, Context, Inputs, StageSpec
from tests.execution.jobs import Jobs
from tests.execution.waiting import tree, until

FIT = """
import os, sys, time
from pathlib import Path
checkpoints, resume, name, keep = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
step = int(Path(resume, "step").read_text()) if resume else 0
print("from", step, flush=True)
while step < 100:
    time.sleep(0.2)
    step += 1
    part = checkpoints / f"part-{step}.tmp"
    (part / "nested").mkdir(parents=True)
    (part / "step").write_text(str(step))
    (part / "nested" / "weights").write_bytes(os.urandom(20_000))
    part.rename(checkpoints / name.replace("N", str(step)))
    print("saved", step, flush=True)
    old = checkpoints / name.replace("N", str(step - keep))
    for path in (old / "step", old / "nested" / "weights"):
        path.unlink(missing_ok=True)
"""


def fit(folder: Path, name: str = "N", keep: int = 1000) -> StageSpec:
    (folder / "fit.py").write_text(FIT)
    return StageSpec(command=f"{{python}} fit.py {{checkpoints}} '{{resume}}' {name} {keep}")


def last_saved(log: list[str]) -> tuple[int, int]:
    saved = [int(line.split()[1]) for line in log if line.startswith("saved")]
    start = next(int(line.split()[1]) for line in log if line.startswith("from"))
    return start, saved[-1] if saved else start


@pytest.mark.parametrize("name", ["N", pytest.param("epoch=1-step=N", marks=pytest.mark.long)])
def test_the_loss_of_all_processes_at_once_costs_two_seconds_at_most(
    store: Path, run: Jobs, name: str
) -> None:
    job = run(fit(store.parent, name))
    job.wait_for("saved 14")

    def keeps_up() -> bool:
        """Whether no more than 2 s of 0.2 s each are lost now, and what was being read."""
        _, saved = last_saved(job.log())
        assert saved < 100, "only its end is saved"
        return max(job.steps(), default=0) >= saved - 12

    assert LOOK_S <= 1.0
    until(keeps_up)
    job.kill_all()
    again = run(fit(store.parent, name))
    again.wait_for(f"from {max(job.steps())}", attempt=2)


@pytest.mark.parametrize("who", ["command", pytest.param("child", marks=pytest.mark.long), "worker"])
def test_checkpoints_outlive_sigkill_of_any_one_process(store: Path, run: Jobs, who: str) -> None:
    job = run(fit(store.parent))
    job.wait_for("saved 3")
    until(lambda: job.steps())
    pids = tree(job.process.pid)
    os.kill(pids[("command", "child", "worker").index(who)], signal.SIGKILL)
    if who == "worker":
        job.process.wait()
        time.sleep(0.5)
        job = run(fit(store.parent))
    until(lambda: any(line.startswith("from") for line in job.log(2)))
    start, _ = last_saved(job.log(2))
    _, saved = last_saved(job.log(1))
    assert start >= (saved if who == "command" else 1)


def test_a_command_may_delete_its_checkpoints_while_they_are_sealed(store: Path, run: Jobs) -> None:
    job = run(fit(store.parent, keep=1))
    job.wait_for("saved 8")
    os.kill(tree(job.process.pid)[0], signal.SIGKILL)
    until(lambda: any(line.startswith("from") for line in job.log(2)))
    _, saved = last_saved(job.log())
    assert last_saved(job.log(2))[0] in (saved, saved + 1)  # it was killed before or after it wrote the line
    assert not [line for line in job.log() if "rror" in line]


def sealed(context: Context) -> list[str]:
    return sorted(path.parent.name for path in (context.folder / "checkpoints").glob(f"*/{MANIFEST}"))


def run_shell(context: Context, script: str) -> None:
    run_command(StageSpec(command=script, shell=True), Config({}), Inputs({}), context)


def test_what_is_written_in_place_counts_only_when_the_command_ended_by_itself(tmp_path: Path) -> None:
    script = (
        "mkdir {checkpoints}/4.tmp; echo x > {checkpoints}/4.tmp/w; mv {checkpoints}/4.tmp {checkpoints}/4;"
        "mkdir {checkpoints}/5; touch {checkpoints}/5/a; sleep 0.1; echo x > {checkpoints}/5/a; END"
    )
    killed = Context(tmp_path / "killed")
    with pytest.raises(StageFailure):
        run_shell(killed, script.replace("END", "kill -KILL $$"))
    assert sealed(killed) == ["4"]
    failed = Context(tmp_path / "failed")
    with pytest.raises(StageFailure):
        run_shell(failed, script.replace("END", "exit 3"))
    assert sealed(failed) == ["4", "5"]


def test_a_folder_written_in_place_counts_once_a_later_step_has_begun(tmp_path: Path) -> None:
    context = Context(tmp_path)
    sealer = Sealer(context)
    checkpoints = tmp_path / "checkpoints"
    first, second, third = (checkpoints / f"checkpoint-{step}" for step in (500, 1000, 1500))
    first.mkdir(parents=True)
    second.mkdir()
    (first / "a").write_text("x")
    sealer.look(now_s=0)
    sealer.look(now_s=100)
    assert sealed(context) == [], "the folder of the later step is empty: nothing was saved there"
    (second / "a").write_text("x")
    (first / "b").write_text("of another rank, which is late")
    sealer.look(now_s=101)
    sealer.look(now_s=101 + LEFT_S - 1)
    assert sealed(context) == []
    sealer.look(now_s=101 + LEFT_S)
    assert sealed(context) == ["checkpoint-500"]
    assert len(json.loads((first / MANIFEST).read_text())["files"]) == 2
    third.mkdir()
    (third / "a").write_text("half")
    sealer.look(is_last=True)  # it was killed: nobody writes any more
    assert sealed(context) == ["checkpoint-1000", "checkpoint-500"]
    (first / "c").write_text("late, in a folder that was not the last one to be sealed")
    sealer.look()
    assert sealed(context) == ["checkpoint-1000"]


def test_a_manifest_that_was_copied_along_or_is_the_commands_own_is_no_seal(
    tmp_path: Path, capfd: Any
) -> None:
    context = Context(tmp_path, attempt=2)
    with context.checkpoint(3) as folder:
        (folder / "w").write_text("x")
    script = (
        "cp -r {checkpoints}/00000003 {checkpoints}/tmp; echo y > {checkpoints}/tmp/w; mv {checkpoints}/tmp "
        "{checkpoints}/7; mkdir {checkpoints}/t; echo '{}' > {checkpoints}/t/manifest.json; "
        "mv {checkpoints}/t {checkpoints}/8"
    )
    run_shell(context, script)
    manifest = json.loads((tmp_path / "checkpoints/7" / MANIFEST).read_text())
    assert manifest["step"] == 7 and [file["path"] for file in manifest["files"]] == ["w"]
    assert json.loads((tmp_path / "checkpoints/8" / MANIFEST).read_text()) == {}
    assert "checkpoint 8 does not count" in capfd.readouterr().out


def test_a_checkpoint_that_is_written_to_after_all_loses_its_seal_until_it_is_whole(tmp_path: Path) -> None:
    context = Context(tmp_path)
    sealer = Sealer(context)
    folder = renamed(context, "5")
    sealer.look()
    sealer.look()
    assert sealed(context) == ["5"]
    (folder / "b").write_text("more")
    sealer.look()
    assert sealed(context) == []
    sealer.look()
    sealer.look(is_last=True, by_itself=True)
    assert sealed(context) == ["5"]
    assert len(json.loads((folder / MANIFEST).read_text())["files"]) == 2


def renamed(context: Context, name: str, *files: str) -> Path:
    part = context.folder / "checkpoints" / "part"
    part.mkdir(parents=True)
    for each in ("a", *files):
        (part / each).write_text("x")
    return part.rename(part.with_name(name))


def test_files_that_keep_their_times_do_not_make_a_folder_that_grows_in_its_place_look_whole(
    tmp_path: Path,
) -> None:
    context = Context(tmp_path)
    sealer = Sealer(context)
    folder = context.folder / "checkpoints" / "5"
    folder.mkdir()
    (folder / "a").write_text("x")
    os.utime(folder / "a", (1e9, 1e9))  # as `cp -p`, `rsync -a` and `shutil.move` between file systems
    sealer.look()
    sealer.look()
    assert sealed(context) == []
    folder.rename(folder.with_name("part")).rename(folder)
    sealer.look()
    sealer.look()
    assert sealed(context) == ["5"]


def test_a_deleted_file_that_is_still_open_elsewhere_costs_a_checkpoint_no_seal(tmp_path: Path) -> None:
    context = Context(tmp_path)
    sealer = Sealer(context)
    folder = renamed(context, "5", ".nfs00000000deadbeef", ".smbdeleteAAA1c.4")
    sealer.look()
    sealer.look()
    (folder / ".nfs00000000deadbeef").unlink()
    sealer.look()
    assert sealed(context) == ["5"]
    assert [file["path"] for file in json.loads((folder / MANIFEST).read_text())["files"]] == ["a"]


def test_a_folder_of_checkpoints_that_is_made_again_is_watched_like_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    arrivals = Arrivals(folder)
    for make_away in (shutil.rmtree, lambda path: path.rename(tmp_path / "old")):
        (folder / "1").mkdir()
        make_away(folder)
        arrivals.in_place()
        folder.mkdir()
        (folder / "2").mkdir()  # before the new folder is watched: how it was made is unknown
        assert arrivals.in_place() == {"2"}
        (folder / "3.new").mkdir()
        (folder / "3.new").rename(folder / "3")
        (folder / "5").mkdir()
        assert {"2", "5"} <= arrivals.in_place() and not {"1", "3"} & arrivals.in_place()
    arrivals.close()


@pytest.mark.parametrize("written_s", [1, 4e9])
def test_folders_are_sealed_whatever_times_their_files_have(tmp_path: Path, written_s: float) -> None:
    context = Context(tmp_path)
    sealer = Sealer(context)
    part = context.folder / "checkpoints" / "part"
    part.mkdir(parents=True)
    (part / "a").write_text("x")
    os.utime(part / "a", (written_s, written_s))
    part.rename(part.with_name("5"))
    sealer.look()
    sealer.look()
    assert sealed(context) == ["5"]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("5", 5),
        ("00000120", 120),
        ("checkpoint-100", 100),
        ("ckpt_7", 7),
        ("global_step120", 120),
        ("epoch=3-step=120", 120),
        ("epoch_3", 3),
        ("tmp-12", None),
        ("tmpab12", None),
        ("checkpoint-5-old", None),
        ("5.tmp", None),
        ("²", None),
        ("9" * 30, None),
    ],
)
def test_a_checkpoints_name_says_its_step(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_a_command_that_saves_what_is_no_checkpoint_is_told_so_in_its_log(tmp_path: Path, capfd: Any) -> None:
    run_shell(Context(tmp_path), "touch {checkpoints}/epoch3.pt")
    assert "epoch3.pt is no checkpoint" in capfd.readouterr().out
