"""A sweep with rungs and then seeds, which a scheduler's jobs go through."""

from __future__ import annotations

import json

from tests.cli.test_phases import TRAIN
from tests.launchers.on_scheduler import OnScheduler

JOBS = """
config: {lr: 0.1, steps: 9, seed: 0}
stages:
  train:
    command: python train.py {config.lr} {config.steps} {output} {checkpoint}
    reads: [lr, steps, seed]
    results: rows.json
    checkpoints: "ckpt-*.json"
phases:
  - name: rates
    axes: {lr: [0.1, 0.4]}
    rungs: {stage: train, key: steps, at: [3, 9], keep: 1/2, metric: loss, mode: min}
    select: {metric: loss, mode: min}
  - name: seeds
    axes: {seed: [1, 2]}
expect_cells: 4
"""


def assert_jobs_go_through_rungs_and_phases(jobs: OnScheduler, *words: str) -> None:
    """Launches the sweep, stays until its end, and compares what was decided."""
    (jobs.folder / "jobs.yaml").write_text(JOBS, encoding="utf-8")
    (jobs.folder / "train.py").write_text(TRAIN, encoding="utf-8")
    shown = jobs("launch", "jobs.yaml", *words, "--wait", timeout_s=240)
    assert "4 cells: 3 done, 1 stopped" in shown
    paths = sorted(jobs.store.glob("sweeps/jobs/decisions/1/*.json"))
    assert [json.loads(path.read_text())["chosen"] for path in paths][1] == ["lr=0.4"]
    assert "0 differences" in jobs("decisions", "jobs", "--verify")
