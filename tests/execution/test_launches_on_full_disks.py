"""Whole launches on a disk that fills up: what a user sees, and what to do then."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from tests.conftest import Sweep
from tests.execution.faults import fill

LARGE_KIB = 4096


def test_a_launch_on_a_full_disk_ends_as_a_lack_of_space_and_not_as_a_mistake(
    disk: Path, sweep: Sweep
) -> None:
    """Exit code 3: scripts try again. No way out leads to another store, without what is done."""
    fill(disk)
    said = sweep("launch", "count", f"store.url={disk}/store", code=3)
    assert "No space left on device" in said and "SWEEP_STORE" not in said


@pytest.mark.long
def test_a_command_that_fills_its_disk_fails_by_storage_and_a_table_names_its_file(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = f"head -c {LARGE_KIB}k /dev/zero > {{output}}/large"
    (tmp_path / "large.yaml").write_text(f"stages: {{s: {{shell: true, command: '{command}'}}}}\n")
    (tmp_path / "rows.json").write_text('[{"a": 1}]')
    stage = f"{{command: 'cp {tmp_path}/rows.json {{output}}', results: rows.json}}"
    (tmp_path / "small.yaml").write_text(f"stages: {{s: {stage}}}\n")
    # The log lies on the full disk too, so the command's last words are lost.
    assert main(["launch", "large.yaml", "--store", str(disk / "store"), "policy.space_pause_s=0.2"]) == 1
    printed = capfd.readouterr().out
    assert "failed by storage" in printed and "and the disk is full: No space left on device" in printed
    assert main(["launch", "small.yaml", "--store", str(tmp_path / "store")]) == 0
    fill(disk)
    assert main(["collect", "small", "--out", str(disk / "r.csv"), "--store", str(tmp_path / "store")]) == 3
    assert str(disk / "r.csv") in capfd.readouterr().err


FILLING = """
stages: {{s: {{shell: true, command: 'test -e {others}.gone || (
    head -c 9m /dev/zero > {others} || truncate -s -{left}K {others}; cat {others} > {{output}}/x)'}}}}
"""


@pytest.mark.long
@pytest.mark.parametrize("left_kib", [0, 64])
def test_a_launch_whose_disk_stays_full_ends_with_3_and_what_to_do(
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    left_kib: int,
) -> None:
    """Also where no record of what happened has space."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)  # 82 KB are scarce
    others = disk / "others"
    (tmp_path / "large.yaml").write_text(FILLING.format(others=others, left=left_kib))
    launch = ["launch", "large.yaml", "--store", str(disk / "store")]
    assert main([*launch, "store.outage_s=1"]) == 3
    error = capfd.readouterr().err
    assert ("the store's disk is full" if left_kib else "No space left on device") in error
    assert str(disk / "store") in error and "make room, then: sweep launch large" in error
    others.rename(f"{others}.gone").write_bytes(b"")
    assert main(launch) == 0


MEETING = """
import os, time

def main(config, inputs, context):
    with (context.output / "large").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, 450 * 1024)
        time.sleep(1.5 - time.time() % 0.5)  # all that run get here, and go on at one moment
        os.posix_fallocate(stream.fileno(), 0, 1600 * 1024)
        time.sleep(0.3)
    (context.output / "large").unlink()
    return [{"seed": config.seed}]
"""


@pytest.mark.long
def test_stages_that_fit_on_a_disk_one_at_a_time_all_end_though_they_pause_alike(
    disk: Path, sweep: Sweep
) -> None:
    sweep.store = disk / "store"
    (sweep.folder / "fills.yaml").write_text(COUNT_LARGE.format())
    (sweep.folder / "filling.py").write_text(MEETING)
    said = sweep("launch", "fills.yaml", "launcher.workers=2", "policy.space_pause_s=4")
    assert "waiting: 2 cells. fill lacked space on a disk: the next starts at 2" in said
    ends = [json.loads(path.read_text()) for path in sweep.store.glob("records/fill/*/*/end.json")]
    starts = {
        (path.parts[-3], path.parts[-2]): path.stat().st_mtime
        for path in sweep.store.glob("records/fill/*/*/claim.json")
    }
    assert sorted(end["outcome"] for end in ends) == ["failed"] * 4 + ["succeeded"] * 2
    first, second = sorted(at for (_, number), at in starts.items() if int(number) == 3)
    assert second - first > 1.5, "one after the other"


COUNT_LARGE = """
expect_cells: 2
config: {{seed: 0, count: {{num_steps: 2, checkpoint_every: 1, step_s: 0, fail: null}}}}
axes: {{seed: "range(0,2)"}}
stages:
  fill: {{run: "filling:main", reads: [seed], uses: [count]}}
"""
STAGE = """
from pathlib import Path

def main(config, inputs, context):
    if not Path({gate!r}).exists():
        (context.output / "large").write_bytes(bytes(4 * 2**20))
    (context.output / "small").write_text("done")
    return [{{"seed": config.seed}}]
"""


@pytest.mark.long
def test_a_launch_on_a_disk_too_small_names_storage_and_a_rerun_finishes_when_there_is_space(
    disk: Path, sweep: Sweep
) -> None:
    """The whole command line, as a user sees it."""
    sweep.store = disk / "store"
    (sweep.folder / "fills.yaml").write_text(COUNT_LARGE.format())
    (sweep.folder / "filling.py").write_text(STAGE.format(gate=str(sweep.folder / "gate")))
    said = sweep("launch", "fills.yaml", "launcher.workers=1", "policy.space_pause_s=1", code=1)
    assert "storage" in said and "No space left on device" in said
    attempts = [cell["attempts"] for cell in sweep.json("status", "fills")["cells"]]
    assert {c["cause"] for c in sweep.json("status", "fills")["cells"]} == {"storage"}
    others = fill(disk)
    assert "No space left on device" in sweep("rerun", "fills", "--yes", code=None)
    others.unlink()
    (sweep.folder / "gate").touch()
    sweep("rerun", "fills", "--yes")
    cells = sweep.json("status", "fills")["cells"]
    assert [cell["state"] for cell in cells] == ["done", "done"]
    assert all(cell["attempts"] > before for cell, before in zip(cells, attempts, strict=True))
