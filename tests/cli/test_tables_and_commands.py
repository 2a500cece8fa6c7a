"""What stages and commands of the user's own may return, log and save, and how the verbs show it."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from orchestrator.errors import StageFailure
from orchestrator.execution.command import run_command
from orchestrator.execution.command_text import read_rows
from orchestrator.saving import MANIFEST
from orchestrator.stage import Config, Context, Inputs, StageSpec
from orchestrator.store.ledger import open_ledger
from orchestrator.store.table import write_table
from orchestrator.trackers.base import StoreTracker, Tracked, history, parse_metrics
from tests.cli.launches import records, wait_for

ODD_ROWS: list[dict[str, Any]] = [
    {"m": 1, "list": [1, 2], "map": {"a": 1}, "nest": [[1], {}], "flag": True, "text": 'a,"b"\r\nc'},
    {"m": "a", "list": ["x", None], "map": {}, "nest": [], "flag": None, "big": 2**70, "late": 0.5},
    {"m": [True], "list": None, "map": {"b": "é"}, "flag": False, "big": 1, "none": None, "empty": []},
]

ODD = """
description: rows of all kinds
config: {rate: 0.1, wide: true, name: a, languages: [en, es]}
axes: {rate: [0.1, 1], wide: [true, false], name: [a]}
columns: {languages: languages}
stages: {odd: {run: "odd:main", reads: [rate, wide, name]}}
"""
ODD_STAGE = """
def main(config, inputs, context):
    row = {"m": config.rate if config.wide else "a", "extra": {"k": [1]}, "name": "its own"}
    return [{**row, "stage": "mine", "code": [1, 2]}]
"""

COUNT = """
description: a command that saves when it is asked to stop
config: {num_steps: 40, delay_s: 0.1}
axes: {num_steps: [40]}
stages:
  count:
    command: "{python} count.py {config.num_steps} {uses.delay_s} {checkpoints} {metrics} {output} '{resume}'"
    reads: [num_steps]
    uses: [delay_s]
    results: rows.jsonl
"""
COUNT_STAGE = """
import json, os, signal, sys, time
from pathlib import Path

num_steps, delay_s, checkpoints, metrics, output, resume = sys.argv[1:]
assert metrics == os.environ["SWEEP_METRICS"]
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
start = int(Path(resume, "step").read_text()) if resume else 0
for step in range(start + 1, int(num_steps) + 1):
    time.sleep(float(delay_s))
    while step == 30 and not resume and not asked:
        time.sleep(0.05)
    with open(metrics, "a") as stream:
        stream.write(json.dumps({"step": step, "loss": 1 / step}) + "\\n")
    if asked:
        unfinished = Path(checkpoints, "unfinished")
        unfinished.mkdir()
        (unfinished / "step").write_text(str(step))
        unfinished.rename(Path(checkpoints, str(step)))
        sys.exit(1)
Path(output, "rows.jsonl").write_text(json.dumps({"start": start, "line": "a\\u2028b"}, ensure_ascii=False))
"""


@pytest.fixture
def odd(sweep: Any) -> Any:
    """A finished sweep whose rows are of mixed types and name the engine's columns."""
    (sweep.folder / "odd.yaml").write_text(ODD)
    (sweep.folder / "odd.py").write_text(ODD_STAGE)
    sweep("launch", "odd.yaml")
    return sweep


def tracked(folder: Path) -> Tracked:
    return Tracked(folder, "s", "c", "fit", 1, {}, {})


def command(context: Context, text: str) -> None:
    run_command(StageSpec(command=text), Config({}), Inputs({}), context)


def test_csv_has_a_text_for_every_value_of_json(tmp_path: Path) -> None:
    write_table(ODD_ROWS, tmp_path / "rows.csv", "csv")
    with (tmp_path / "rows.csv").open(newline="") as stream:
        first, second, third = csv.DictReader(stream)
    assert [row["m"] for row in (first, second, third)] == ["1", "a", "true"]
    assert [row["list"] for row in (first, second, third)] == ["1,2", "x,null", ""]
    assert [json.loads(row["map"]) for row in (first, second, third)] == [{"a": 1}, {}, {"b": "é"}]
    assert [row["flag"] for row in (first, second, third)] == ["true", "", "false"]
    assert (json.loads(first["nest"]), second["nest"]) == ([[1], {}], "")
    assert (first["text"], second["big"], second["late"]) == ('a,"b"\r\nc', str(2**70), "0.5")


