"""A tracker of a user's own that fails costs its stage nothing, and hides no failure of it."""

from __future__ import annotations

from typing import Any

SWEEP = """
description: stages with a tracker that fails
config: {fails: false}
axes: {fails: [false, true]}
stages:
  work: {run: "work:main", reads: [fails]}
"""

WORK = """
from orchestrator.errors import StageFailure


def main(config, inputs, context):
    for step in range(1, 4):
        context.log(step, loss=1.0)
    if config.fails:
        raise StageFailure("data", "row 7 has no answer")
    return [{"loss": 1.0}]


class Broken:
    def __init__(self, tracked):
        pass

    def log(self, step, metrics):
        raise ConnectionError("nobody listens")

    def close(self):
        raise SystemExit("nothing to close")
"""


def test_a_tracker_that_fails_costs_its_stage_nothing_and_hides_no_failure(sweep: Any) -> None:
    (sweep.folder / "own.yaml").write_text(SWEEP)
    (sweep.folder / "work.py").write_text(WORK)
    out = sweep("launch", "own.yaml", "tracker.name=work:Broken", code=1)
    assert "own@1: 2 cells: 1 done, 1 failed" in out and "row 7 has no answer (data)" in out
    log = sweep("logs", "own", "--stage", "work", sweep.json("status", "own")["cells"][0]["cell"])
    assert log.count("ConnectionError: nobody listens") == 1 and "nothing to close" not in log
    assert "tracker work:Broken failed 4 times" in log
    logged = [path.read_text().count("loss") for path in sweep.store.glob("payload/work/*/*/metrics.jsonl")]
    assert logged == [3, 3]
