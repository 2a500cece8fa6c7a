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