def test_parquet_keeps_types_and_falls_back_to_text_where_they_are_mixed(tmp_path: Path) -> None:
    write_table(ODD_ROWS, tmp_path / "rows.parquet", "parquet")
    first, second, third = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["m"] for row in (first, second, third)] == ["1", "a", "true"]
    assert [row["flag"] for row in (first, second, third)] == [True, None, False]
    assert [row["big"] for row in (first, second, third)] == [None, str(2**70), "1"]
    assert json.loads(third["map"]) == {"b": "é"}
    assert third["none"] is None and third["empty"] == [] and second["late"] == 0.5


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_without_rows_is_written_too(tmp_path: Path, kind: str) -> None:
    write_table([], tmp_path / "rows", kind)
    assert (tmp_path / "rows").exists()


def test_collect_keeps_the_engines_columns_and_gives_numeric_axes_their_type(odd: Any) -> None:
    rows = odd.json("collect", "odd")
    assert {(row["rate"], row["wide"]) for row in rows} == {(0.1, True), (0.1, False), (1, True), (1, False)}
    assert all(type(row["wide"]) is bool for row in rows)
    for row in rows:
        assert (row["stage"], row["row_stage"], row["row_code"]) == ("odd", "mine", [1, 2])
        assert (
            row["code"] != [1, 2]
            and (row["name"], row["row_name"]) == ("a", "its own")
            and row["languages"] == "en,es"
        )
    printed = list(csv.DictReader(odd("collect", "odd").partition("odd@1:")[0].splitlines()))
    assert {row["m"] for row in printed} == {"0.1", "1", "a"}
    assert {(row["row_code"], row["extra"], row["wide"]) for row in printed} == {
        ("1,2", '{"k": [1]}', "true"),
        ("1,2", '{"k": [1]}', "false"),
    }
    odd("collect", "odd", "--out", "rows.parquet")
    table = pyarrow.parquet.read_table(odd.folder / "rows.parquet").to_pylist()
    assert [row["rate"] for row in table] == [row["rate"] for row in rows]


def test_logs_and_diff_give_json_that_names_the_sweep_and_the_revision(odd: Any) -> None:
    first, second = (row["cell"] for row in odd.json("collect", "odd")[:2])
    log = odd.json("logs", "odd", first)
    assert set(log) == {"sweep", "revision", "cell", "stage", "attempt", "path", "text"}
    assert (log["sweep"], log["revision"], log["cell"], log["attempt"]) == ("odd", 1, first, 1)
    assert Path(log["path"]).read_text() == log["text"]
    assert "--follow" in odd("logs", "odd", first, "--json", "--follow", code=2)
    assert "no attempt 0" in odd("logs", "odd", first, "--attempt", "0", code=2)
    cells = odd.json("diff", "odd", first, second)
    assert (cells["sweep"], cells["revision"], cells["cells"]) == ("odd", 1, [first, second])
    revisions = odd.json("diff", "odd@1", "odd@1")
    assert (revisions["sweep"], revisions["revision"]) == ("odd", 1)
    assert revisions["second"] == {"sweep": "odd", "revision": 1}


def test_a_command_that_is_stopped_saves_and_the_next_launch_goes_on_from_there(
    sweep: Any, background: Any
) -> None:
    (sweep.folder / "count.yaml").write_text(COUNT)
    (sweep.folder / "count.py").write_text(COUNT_STAGE)
    launch = background("launch", "count.yaml")
    wait_for(lambda: [p for p in sweep.store.rglob("metrics.jsonl") if len(parse_metrics(p.read_text())) > 3])
    sweep("cancel", "count")
    code, output = launch.end()
    assert code == 1, output
    (end,) = records(sweep.store, "end.json")
    assert (end["outcome"], end["why"]) == ("released", "cancelled")
    sweep("launch", "count.yaml", "delay_s=0")
    (row,) = sweep.json("collect", "count")
    assert row["start"] > 3 and row["line"] == "a\u2028b" and row["num_steps"] == 40
    assert [start["parent"]["step"] for start in records(sweep.store, "start.json") if start["parent"]] == [
        row["start"]
    ]
    ledger = open_ledger(str(sweep.store))
    (instance,) = ledger.revision("count", 1).sweep.stages.values()
    assert [line["step"] for line in history(ledger, instance, 2)] == list(range(1, 41))


