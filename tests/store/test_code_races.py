"""Launches that die or race while they store a snapshot of the code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import orchestrator
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.objects import PosixStore
from tests.store.projects import in_python, repository

PACKAGE = Path(orchestrator.__file__).parent

TAKE = """
import os, signal, sys
from pathlib import Path
from orchestrator.store import code
from orchestrator.store.objects import PosixStore

root, folder, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = 0

def hook(event, args):
    global seen
    if event in ("open", "os.rename", "os.mkdir", "os.chmod") and str(args[0]).startswith(root):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

sys.stdin.read()
if at:
    sys.addaudithook(hook)
objects = PosixStore(Path(root))
print(code.store(objects, code.plan(objects, [folder])).digest)
print(seen)
"""


def small_package(folder: Path) -> Path:
    """A copy of the package's own modules that a snapshot needs, so that a test may take many."""
    for name in ("core", "store"):
        shutil.copytree(
            PACKAGE / name, folder / "orchestrator" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in PACKAGE.glob("*.py"):
        shutil.copy(path, folder / "orchestrator")
    return folder


@pytest.mark.long
def test_a_launch_killed_at_any_step_leaves_nothing_that_the_next_cannot_finish(
    tmp_path: Path,
) -> None:
    here = small_package(tmp_path / "here")
    folder = repository(tmp_path / "mine", stage="1", package__a="a")
    digest, steps = in_python(here, TAKE, str(tmp_path / "whole"), str(folder), "1000000").split()
    assert int(steps) > 100
    store = tmp_path / "store"
    whole = []
    for at in [*range(1, int(steps), int(steps) // 12), int(steps) - 1, int(steps)]:
        shutil.rmtree(store, ignore_errors=True)
        assert in_python(here, TAKE, str(store), str(folder), str(at)) == "", "it was to be killed"
        objects = PosixStore(store)
        whole.append(snapshots.damage(objects, digest) == "")
        assert whole[-1] == (store / layout.code_record(digest)).exists(), "the record comes last"
        assert in_python(here, TAKE, str(store), str(folder), "0").split()[0] == digest
        assert snapshots.damage(objects, digest) == ""
    assert not whole[0] and not whole[5]


def test_launches_that_race_end_in_one_whole_snapshot(tmp_path: Path) -> None:
    here = small_package(tmp_path / "here")
    folder = repository(tmp_path / "mine", **{f"package__m{number}": str(number) for number in range(200)})
    env = {**os.environ, "PYTHONPATH": str(here), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", TAKE, str(tmp_path / "store"), str(folder), "0"]
    racers = [
        subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    time.sleep(1.0)  # all are imported and wait for the end of their input
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None
    said = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], said
    digests = {output.split()[0] for output, _ in said}
    assert len(digests) == 1
    assert snapshots.damage(PosixStore(tmp_path / "store"), digests.pop()) == ""
