"""`sweep report` of any sweep, and `sweep best`."""

from __future__ import annotations

import csv
import json
import re
import time
from typing import Any

import pytest

from orchestrator.cli.main import main
from orchestrator.reporting import Curve
from orchestrator.reports.general_figures import draw
from orchestrator.reports.style import styled
from orchestrator.results import CellResult

SWEEP = """
description: made-up losses
config: {rate: 0.1, name: a, seed: 0}
axes:
  rate: [0.001, 0.1, 1.0]
  name: [a, b]
  seed: range(0,2)
stages:
  fit: {run: "fit:main", reads: [rate, name, seed]}
"""
STAGE = """
def main(config, inputs, context):
    if config.name == "b" and config.rate == 1.0:
        raise ValueError("no <b>way</b>")
    for step in (1, 2, 3):
        context.log(step, loss=config.rate / step)
    loss = config.rate * (1 + config.seed)
    return [{"split": "dev", "loss": loss}, {"split": "test", "loss": 2 * loss}]
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A sweep of twelve cells, two of which fail, launched once for all tests here."""
    from tests.conftest import Sweep

    top = tmp_path_factory.mktemp("general")
    (top / "project").mkdir()
    sweep = Sweep(top / "project", top / "store")
    (sweep.folder / "made.yaml").write_text(SWEEP)
    (sweep.folder / "fit.py").write_text(STAGE)
    sweep("launch", "made.yaml", "launcher.workers=2", code=1)
    return sweep


def test_any_sweep_has_a_report_of_cells_spread_plots_curves_and_failures(launched: Any) -> None:
    said = launched("report", "made", "--out", "out")
    assert "report.html" in said
    out = launched.folder / "out"
    found = json.loads((out / "report.json").read_text())
    assert found["axes"] == ["rate", "name", "seed"] and found["over"] == ["seed"]
    assert found["metrics"] == {"loss[split=dev]": "min", "loss[split=test]": "min"}
    assert len(found["cells"]) == 10 and found["states"] == {"done": 10, "failed": 2}
    group = next(g for g in found["groups"] if g[0] == {"rate": 0.1, "name": "a"})
    assert group[2]["loss[split=test]"] == pytest.approx([2, 0.3, 0.1 * 2**0.5, 0.2, 0.4])
    assert [each["cause"] for each in found["failures"]] == ["code", "code"]
    page = (out / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert "&lt;b&gt;way" in page and "<b>way" not in page
    assert page.count("<figure") == 5  # two metrics against two axes, and the curve of the logged loss
    assert "0.002 ★" in page or "0.001 ★" in page
    lines = list(csv.DictReader((out / "cells.csv").open()))
    assert len(lines) == 10 and lines[0]["loss[split=dev]"] == "0.001"


def test_spread_may_be_taken_over_any_axis_and_figures_of_before_are_gone(launched: Any) -> None:
    launched("report", "made", "--out", "over")
    found = launched.json("report", "made", "--over", "name", "--out", "over")
    assert found["over"] == ["name", "seed"]
    assert {tuple(group[0]) for group in found["groups"]} == {("rate",)}
    assert not list((launched.folder / "over").glob("*against-name*"))
    assert "no axis 'nome'" in launched("report", "made", "--over", "nome", code=2)
    assert "--over is of the general report" in launched(
        "report", "made", "--over", "name", "--report", "study", code=2
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_collected_table_gives_the_same_numbers(launched: Any, kind: str) -> None:
    launched("collect", "made", "--out", f"rows.{kind}")
    of_table = launched.json("report", "--table", f"rows.{kind}", "--out", f"of-{kind}")
    of_sweep = launched.json("report", "made", "--out", "of-sweep")
    for key in ("axes", "metrics", "cells", "groups"):
        assert of_table[key] == of_sweep[key], key


def test_best_ranks_by_the_mean_over_seeds_from_either_end(launched: Any) -> None:
    low = launched.json("best", "made", "loss[split=test]", "--top", "2")
    assert [(each["axes"]["rate"], each["n"]) for each in low] == [(0.001, 2), (0.001, 2)]
    (high,) = launched.json("best", "made", "loss[split=test]", "--max", "--top", "1")
    assert high["axes"] == {"rate": 1.0, "name": "a"} and high["mean"] == 3.0 and len(high["cells"]) == 2
    assert len(launched.json("best", "made", "loss[split=dev]", "--over", "rate", "--top", "0")) == 2
    assert "several columns" in launched("best", "made", "loss", code=2)
    assert "no column of numbers" in launched("best", "made", "lost", code=2)
    assert "1.5 ± " in launched("best", "made", "loss[split=dev]", "--max")


@pytest.mark.long
def test_figures_of_thousands_of_cells_show_some_and_say_how_many() -> None:
    cells = [
        CellResult(
            f"c{i}",
            {"x": i // 2, "word": f"w{i % 3000}", "opt": "ab"[i % 2]},
            {f"m{k}": i + k for k in range(9)},
        )
        for i in range(6000)
    ]
    curves = [Curve(stage="fit", cells=(f"c{i}",), points={"loss": ((1, 2.0), (2, 1.0))}) for i in range(900)]
    started_s = time.process_time()
    with styled():
        figures = draw(cells, ["x", "word", "opt"], [], curves)
    assert time.process_time() - started_s < 20  # what is quadratic takes minutes
    assert figures.fewer_plots.startswith("24 of 27 plots") and figures.fewer_curves == ""
    captions = {plot.title: plot.caption for plot in figures.plots}
    assert "200 of 3,000 places are drawn" in captions["m0 against x"]
    assert "40 of 3,000 places are drawn" in captions["m0 against word"]
    assert "places are drawn" not in captions["m0 against opt"]
    assert "At most 1,000 single cells" in captions["m0 against opt"]
    (lines,) = figures.curves
    assert lines.caption.startswith("900 curves, of which 200 are drawn")
    assert len(lines.figure.axes[0].lines) == 200


def test_best_ranks_by_what_the_name_of_a_metric_means_unless_an_option_decides(
    sweep: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    (sweep.folder / "named.yaml").write_text(
        "config: {a: 1}\naxes: {a: [1, 2]}\nstages: {s: {run: 'named:main', reads: [a]}}\n"
    )
    (sweep.folder / "named.py").write_text(
        "def main(config, inputs, context):\n    return [dict.fromkeys(['val_acc', 'loss', 'x'], config.a)]\n"
    )
    sweep("launch", "named.yaml")

    def first(*words: str) -> int:
        return int(sweep.json("best", "named", *words)[0]["mean"])

    assert [first("val_acc"), first("loss"), first("x")] == [2, 1, 1]
    assert [first("val_acc", "--min"), first("loss", "--max")] == [1, 2]
    assert main(["best", "named", "val_acc", "--store", str(sweep.store)]) == 0
    assert "the highest val_acc first" in capfd.readouterr().err
    assert main(["best", "named", "x", "--store", str(sweep.store)]) == 0
    assert "the lowest x first; --max for the highest" in capfd.readouterr().err
    assert main(["best", "named", "loss", "--store", str(sweep.store)]) == 0
    assert capfd.readouterr().err == ""