def test_checkpoints_of_a_command_count_unless_a_signal_killed_it(tmp_path: Path) -> None:
    for name, end, is_sealed in (("failed", "exit 3", True), ("killed", "kill -KILL $$", False)):
        context = Context(tmp_path / name)
        with pytest.raises(StageFailure, match=r"code 3|signal 9"):
            command(context, f"bash -c 'mkdir {{checkpoints}}/7 {{checkpoints}}/8.part; {end}'")
        folders = tmp_path / name / "checkpoints"
        assert (folders / "7" / MANIFEST).exists() is is_sealed
        assert not (folders / "8.part" / MANIFEST).exists()
    context = Context(tmp_path / "done")
    command(context, "{python} -c 'import os; os.mkdir(\"{checkpoints}/0009\")'")
    assert json.loads((tmp_path / "done/checkpoints/0009" / MANIFEST).read_text())["step"] == 9


@pytest.mark.parametrize("text", ['{"m": NaN}', '{"m": 1e999}', "[1]", "{", "\xff"])
def test_results_that_are_no_rows_are_a_failure_by_data(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(f'{{"m": 1}}\n\n{text}\n'.encode("latin-1"))
    with pytest.raises(StageFailure, match=r"rows\.jsonl") as caught:
        read_rows(tmp_path / "rows.jsonl")
    assert caught.value.cause == "data"


class Spiteful:
    def item(self) -> float:
        raise RuntimeError("no")

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_a_metric_that_is_no_number_costs_no_other_line(tmp_path: Path) -> None:
    tracker = StoreTracker(tracked(tmp_path))
    metrics: list[Any] = [
        {"loss": 0.5},
        {"loss": Path("x")},
        {"loss": Spiteful()},
        {"loss": [math.inf, 1]},
        {"loss": math.nan},
        {(1, 2): 3},
        None,
        {"loss": 2},
    ]
    for step, metric in enumerate(metrics, start=1):
        tracker.log(step, metric)
    tracker.close()
    rows = {row["step"]: row["loss"] for row in parse_metrics((tmp_path / "metrics.jsonl").read_text())}
    assert rows == {1: 0.5, 2: "x", 4: [None, 1], 5: None, 8: 2}


def test_a_commands_own_metrics_file_may_hold_lines_that_are_no_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('[1]\n{"step": "x"}\n\n{"step": 1, "note": "a\u2028b"}\n{"step": 2')
    assert parse_metrics(path.read_text(encoding="utf-8")) == [{"step": 1, "note": "a\u2028b"}]


def test_an_integer_of_any_length_is_a_number_that_tables_hold_and_no_step(tmp_path: Path) -> None:
    large, huge = "9" * 20, "9" * 5000
    rows = parse_metrics(
        f'{{"step": 1, "loss": {large}, "count": {2**62}}}\n{{"step": 2, "loss": -{huge}}}\n'
        f'{{"step": {large}, "loss": 1}}\n{"[" * 100_000}\n{{"step": 3, "loss": 1}}'
    )
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1e20), (2, -math.inf), (3, 1)]
    assert rows[0]["count"] == 2**62 and isinstance(rows[0]["count"], int)


@pytest.mark.parametrize("address", ["ray://h:abc", "h:99999", "ray://", "http://[::1", "ray://a..b:1"])
@pytest.mark.long
def test_doctor_survives_an_address_of_ray_that_is_none(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    checks = {check["name"]: check for check in json.loads(sweep("doctor", "--json", code=1))}
    assert checks["ray cluster"]["ok"] is False


def test_doctor_finds_a_store_by_its_url(odd: Any) -> None:
    assert "(exists)" in odd("doctor", f"store.url=file://{odd.store}", code=None)
    assert "will be made" in odd("doctor", f"store.url=file://{odd.store}-other", code=None)
