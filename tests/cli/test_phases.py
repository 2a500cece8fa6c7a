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
    later = "not counted: what follows phase tune, at most 3 more cells"
    assert later in shown and later in tune("plan", "tune.yaml", "--budget")
    assert tune.json("plan", "tune.yaml")["later"] == {"after": "phase tune", "num_cells": 3, "num_longer": 0}
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
    assert tune.json("plan", "tune.yaml", "--budget")["later"] is None
    # Launched again, nothing is left to do, and the decision is the one that was made.
    decisions = [path.read_bytes() for path in tune.store.glob("sweeps/tune/decisions/1/*.json")]
    assert "6 done" in tune("launch", "tune.yaml")
    (path,) = tune.store.glob("sweeps/tune/decisions/1/*.json")
    assert [path.read_bytes()] == decisions
    # One that was cut short is named with the way out, by views beside all else, and made again.
    path.write_bytes(decisions[0][:40])
    for words, code in ((("status", "tune"), 0), (("launch", "tune.yaml"), 3), (("rerun", "tune"), 3)):
        shown = tune(*words, code=code)
        assert "unreadable" in shown and "move sweeps/tune/decisions/1/000001.json out of the store" in shown
    shown = tune("status", "tune")
    assert "tune@1: 3 cells: 3 done" in shown and "decision 1, phase tune: blocked since" in shown
    assert "blocked since" in tune("wait", "tune", code=1)
    whole = json.loads(decisions[0])
    for change in ({"seen": []}, {"chosen": []}, {"chosen": ["none"]}):
        path.write_text(json.dumps({**whole, **change}), encoding="utf-8")
        assert "cannot be trusted" in tune("status", "tune")
        assert "1 differences" in tune("decisions", "tune", "--verify", code=1)
    path.unlink()
    assert "6 done" in tune("launch", "tune.yaml")
    assert json.loads(path.read_bytes())["chosen"] == json.loads(decisions[0])["chosen"]


def test_workers_end_at_once_at_a_damaged_decision_and_are_not_started_again(tune: Any) -> None:
    path = tune.store / "sweeps/tune/decisions/1/000001.json"
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    shown = tune("launch", "tune.yaml", "launcher.workers=1", code=3)
    assert "move sweeps/tune/decisions/1/000001.json out of the store" in shown
    assert "again and again" not in shown and "error: error" not in shown
    (log,) = tune.store.glob("sweeps/tune/logs/*worker-0.log")
    assert len(log.read_text().splitlines()) == 1
    shown = tune.json("status", "tune")
    assert (shown["decision"]["state"], len(shown["cells"])) == ("blocked", 3)
    assert "000001.json" in shown["problems"][0]


def test_the_next_decision_names_the_cells_it_waits_for_since_when_and_its_rule(tune: Any) -> None:
    tune("launch", "tune.yaml", "launcher=external")
    shown = tune("status", "tune")
    assert "decision 1, phase tune: waits for 3 of 3 cells since 20" in shown
    assert "tune.lr0.1-be20a6a5 fit is pending; then max accuracy chooses 1 of 3" in shown
    assert "decision 1, phase tune: waits for 3 of 3 cells" in tune("why", "tune", "tune.lr0.2")
    found = tune.json("status", "tune")["decision"]
    assert found == tune.json("why", "tune", "tune.lr0.2")["decision"] == tune.json("decisions", "tune")[0]
    assert (found["of"], len(found["waits_for"]), found["since"][:2]) == (3, 3, "20")
    tune("serve", "tune", "--file", "page.html")
    assert "decision 1, phase tune: waits for 3 of 3 cells" in (tune.folder / "page.html").read_text()


@pytest.mark.long
def test_a_failed_cell_counts_as_the_worst_and_fails_the_launch_but_not_the_decision(tune: Any) -> None:
    (tune.folder / "fit.py").write_text(FIT.replace("BAD", "(0.2,)"), encoding="utf-8")
    shown = tune("launch", "tune.yaml", "launcher.workers=2", "policy.retries.unknown=0", code=1)
    assert "5 done" in shown and "1 failed" in shown
    (record,) = tune.store.glob("sweeps/tune/decisions/1/*.json")
    decision = json.loads(record.read_text())
    assert decision["chosen"] == ["lr=0.1"]
    assert "failed" in decision["seen"][1]["why"]


@pytest.mark.long
def test_without_a_value_the_sweep_stands_and_names_the_reason(tune: Any) -> None:
    text = TUNE.replace("metric: accuracy", "metric: acuracy")
    (tune.folder / "tune.yaml").write_text(text, encoding="utf-8")
    shown = tune("launch", "tune.yaml", "launcher.workers=2", code=1)
    assert "phase tune: not decided: no cell has a value: no row has acuracy" in shown
    assert "never done as it is" in tune("wait", "tune", code=1)


HALVE = """
config: {lr: 0.1, steps: 27}
axes: {lr: [0.1, 0.4, 0.7]}
stages:
  train:
    command: python train.py {config.lr} {config.steps} {output} {checkpoint}
    reads: [lr, steps]
    results: rows.json
    checkpoints: "ckpt-*.json"
  test:
    command: python test.py {inputs.train} {output}
    after: [train]
    results: rows.json
rungs: {stage: train, key: steps, at: [3, 9, 27], keep: 1/2, metric: loss, mode: min}
"""

TRAIN = """
import json, os, sys
lr, steps, out = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
start, loss = 0, 1.0
if sys.argv[4]:
    start, loss = json.load(open(sys.argv[4]))
for step in range(start, steps):
    loss *= 1 - 0.1 * (1 - abs(lr - 0.4))
json.dump([steps, loss], open(f"{out}/ckpt-{steps}.tmp", "w"))
os.rename(f"{out}/ckpt-{steps}.tmp", f"{out}/ckpt-{steps}.json")
json.dump([{"loss": loss, "start": start}], open(out + "/rows.json", "w"))
"""

