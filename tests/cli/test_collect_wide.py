"""`collect` of several revisions and sweeps, and with one row for the stages of a cell."""

from __future__ import annotations

import csv
from typing import Any

from orchestrator.store.table import widened

SWEEP = """
config: {rate: 0.5, seed: 0}
axes: {rate: [0.5, 0.25]}
stages:
  fit: {run: "chain:fit", reads: [rate, seed]}
  score: {run: "chain:score", reads: [rate], after: [fit]}
"""
STAGES = """
def fit(config, inputs, context):
    return [{"loss": config.rate, "num_rows": 3}]
def score(config, inputs, context):
    return [{"language": name, "accuracy": config.rate / 2, "loss": 9.5} for name in ("en", "es")]
"""


def test_one_row_a_cell_and_key_and_rows_of_revisions_and_sweeps_in_one_table(sweep: Any) -> None:
    (sweep.folder / "chain.py").write_text(STAGES)
    (sweep.folder / "own.yaml").write_text(SWEEP)
    sweep("launch", "own.yaml", "rate=0.5", "launcher.workers=1")
    sweep("launch", "own.yaml", "launcher.workers=1")
    sweep("launch", "own.yaml", "seed=1", "rate=0.5", "--name", "other", "launcher.workers=1")
    assert len(sweep.json("collect", "own")) == 6
    wide = sweep.json("collect", "own", "--wide")
    assert [
        (r["rate"], r["language"], r["loss"], r["score.loss"], r["accuracy"], r["num_rows"]) for r in wide
    ] == [
        (0.5, "en", 0.5, 9.5, 0.25, 3),
        (0.5, "es", 0.5, 9.5, 0.25, 3),
        (0.25, "en", 0.25, 9.5, 0.125, 3),
        (0.25, "es", 0.25, 9.5, 0.125, 3),
    ]
    assert {row["stage"] for row in wide} == {"fit+score"}
    revisions = sweep.json("collect", "own@*", "other", "--wide")
    assert [(row["sweep"], row["revision"]) for row in revisions] == [
        *[("own", 1)] * 2,
        *[("own", 2)] * 4,
        *[("other", 1)] * 2,
    ]
    sweep("collect", "own@1", "other", "--out", "both.csv")
    with (sweep.folder / "both.csv").open() as stream:
        assert {(row["sweep"], row["revision"]) for row in csv.DictReader(stream)} == {
            ("own", "1"),
            ("other", "1"),
        }
    assert "was never launched here" in sweep("collect", "nothing@*", code=2)
    assert "required: SWEEP" in sweep("collect", f"store.url={sweep.store}", code=2)


def row(stage: str, **more: Any) -> dict[str, Any]:
    return {"cell": "c", "sweep": "s", "revision": 1, "stage": stage, "attempts": 1, "seconds": 1.0, **more}


def test_rows_join_where_their_keys_agree_and_stay_apart_where_they_do_not():
    train = [row("train", split="a", loss=0.5), row("train", split="b", loss=0.25)]
    test = [row("test", split="b", right=1), row("test", split="c", right=2)]
    joined = widened([*train, *test])
    assert [(r["split"], r.get("loss"), r.get("right"), r["stage"]) for r in joined] == [
        ("a", 0.5, None, "train"),
        ("b", 0.25, 1, "train+test"),
        ("c", None, 2, "test"),
    ]
    assert joined[1]["seconds"] == 2.0


def test_two_stages_with_many_rows_and_no_key_stay_apart():
    rows = [row("a", x=1.5), row("a", x=2.5), row("b", y=1.5), row("b", y=2.5)]
    assert widened(rows) == rows


def test_instances_of_a_stage_are_one_table():
    rows = [row("prepare[en]", lang="en", n=1), row("prepare[es]", lang="es", n=2), row("fit", loss=0.5)]
    assert [(r["lang"], r["n"], r["loss"]) for r in widened(rows)] == [("en", 1, 0.5), ("es", 2, 0.5)]


def test_cells_are_never_joined_with_one_another():
    rows = [row("fit", loss=0.5), row("score", ok=True), {**row("fit", loss=0.5), "cell": "d"}]
    assert [(r["cell"], r.get("ok")) for r in widened(rows)] == [("c", True), ("d", None)]


def test_a_cell_is_named_by_its_whole_id_also_where_that_reads_like_a_selector(sweep: Any) -> None:
    (sweep.folder / "own.yaml").write_text(
        SWEEP.replace("axes: {rate: [0.5, 0.25]}", "axes: {m: {a=b: {seed: 3}}}")
    )
    (sweep.folder / "chain.py").write_text(STAGES)
    (cell,) = sweep.json("plan", "own.yaml")["cells"]
    assert cell["cell"].startswith("a=b-")
    assert sweep.json("show", "own.yaml", cell["cell"])["config"]["seed"] == 3
