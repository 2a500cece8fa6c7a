"""The verb `report`: of tables, and of sweeps that are done, half done and not begun."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from orchestrator.store.table import write_table
from tests.study.tables import minimal, study_rows

KEYS = {
    "table2": {"en", "direct", "transfer"},
    "table3": {"coefficients", "r2", "num_rows"},
}
FIGURES = [f"figure{n}.{suffix}" for n in (2, 3, 4, 7, 8, 9) for suffix in ("png", "svg")]
SWEEP = """
description: made-up results
expect_cells: 10
config: {model: tiny-a, task: math, languages: [], folder: ., seed: 0}
axes:
  model: [tiny-a, tiny-b]
  mixture:
    none: {languages: []}
    en: {languages: [en]}
    en+es: {languages: [en, es]}
    en+ja: {languages: [en, ja]}
    en+sw: {languages: [en, sw]}
columns: {languages: languages}
report: [study]
stages:
  score: {run: "score:main", reads: [model, task, languages, seed], uses: [folder]}
"""
STAGE = """
from pathlib import Path


def main(config, inputs, context):
    once = Path(context.uses.folder) / "once"
    if config.model == "tiny-a" and not config.languages and not once.exists():
        once.touch()
        raise MemoryError("no room at the first try")
    if "sw" in config.languages:
        raise ValueError("no <b>Swahili</b> today")
    rows = []
    for language in ("en", "es", "te"):
        right = 12 if language in config.languages else 3
        rows.append({"model": config.model, "task": config.task, "eval_language": language, "split": "test",
                     "num_correct": right, "num_items": 20, "accuracy": right / 20})
    return rows