TEST = """
import json, sys
rows = json.load(open(sys.argv[1] + "/rows.json"))
json.dump([{"final": rows[0]["loss"]}], open(sys.argv[2] + "/rows.json", "w"))
"""


def _halve(sweep: Any) -> Any:
    for name, text in (("halve.yaml", HALVE), ("train.py", TRAIN), ("test.py", TEST)):
        (sweep.folder / name).write_text(text, encoding="utf-8")
    return sweep


def test_a_part_whose_earlier_checkpoints_are_damaged_fails_by_the_storage(sweep: Any) -> None:
    _halve(sweep)
    damage = f"""
import glob
for path in glob.glob({str(sweep.store)!r} + "/**/checkpoints/*/ckpt-3.json", recursive=True):
    if lr == 0.7:
        os.unlink(path)
"""
    (sweep.folder / "train.py").write_text(TRAIN + damage, encoding="utf-8")
    shown = sweep("launch", "halve.yaml", "launcher.workers=1", "policy.retries.storage=0", code=1)
    assert "the checkpoints of train[0:3] are damaged" in shown, shown
    (cell,) = [each for each in sweep.json("status", "halve")["cells"] if each["state"] == "failed"]
    assert cell["cause"] == "storage"


def test_rungs_stop_the_worst_and_the_others_go_on_from_their_checkpoints(sweep: Any) -> None:
    _halve(sweep)
    assert "3 cells (train: 3 to step 3, 1 to step 9, 1 to step 27)" in sweep("plan", "halve.yaml")
    assert "3 cells: 2 stopped, 1 done" in sweep("launch", "halve.yaml", "launcher.workers=2")
    rows = sweep.json("collect", "halve")
    starts = {(row["lr"], row["stage"]): row["start"] for row in rows if row.get("start") is not None}
    assert len(starts) == 3 + 1 + 1
    assert [starts[0.4, stage] for stage in ("train[0:3]", "train[3:9]", "train")] == [0, 3, 9]
    # The parts end where a run in one piece ends.
    loss = 1.0
    for _ in range(27):
        loss *= 1 - 0.1 * (1 - abs(0.4 - 0.4))
    (final,) = [row["final"] for row in rows if row["stage"] == "test"]
    assert final == loss
    sweep("wait", "halve")
    assert sweep.json("status", "halve")["counts"] == {"stopped": 2, "done": 1}
    # Only the cell that went on is ranked and reported.
    (best,) = sweep.json("best", "halve", "final")
    assert best["cells"] == [next(row["cell"] for row in rows if row["stage"] == "test")]
    decisions = sweep.json("decisions", "halve", "--verify")
    assert [each["title"] for each in decisions] == ["rung 1 of train, step 3", "rung 2 of train, step 9"]
    assert [len(each["chosen"]) for each in decisions] == [1, 1]
    # A value that is not that of the product is found.
    record = sweep.store / "sweeps/halve/decisions/1/000002.json"
    forged = json.loads(record.read_text())
    forged["seen"][0]["value"] += 1
    record.unlink()
    record.write_text(json.dumps(forged), encoding="utf-8")
    assert "differs: lr0.4" in sweep("decisions", "halve", "--verify", code=1)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("at: [3, 9, 27]", "at: [9, 3]", "two steps or more, ascending"),
        ("keep: 1/2", "keep: 3", "a share between 0 and 1"),
        ("keep: 1/2", "keep: '1e99999999'", "a share between 0 and 1"),
        ("key: steps", "key: stepz", "does not read the key 'stepz'"),
        ("{output} {checkpoint}", "{output}", "takes no checkpoint to go on from"),
        ("stage: train,", "stage: trian,", "unknown stage 'trian'"),
    ],
)
def test_rungs_that_cannot_be_are_refused(sweep: Any, old: str, new: str, error: str) -> None:
    _halve(sweep)
    (sweep.folder / "halve.yaml").write_text(HALVE.replace(old, new), encoding="utf-8")
    assert error in sweep("plan", "halve.yaml", code=2)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("    select: {metric: accuracy, mode: max}\n", "", "no `select`"),
        ("mode: max}", "mode: max, mean: [phase]}", "select names 'phase', of which a phase has one value"),
        ("mode: max}", "mode: max, per: [phase]}", "select names 'phase', of which a phase has one value"),
        ("name: confirm", "name: tune", "each name once"),
        ("mode: max", "mode: max, mean: [sead]", "unknown axis 'sead'"),
        ("metric: accuracy", "metric: ''", "select.metric is empty"),
        ("overrides: {width: 8}", "overrides: {lr: 8}", "the override 'lr' would change nothing"),
        ("overrides: {width: 8}", "overrides: {seed: 8}", "the override 'seed' would change nothing"),
        ("overrides: {width: 8}", "exclude: [lr=0.3]", "has no cell if"),
        ("overrides: {width: 8}", "overrides: {launcher: ray}", "is a setting of the engine"),
        ("expect_cells: 6", "axes: {seed: [1]}", "has both `axes` and `phases`"),
        ("expect_cells: 6", "expect_cells: 7", "the sweep has 6 cells"),
    ],
)
def test_phases_that_contradict_themselves_are_refused(tune: Any, old: str, new: str, error: str) -> None:
    (tune.folder / "tune.yaml").write_text(TUNE.replace(old, new), encoding="utf-8")
    assert error in tune("plan", "tune.yaml", code=2)
