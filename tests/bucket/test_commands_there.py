"""Commands over a bucket: what they save and leave reaches another node."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.stage import StageSpec
from tests.bucket.buckets import Bucket, BucketSweep
from tests.bucket.test_moving import Launched
from tests.cli.launches import wait_for
from tests.execution.faults import order_for
from tests.execution.here import work
from tests.store.builders import instance_of, seal, sweep_of

FIT = """
import os, sys, time
from pathlib import Path
checkpoints, output, resume = sys.argv[1:]
step = int(Path(resume, "step").read_text()) if resume else 0
start = step
while step < 12:
    time.sleep(2.0 if step > 2 and not resume else 0)
    step += 1
    part = Path(checkpoints, "part")
    part.mkdir()
    (part / "step").write_text(str(step))
    part.rename(Path(checkpoints, f"checkpoint-{step}"))
Path(output, "rows.csv").write_text(f"start,end\\n{start},{step}\\n")
print("trained")
"""
SWEEP = """
config: {x: 1}
axes: {x: [1]}
stages:
  fit:
    command: "{python} fit.py {checkpoints} {output} '{resume}'"
    reads: [x]
    results: NAME
"""


@pytest.fixture
def nodes(bucket: Bucket, tmp_path: Path) -> tuple[BucketSweep, BucketSweep]:
    """The command on two nodes, in one folder of the user's."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "fit.py").write_text(FIT)
    return BucketSweep(folder, bucket, node="first"), BucketSweep(folder, bucket, node="second")


@pytest.mark.long
def test_checkpoints_and_unread_results_of_a_command_reach_another_node(
    nodes: tuple[BucketSweep, BucketSweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nodes
    (first.folder / "s.yaml").write_text(SWEEP.replace("NAME", "rows.json"))
    launch = Launched(first, monkeypatch, "launch", "s.yaml", "launcher.workers=1")
    wait_for(lambda: list(first.store.glob("payload/*/*/1/checkpoints/*/manifest.json")), timeout_s=60)
    first("cancel", "s")
    launch.end()
    assert "there is no results file rows.json" in second("launch", "s.yaml", code=1)
    (second.folder / "s.yaml").write_text(SWEEP.replace("NAME", "rows.csv"))
    first("launch", "s.yaml", code=None)
    first("rerun", "s")
    (row,) = second.json("collect", "s")
    assert row["start"] > 0 and row["end"] == 12 and row["attempts"] == 3
    logs = {path.parent.name: path.read_text() for path in second.store.glob("payload/*/*/*/log.txt")}
    assert "trained" in logs["2"] and "trained" not in logs["3"]


def test_a_work_folder_is_refused_by_plan(nodes: tuple[BucketSweep, BucketSweep]) -> None:
    first, _ = nodes
    (first.folder / "s.yaml").write_text(
        "config: {x: 1}\naxes: {x: [1]}\nstages: {fit: {command: 'a {work}', reads: [x]}}\n"
    )
    assert "work folder" in first("plan", "s.yaml", f"store.url={first.bucket.url}", code=2)


@pytest.mark.long
def test_an_output_that_was_read_again_in_vain_is_not_read_once_more(bucket: Bucket) -> None:
    command = "bash -c 'echo trains; echo NaN > {output}/r.json'"
    sweep = sweep_of(1, {"fit": StageSpec(command=command, reads=("seed",), results="r.json")})
    order = order_for(bucket.url, sweep.name, policy={"retries": {"data": 3}})
    work(bucket.ledger(), seal(bucket.url, sweep), order)
    logs = [bucket.mirror() / f"payload/fit/{instance_of(sweep).digest}/{n}/log.txt" for n in (1, 2, 3, 4)]
    assert ["trains" in log.read_text() for log in logs] == [True, False, True, False]
