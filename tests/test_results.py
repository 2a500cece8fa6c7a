"""From rows to one line a cell, and mean and spread."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.results import (
    axes_of_table,
    by_cell,
    direction,
    is_seed,
    labelled,
    notes_of,
    spread,
    spread_over,
    spread_text,
)
from orchestrator.store.table import _columns


def row(cell: str, stage: str = "fit", **more: object) -> dict[str, object]:
    return {"cell": cell, "sweep": "s", "revision": 1, "stage": stage, "attempts": 1, "seconds": 2.0, **more}


def test_rows_of_two_stages_become_one_line_a_cell_and_truth_values_count() -> None:
    rows = [row("a", rate=0.1, loss=3.0), row("a", "score", rate=0.1, close=True), row("b", rate=0.2, loss=1)]
    first, second = by_cell(rows, axes=["rate"])
    assert (first.cell, first.axes, first.metrics) == ("a", {"rate": 0.1}, {"loss": 3.0, "close": 1.0})
    assert second.metrics == {"loss": 1.0}


def test_a_metric_of_two_stages_is_named_after_each_and_splits_become_columns() -> None:
    rows = [row("a", loss=3.0), row("a", "score", loss=2.0)]
    assert by_cell(rows, axes=[])[0].metrics == {"fit.loss": 3.0, "score.loss": 2.0}
    rows = [row("a", split=split, acc=acc) for split, acc in (("dev", 0.4), ("test", 0.3))]
    assert by_cell(rows, axes=[])[0].metrics == {"acc[split=dev]": 0.4, "acc[split=test]": 0.3}
    rows = [row("a", f"prepare[{name}]", num_rows=n) for name, n in (("en", 4), ("es", 5))]
    assert by_cell(rows, axes=[])[0].metrics == {"num_rows[en]": 4, "num_rows[es]": 5}


def test_numbers_in_a_nested_result_are_columns_and_what_no_float_holds_is_none() -> None:
    rows = [row("a", eval={"acc": 0.5, "by": {"en": 1}, "name": "x"}, big=10**400, loss=1e308)]
    first = by_cell(rows, axes=[])[0].metrics
    assert first == {"eval.acc": 0.5, "eval.by.en": 1.0, "loss": 1e308}
    assert spread([1e308, 1e308, -1e308]).mean == pytest.approx(1e308 / 3)


def test_notes_tell_no_rows_apart_and_are_counted_by_cells() -> None:
    rows = [row("a", loss=1.0, notes=None), row("a", "score", acc=0.5, notes="three rows left out")]
    assert by_cell(rows, axes=[])[0].metrics == {"loss": 1.0, "acc": 0.5}
    assert notes_of([*rows, rows[1]]) == ["1 cell: three rows left out"]


def test_texts_in_a_column_of_numbers_are_named_since_they_count_nowhere() -> None:
    rows = [row("a", loss=1.0, acc=0.5), row("b", loss="93.5%"), *(row(c, loss="0,5") for c in "cde")]
    metrics = [*by_cell(rows, axes=[])[0].metrics, "fit.loss"]
    assert notes_of(rows, metrics) == [
        "loss is a text, which counts in no number, in 4 cells: b ('93.5%'), c ('0,5'), d ('0,5') and 1 more"
    ]
    assert notes_of(rows, ["acc"]) == notes_of([row("a", loss=None), row("b", loss=2)], ["loss"]) == []


def test_of_rows_that_nothing_tells_apart_the_last_counts_and_of_very_many_the_mean() -> None:
    assert by_cell([row("a", epoch=k, loss=9.0 - k) for k in (1, 2, 3)], axes=[])[0].metrics == {
        "epoch": 3,
        "loss": 6.0,
    }
    many = [row("a", item=f"i{k}", right=k % 2 == 0) for k in range(10)]
    assert by_cell(many, axes=[])[0].metrics == {"right (mean)": 0.5}


def test_a_table_of_several_sweeps_pools_no_cells_that_differ_in_what_the_first_sweep_has_not() -> None:
    def one(sweep: str, cell: str, loss: float, revision: int = 1, **labels: Any) -> dict[str, Any]:
        engine = {"sweep": sweep, "revision": revision, "stage": "fit"}
        return {"cell": cell, **labels, **engine, "loss": loss}

    mixed = [one("a", "1", 1.0, rate=1), *(one("b", str(w), w, rate=1, width=w) for w in (2, 3))]
    columns = _columns(mixed)
    assert columns[:4] == ["cell", "rate", "width", "sweep"]
    rows = [{name: row.get(name) for name in columns} for row in mixed]  # as a table file has them
    assert axes_of_table(rows) == ["rate", "width"]
    twins = [one("a", "1", 1.0, rate=1, seed=0), one("b", "2", 3.0, rate=1, seed=0)]
    assert axes_of_table(twins) == ["rate", "seed", "sweep"]
    again = [one("a", "1", 1.0, rate=1), one("a", "1", 1.0, 2, rate=1), one("a", "2", 3.0, 2, rate=2)]
    assert axes_of_table(again) == ["rate"]
    assert axes_of_table([*again, one("a", "3", 4.0, 3, rate=1)]) == ["rate", "revision"]


def test_spread_is_over_the_cells_that_agree_in_the_other_axes() -> None:
    rows = [row(f"{r}{s}", rate=r, seed=s, loss=r + s) for r in (1, 2) for s in (0, 1, 2)]
    groups = spread_over(by_cell(rows, axes=["rate", "seed"]), ["seed"])
    assert [(g.axes, len(g.cells), g.metrics["loss"].mean) for g in groups] == [
        ({"rate": 1}, 3, 2.0),
        ({"rate": 2}, 3, 3.0),
    ]
    found = spread([1.0, 2.0, 4.0])
    assert found.sd == pytest.approx(math.sqrt(7 / 3)) and (found.low, found.high) == (1.0, 4.0)
    assert spread_text(spread([0.5])) == "0.5" and spread([0.5]).sd is None


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("loss", "min"),
        ("fit.val_loss", "min"),
        ("acc[split=test]", "max"),
        ("test_accuracy (mean)", "max"),
        ("close", None),
        ("glossary", None),
        ("tokens_per_s", "max"),
        ("step_s", "min"),
        ("num_correct", "max"),
        ("acc_stderr", None),
        ("loss_std", None),
        ("learning_rate", None),
        ("false_positive_rate", None),
    ],
)
def test_the_better_direction_is_told_by_whole_words_of_the_name(name: str, better: str | None) -> None:
    assert direction(name) == better


def test_seeds_are_told_by_the_last_word_of_an_axis() -> None:
    assert all(map(is_seed, ("seed", "data.seed", "model_seed")))
    assert not any(map(is_seed, ("seedling", "seed.rate", "trainer")))


def test_the_axis_of_a_cell_outranks_a_column_of_its_name() -> None:
    rows = [row(f"{size}{seed}", size=1000, seed=seed, acc=acc) for size, acc in SIZES for seed in (1, 2)]
    labels = {f"{size}{seed}": {"size": size, "seed": str(seed)} for size, _ in SIZES for seed in (1, 2)}
    found = by_cell(labelled(rows, labels), axes=["size", "seed"])
    groups = spread_over(found, ["seed"])
    assert [(g.axes["size"], g.metrics["acc"].mean, g.metrics["acc"].n) for g in groups] == [
        ("small", 0.1, 2),
        ("large", 0.9, 2),
    ]
    assert [type(each.axes["seed"]) for each in found] == [int] * 4
    lists = [row("a", size=[1, 2], acc=0.1)]
    assert by_cell(labelled(lists, {"a": {"size": "small"}}), axes=["size"])[0].axes == {"size": "small"}


SIZES = (("small", 0.1), ("large", 0.9))
