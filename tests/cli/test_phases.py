"""Sweeps with phases, from YAML to rows: real launches, whose workers decide and go on."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

TUNE = """
description: the best learning rate, then five seeds of it
config: {seed: 0, lr: 0.1, width: 4}
stages:
  fit:
    command: python fit.py {config.lr} {config.seed} {config.width} {output}
    reads: [seed, lr, width]
    results: rows.json
phases:
  - name: tune
    axes: {lr: [0.1, 0.2, 0.3]}
    select: {metric: accuracy, mode: max}
  - name: confirm
    overrides: {width: 8}
    axes: {seed: "range(0,3)"}
expect_cells: 6
"""

FIT = """
import json, sys
lr, seed, width, out = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if lr in BAD:
    sys.exit("this rate diverges")
json.dump([{"accuracy": 1 - (lr - 0.2) ** 2 + seed / 1000}], open(out + "/rows.json", "w"))
"""


@pytest.fixture
def tune(sweep: Any) -> Any:
    (sweep.folder / "tune.yaml").write_text(TUNE, encoding="utf-8")
    (sweep.folder / "fit.py").write_text(FIT.replace("BAD", "()"), encoding="utf-8")
    return sweep


def test_a_launch_goes_through_all_phases_and_reports_each_under_its_name(tune: Any) -> None:
    shown = tune("plan", "tune.yaml")
    assert "tune: 3 cells, then confirm: at most 3" in shown
    shown = tune("launch", "tune.yaml", "launcher.workers=2")
    assert "tune@1: 6 cells: 6 done" in shown
    assert "tune@1: done: 6 cells" in tune("wait", "tune")
    tune("collect", "tune", "--out", "rows.csv")
    rows = list(csv.DictReader(io.StringIO((tune.folder / "rows.csv").read_text())))
    assert [(row["phase"], row["lr"], row.get("seed")) for row in rows] == [
        ("tune", "0.1", ""),
        ("tune", "0.2", ""),
        ("tune", "0.3", ""),
        ("confirm", "0.2", "0"),
        ("confirm", "0.2", "1"),
        ("confirm", "0.2", "2"),
    ]
    assert "6 done" in tune("status", "tune")
    # Launched again, nothing is left to do, and the decision is the one that was made.
    decisions = [path.read_bytes() for path in tune.store.glob("sweeps/tune/decisions/1/*.json")]
    assert "6 done" in tune("launch", "tune.yaml")
    assert [path.read_bytes() for path in tune.store.glob("sweeps/tune/decisions/1/*.json")] == decisions


def test_a_failed_cell_counts_as_the_worst_and_fails_the_launch_but_not_the_decision(tune: Any) -> None:
    (tune.folder / "fit.py").write_text(FIT.replace("BAD", "(0.2,)"), encoding="utf-8")
    shown = tune("launch", "tune.yaml", "launcher.workers=2", "policy.retries.unknown=0", code=1)
    assert "5 done" in shown and "1 failed" in shown
    (record,) = tune.store.glob("sweeps/tune/decisions/1/*.json")
    decision = json.loads(record.read_text())
    assert decision["chosen"] == ["lr=0.1"]
    assert "failed" in decision["seen"][1]["why"]


def test_without_a_value_the_sweep_stands_and_names_the_reason(tune: Any) -> None:
    text = TUNE.replace("metric: accuracy", "metric: acuracy")
    (tune.folder / "tune.yaml").write_text(text, encoding="utf-8")
    shown = tune("launch", "tune.yaml", "launcher.workers=2", code=1)
    assert "phase tune: not decided: no cell has a value: no row has acuracy" in shown
    assert "never done as it is" in tune("wait", "tune", code=1)
