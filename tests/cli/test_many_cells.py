"""Ten thousand cells: what reads them takes seconds, most of all `status`."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

import pytest

from orchestrator.core.sweep import Input
from orchestrator.store import layout

SWEEP = """
config: {rate: 1, seed: 0, stamp: "${now:%H-%M-%S-%f}"}
axes: {rate: "range(0,2500)", name: {a: {+name: a}, b: {+name: b}}, seed: [0, 1]}
stages: {fit: {run: "fit:main", reads: [rate, name, seed], uses: [stamp]}}
"""
STAGE = """
def main(config, inputs, context):
    context.log(1, loss=0.5)
    return [{"score": config.rate + config.seed}]
"""


def cpu_s(sweep: Any, *words: str) -> float:
    """Run a verb and return the seconds of CPU that it took."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before_s = spent()
    subprocess.run(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=sweep.folder,
        env={**os.environ, "SWEEP_STORE": str(sweep.store)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return spent() - before_s


@pytest.mark.long
def test_verbs_that_read_ten_thousand_finished_cells_take_seconds_of_one_core(sweep: Any) -> None:
    (sweep.folder / "own.yaml").write_text(SWEEP)
    (sweep.folder / "fit.py").write_text(STAGE)
    assert cpu_s(sweep, "plan", "own.yaml") < 25
    sweep("launch", "own.yaml", "--only", "rate=0 name=a seed=0", "launcher.workers=1")
    cells = sweep.json("status", "own")["cells"]
    assert len(cells) == 10_000
    (made,) = sweep.store.glob(f"{layout.done_index('fit')}/*.json")
    record = json.loads(made.read_text())
    for cell in cells:  # each is finished as the one that ran
        digest = cell["stages"][0]["digest"]
        path = sweep.store / layout.done(Input("fit", "", digest), 1)
        path.write_text(json.dumps({**record, "digest": digest}))
    assert sweep.json("status", "own")["counts"] == {"done": 10_000}
    assert cpu_s(sweep, "status", "own") < 1.5
    assert cpu_s(sweep, "collect", "own", "--out", "rows.csv") < 2
    assert cpu_s(sweep, "report", "own", "--out", "out") < 30