"""


@pytest.fixture
def made_up(sweep: Any) -> Any:
    """A folder with a sweep whose cells end at once, some of them badly."""
    (sweep.folder / "made.yaml").write_text(SWEEP)
    (sweep.folder / "score.py").write_text(STAGE)
    return sweep


@pytest.mark.long
def test_a_table_gives_the_same_report_from_csv_and_parquet(sweep: Any) -> None:
    rows = study_rows(models=["qwen3-0.6b"])
    for kind in ("csv", "parquet"):
        write_table(rows, sweep.folder / f"rows.{kind}", kind)
        sweep("report", "--table", f"rows.{kind}", "--out", f"deep/{kind}")
    names = sorted(path.name for path in (sweep.folder / "deep/csv").iterdir())
    assert {"report.html", "report.md", "report.json", "table2.md", "table3.md", *FIGURES} <= set(names)
    for name in names:
        of_csv, of_parquet = (sweep.folder / "deep" / kind / name for kind in ("csv", "parquet"))
        assert of_csv.read_bytes() == of_parquet.read_bytes(), name
    found = json.loads((sweep.folder / "deep/csv/report.json").read_text())
    assert {*KEYS, "fig2", "fig3", "fig4", "fig7", "fig8", "verdicts", "ledger", "missing"} <= set(found)
    assert all(part <= set(found[key]) for key, part in KEYS.items())
    assert found["ledger"]["known"] is False
    page = (sweep.folder / "deep/csv/report.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert page.count("<figure") == page.count('src="data:image/svg+xml;base64,') == 6


@pytest.mark.long
def test_the_columns_up_to_accuracy_are_enough_and_json_is_printed_alone(sweep: Any) -> None:
    rows = minimal(study_rows(models=["qwen3-8b"], tasks=["math"]))
    write_table(rows, sweep.folder / "rows.csv", "csv")
    found = sweep.json("report", "--table", "rows.csv", "--out", "out")
    assert found["status"]["num_done"] == 23 and not found["missing"]
    assert found == json.loads((sweep.folder / "out/report.json").read_text())


@pytest.mark.long
def test_a_half_finished_sweep_is_reported_at_the_end_of_its_launch_with_what_is_missing(
    made_up: Any,
) -> None:
    said = made_up("launch", "made.yaml", f"folder={made_up.folder}", "launcher.workers=2", code=1)
    assert "report.html" in said
    found = made_up.json("report", "made", "--out", "out")
    kept = made_up.store / "sweeps/made/report/report.json"
    assert json.loads(kept.read_text())["fig2"] == found["fig2"]
    assert found["status"]["states"] == {"done": 8, "failed": 2}
    assert [(group["names"], group["cause"]) for group in found["status"]["groups"]] == [
        (["en+sw"], "code")
    ] * 2
    assert found["swept"]["mixtures"] == ["none", "en", "en+es", "en+ja", "en+sw"]
    assert found["table2"]["direct"] == pytest.approx(
        {"wins": 2, "total": 2, "rate": 1.0, "low": 0.342, "high": 1.0}, abs=1e-3
    )
    assert {entry["verdict"] for entry in found["verdicts"]} == {"not comparable"}
    (retry,) = found["retries"]
    assert [(a["outcome"], a["why"]) for a in retry["attempts"]] == [
        ("failed", "oom_host"),
        ("succeeded", ""),
    ]
    (launch,) = found["provenance"]["launches"]
    assert "launch made.yaml" in launch["command"] and found["provenance"]["hosts"]
    page = (made_up.folder / "out/report.html").read_text()
    assert "&lt;b&gt;Swahili&lt;/b&gt;" in page and "<b>Swahili" not in page
    differs = {entry["key"] for entry in found["ledger"]["differs"]}
    assert {"model", "languages", "task.name"} <= differs


@pytest.mark.long
def test_a_sweep_without_a_row_says_that_nothing_is_done(made_up: Any) -> None:
    assert "nothing is done yet" in made_up("report", "made.yaml")
    assert not made_up.store.exists()
    found = made_up.json("report", "made.yaml", "--out", "out")
    assert found["status"]["states"] == {"pending": 10} and found["table2"]["en"]["rate"] is None
    assert found == made_up.json("report", "made.yaml") | {"sweep": found["sweep"]}
    assert "Nothing is done yet: 0 of 10 cells" in (made_up.folder / "out/report.html").read_text()
    assert not list((made_up.folder / "out").glob("*.png"))


def test_a_report_of_one_s_own_may_take_the_facts_or_not(made_up: Any) -> None:
    text = (made_up.folder / "made.yaml").read_text()
    (made_up.folder / "made.yaml").write_text(text.replace("[study]", '["mine:plain", "mine:told"]'))
    (made_up.folder / "mine.py").write_text(
        "def plain(rows, folder):\n"
        "    folder.mkdir(exist_ok=True)\n"
        "    (folder / 'plain.md').write_text(f'{len(rows)} rows')\n"
        "    return [folder / 'plain.md']\n"
        "def told(rows, folder, *, about):\n"
        "    raise OSError(28, f'no room for {len(about.cells)} cells')\n"
    )
    launched = made_up("launch", "made.yaml", f"folder={made_up.folder}", "launcher.workers=2", code=None)
    assert "24 rows" in launched and "the report mine:told failed" in launched
    assert "no room for 10 cells" in launched


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("report",), "a report of what?"),
        (("report", "--table", "none.csv", "--out", "out"), "no file none.csv"),
        (("report", "--table", "rows.csv"), "needs a folder"),
        (("report", "made", "--table", "rows.csv", "--out", "out"), "either a sweep or a table"),
        (("report", "--table", "rows.csv", "--out", "rows.csv"), "rows.csv is no folder"),
        (("report", "--table", "rows.csv", "--out", "rows.csv/deeper"), "rows.csv is no folder"),
        (("report", "--table", "bad.csv", "--out", "out"), "no report fits the columns of bad.csv"),
        (("report", "--table", "rows.txt", "--out", "out"), "rows.txt"),
        (("report", "--table", "damaged.parquet", "--out", "out"), "damaged.parquet cannot be read"),
        (("report", "nosuch", "--out", "out"), "unknown sweep 'nosuch'"),
    ],
)
def test_a_wrong_call_is_an_error_and_writes_nothing(sweep: Any, words: tuple[str, ...], said: str) -> None:
    write_table(study_rows(models=["qwen3-8b"], tasks=["math"])[:12], sweep.folder / "rows.csv", "csv")
    (sweep.folder / "bad.csv").write_text("name,loss\na,1\n")
    (sweep.folder / "rows.txt").write_text("name,loss\na,1\n")
    (sweep.folder / "damaged.parquet").write_bytes(b"PAR1 nothing")
    answer = sweep(*words, code=2)
    assert answer.startswith("error: ") and said in answer
    assert not (sweep.folder / "out").exists()


@pytest.mark.long
def test_a_folder_that_cannot_be_written_is_no_traceback(made_up: Any) -> None:
    write_table(study_rows(models=["qwen3-8b"], tasks=["math"])[:12], made_up.folder / "rows.csv", "csv")
    for what in (("--table", "rows.csv"), ("made.yaml",)):
        said = made_up("report", *what, "--out", "/proc/nowhere", code=3)
        assert "error: " in said and "/proc/nowhere" in said


@pytest.mark.long
def test_a_short_report_is_printed_in_full_beside_a_long_one(made_up: Any) -> None:
    text = (made_up.folder / "made.yaml").read_text()
    (made_up.folder / "made.yaml").write_text(text.replace("report: [study]", "report: [accuracy, study]"))
    output = made_up("launch", "made.yaml", code=1)
    assert output.count("# Test accuracy, %") == 1
    assert "report.html" in output and "# Multilinguality" not in output
