"""The folders of tests lie in memory, which a run that was killed must not keep."""

import os
import subprocess
from pathlib import Path

from tests.conftest import give_back


def test_only_folders_of_runs_that_have_ended_without_giving_them_back_are_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "pytest-of-me"
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name, lock in (
        ("dead", str(ended.pid)),
        ("alive", str(os.getpid())),
        ("beginning", ""),
        ("kept", None),
    ):
        (folder / f"pytest-{name}" / "test_one0").mkdir(parents=True)
        if lock is not None:
            (folder / f"pytest-{name}" / ".lock").write_text(lock)
    (folder / "pytest-current").symlink_to(folder / "pytest-dead")
    give_back(tmp_path)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "pytest-alive",
        "pytest-beginning",
        "pytest-kept",
    }


def test_test_beds_without_processes_are_deleted_unless_they_are_new(tmp_path: Path) -> None:
    beds = [
        tmp_path / name
        for name in ("sweep-slurm.gone", "sweep-ray.gone", "sweep-ray.alive", "sweep-slurm.in")
    ]
    for bed in beds:
        (bed / "etc").mkdir(parents=True)
    give_back(tmp_path)
    assert all(bed.is_dir() for bed in beds)
    daemon = subprocess.Popen(["sh", "-c", "read line", f"--temp-dir={beds[2]}/head"], stdin=subprocess.PIPE)
    inside = subprocess.Popen(["sh", "-c", "read line"], stdin=subprocess.PIPE, cwd=beds[3])
    try:
        give_back(tmp_path, new_s=-1)
        assert [bed.is_dir() for bed in beds] == [False, False, True, True]
    finally:
        for process in (daemon, inside):
            process.communicate()
