"""A shared folder that fails for a while, or for good in one place: that is said, and the rest goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.launches import Running, wait_for
from tests.conftest import Sweep
from tests.store.builders import counted
from tests.store.users import NOBODY, other_user

COUNT = """
description: counts
expect_cells: 4
config: {seed: 0, count: {num_steps: 4, checkpoint_every: 1, step_s: 0.1, fail: null}}
axes: {seed: "range(0,4)"}
stages: [count]
"""

GATED = """
import os, time
from orchestrator import count

def main(config, inputs, context):
    while config.seed and not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
        time.sleep(0.05)
    return count.main(config, inputs, context)
"""
"""All but the first cell wait."""
STAGE = "{count: {run: 'gated:main', reads: [count, seed], uses: [count.step_s, count.fail]}}"


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes calls fail as a control file says."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here to build the library that makes calls fail")
    library = tmp_path_factory.mktemp("faulty") / "faulty.so"
    source = Path(__file__).with_name("faulty.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


class Faults:
    """What fails now."""

    def __init__(self, control: Path) -> None:
        self._control = control

    def set(self, *faults: tuple[int, Path]) -> None:
        """Makes all calls on what lies under each path fail with an error number; without any, none."""
        text = "".join(f"{number} {path}\n" for number, path in faults)
        temporary = self._control.with_suffix(".new")
        temporary.write_text(text)
        temporary.rename(self._control)


@pytest.fixture
def faults(shim: Path, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The command's calls on its store may fail."""
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    monkeypatch.setenv("FAULTY", str(tmp_path / "control"))
    (sweep.folder / "counts.yaml").write_text(COUNT)
    yield Faults(tmp_path / "control")


def states(sweep: Sweep, *words: str) -> list[str]:
    return [cell["state"] for cell in sweep.json("status", "counts", *words)["cells"]]


def products(store: Path) -> list[str]:
    found = [json.loads(path.read_text()) for path in store.glob("done/count/*.json")]
    folders = [store / f"payload/count/{d['digest']}/{d['attempt']}/output" for d in found]
    return sorted((folder / "count.txt").read_text() for folder in folders)


@pytest.mark.parametrize(
    "number",
    [
        errno.EIO,
        pytest.param(errno.ESTALE, marks=pytest.mark.long),
        pytest.param(errno.ENOTCONN, marks=pytest.mark.long),
        pytest.param(errno.ETIMEDOUT, marks=pytest.mark.long),
    ],
)
def test_workers_and_their_launch_wait_out_a_folder_that_does_not_answer_for_a_while(
    faults: Faults, sweep: Sweep, number: int
) -> None:
    (sweep.folder / "counts.yaml").write_text(COUNT.replace("[count]", STAGE))
    (sweep.folder / "gated.py").write_text(GATED)
    launch = Running(sweep.folder, sweep.store, ("launch", "counts.yaml", "launcher.workers=2"))
    wait_for(lambda: [*sweep.store.glob("done/count/*.json")])
    faults.set((number, sweep.store))
    launch.wait_for_line("does not answer")
    time.sleep(1.5)  # the workers notice it too
    faults.set()
    (sweep.folder / "go").touch()
    code, said = launch.end()
    assert code == 0, said
    assert "does not answer" in said and os.strerror(number) in said and "answers again" in said
    assert states(sweep) == ["done"] * 4
    assert products(sweep.store) == sorted(counted(seed, 4) for seed in range(4))


@pytest.mark.long
def test_a_short_outage_now_and_then_is_hardly_noticed(faults: Faults, sweep: Sweep) -> None:
    launch = Running(sweep.folder, sweep.store, ("launch", "counts.yaml", "launcher.workers=2"))
    wait_for(lambda: [*sweep.store.glob("records/count/*/1/claim.json")])
    for _ in range(2):
        faults.set((errno.EIO, sweep.store))
        time.sleep(0.6)
        faults.set()
        time.sleep(0.8)
    code, said = launch.end()
    assert code == 0, said
    assert products(sweep.store) == sorted(counted(seed, 4) for seed in range(4))


@pytest.mark.long
def test_an_outage_that_lasts_longer_than_the_setting_ends_the_launch_and_the_next_goes_on(
    faults: Faults, sweep: Sweep
) -> None:
    words = ("launch", "counts.yaml", "launcher.workers=1", "store.outage_s=1")
    launch = Running(sweep.folder, sweep.store, words)
    wait_for(lambda: [*sweep.store.glob("done/count/*.json")])
    faults.set((errno.EIO, sweep.store))
    code, said = launch.end()
    assert code == 3 and "Input/output error" in said, said
    faults.set()
    sweep("launch", "counts.yaml", "launcher.workers=2")
    assert states(sweep) == ["done"] * 4


@pytest.mark.long
@pytest.mark.parametrize("number", [errno.EIO, pytest.param(errno.EACCES, marks=pytest.mark.long)])
def test_a_stage_whose_records_cannot_be_read_is_unknown_and_all_others_are_done(
    faults: Faults, sweep: Sweep, number: int
) -> None:
    cells = sweep.json("plan", "counts.yaml")["cells"]
    digest = cells[3]["stages"][0]["digest"]
    (sweep.store / f"records/count/{digest}").mkdir(parents=True)
    faults.set((number, sweep.store / f"records/count/{digest}"))
    said = sweep("launch", "counts.yaml", "launcher.workers=2", code=1)
    assert "3 done, 1 unknown" in said
    found = sweep.json("status", "counts")["cells"]
    assert [cell["state"] for cell in found] == ["done"] * 3 + ["unknown"]
    assert os.strerror(number) in found[3]["reason"] and digest in found[3]["reason"]


@pytest.mark.long
def test_every_verb_answers_while_the_records_of_one_stage_cannot_be_read(
    faults: Faults, sweep: Sweep
) -> None:
    found = sweep.json("plan", "counts.yaml")["cells"][0]
    cell, folder = found["cell"], sweep.store / f"records/count/{found['stages'][0]['digest']}"
    folder.mkdir(parents=True)
    faults.set((errno.EIO, folder))
    sweep("launch", "counts.yaml", "launcher.workers=2", code=1)
    assert "unknown" in sweep("status", "counts")
    assert "cannot be read" in sweep("why", "counts", cell)
    sweep("plan", "counts.yaml")
    sweep("show", "counts", cell)
    sweep("logs", "counts", cell, code=None)
    assert len(sweep.json("collect", "counts")) == 3
    sweep("report", "counts", code=None)
    sweep("list")
    assert "no failed cells" in sweep("rerun", "counts", "--yes")
    sweep("discard", "counts", cell, "--stage", "count", "--reason", "a test")
    assert "cancelled 1 cell" in sweep("cancel", "counts")
    faults.set()
    sweep("launch", "counts.yaml", "launcher.workers=1")
    assert states(sweep) == ["done"] * 4


@pytest.mark.long
def test_a_product_that_cannot_be_read_just_now_is_unknown_and_not_damaged(
    faults: Faults, sweep: Sweep
) -> None:
    sweep("launch", "counts.yaml", "launcher.workers=2")
    digest = sweep.json("status", "counts")["cells"][2]["stages"][0]["digest"]
    faults.set((errno.EIO, sweep.store / f"payload/count/{digest}"))
    assert states(sweep)[2] == "unknown"
    assert sweep("launch", "counts.yaml", "launcher.workers=1", code=1)
    assert not (sweep.store / "void").exists()
    faults.set()
    assert states(sweep) == ["done"] * 4


def test_a_folder_that_another_user_closed_to_us_costs_one_cell(open_to_all: Sweep) -> None:
    sweep, other = open_to_all, other_user(open_to_all)
    (sweep.folder / "counts.yaml").write_text(COUNT)
    digest = sweep.json("plan", "counts.yaml")["cells"][1]["stages"][0]["digest"]
    closed = sweep.store / f"records/count/{digest}"
    closed.mkdir(parents=True, mode=0o700)  # it stays root's
    for folder in (sweep.folder, sweep.store, closed.parent.parent, closed.parent):
        os.chown(folder, NOBODY, NOBODY)
    assert "3 done, 1 unknown" in other("launch", "counts.yaml", "launcher.workers=2", code=1)
    assert "Permission denied" in other("status", "counts")
