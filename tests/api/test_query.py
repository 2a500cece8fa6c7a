"""SQL over a store and arrays over axes: the page about it, what a query may not do, and rows that stay."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Store, UserError
from orchestrator.store.index import MAX_SEGMENTS, RowSegments

pytest.importorskip("duckdb", reason="the extra `query` is not installed")

PAGE = (Path(__file__).parents[2] / "docs/query.md").read_text(encoding="utf-8")
FILES = re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^\$ (sweep query .*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The sweep of the page, launched once; its index lies in a cache of its own."""
    from tests.conftest import Sweep

    folder = tmp_path_factory.mktemp("query")
    for name, text in FILES:
        (folder / name).write_text(text)
    sweep = Sweep(folder, folder / "runs", env={**os.environ, "SWEEP_CACHE": str(folder / "cache")})
    sweep("launch", "lines.yaml", "launcher.workers=2", code=1)
    return sweep


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache of queries in this process."""
    is_shared = "lines" in request.fixturenames
    folder = request.getfixturevalue("lines").folder if is_shared else tmp_path
    monkeypatch.setenv("SWEEP_CACHE", str(folder / "cache"))


def query(sweep: Any, sql: str) -> list[dict[str, Any]]:
    """Run a query in this process, which takes a tenth of the time of the command."""
    return Store(sweep.store).query(sql).to_pylist()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_query_of_the_page_finds_something(lines: Any, command: str) -> None:
    _, _, sql, *words = shlex.split(command)
    if words:
        assert len(lines("query", sql, *words).splitlines()) > 1 or "--out" in words
    else:
        assert query(lines, sql)


def test_the_python_of_the_page_runs(
    lines: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xarray", reason="the extra `xarray` is not installed")
    monkeypatch.chdir(lines.folder)
    monkeypatch.setenv("SWEEP_CACHE", str(lines.folder / "cache"))
    (code,) = re.findall(r"```python\n(from orchestrator.*?)```", PAGE, re.DOTALL)
    exec(code, {})  # noqa: S102 - our own page
    assert "accuracy" in capsys.readouterr().out


def test_results_are_the_rows_of_collect_with_other_names_for_what_repeats_an_axis(lines: Any) -> None:
    collected = lines.json("collect", "lines")
    found = query(lines, "select * exclude (seed_row) from results")
    assert len(found) == 10 and found == [
        {name: value for name, value in row.items() if name != "row_seed"} for row in collected
    ]
    assert {row["seed_row"] for row in query(lines, "select seed_row from results")} == {7}


def test_the_tables_agree_with_status_and_with_each_other(lines: Any) -> None:
    status = lines.json("status", "lines")
    cells = query(lines, "select cell, rate, seed, state, attempts, reason from cells")
    assert cells == [
        {
            **{key: cell[key] for key in ("cell",)},
            "rate": float(cell["axes"]["rate"]),
            "seed": int(cell["axes"]["seed"]),
            **{key: cell[key] for key in ("state", "attempts", "reason")},
        }
        for cell in status["cells"]
    ]
    (failure,) = query(lines, "select * from failures")
    assert failure["exception"] == "ValueError" and "diverged" in failure["message"]
    ends = {
        r["outcome"]: r["n"] for r in query(lines, "select outcome, count(*) n from attempts group by all")
    }
    assert ends["succeeded"] == 10
    steps = query(lines, "select distinct step, metric from metrics order by 1")
    assert [(row["step"], row["metric"]) for row in steps] == [(1, "loss"), (2, "loss"), (3, "loss")]
    assert query(lines, "select count(*) n from jobs") == [{"n": 0}]


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from read_text('/etc/hostname')",
        "copy results to 'stolen.csv'",
        "copy (select 1) to 'stolen.csv'",
        "attach 'stolen.db'",
        "export database 'stolen'",
        "set enable_external_access = true",
        "reset lock_configuration",
        "install httpfs",
        "drop table cells",
        "select * from views",  # a variable of the program
        "select wrong from cells",
        "selekt",
        "",
        "select 1; select 2",
    ],
)
def test_a_query_reads_the_tables_and_nothing_else(
    lines: Any, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lines.folder)
    with pytest.raises(UserError):
        query(lines, sql)
    assert not list(lines.folder.glob("stolen*"))


def test_wrong_words_are_refused_before_anything_is_read(lines: Any) -> None:
    assert "never launched" in lines("query", "select 1", "--sweep", "linse", code=2)
    assert lines("query", "select wrong from cells", code=2).startswith("error: ")
    assert "Parquet is no text" in lines("query", "select 1", "--format", "parquet", code=2)
    assert "known endings" in lines("query", "select 1", "--out", "rows.xlsx", code=2)


def test_without_duckdb_the_extra_is_named(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)  # as if it were not installed
    with pytest.raises(UserError, match="the package duckdb") as error:
        Store(lines.store).query("select 1")
    assert "polysweep[query]" in str(error.value)


def test_values_that_json_lacks_are_null_or_text(lines: Any) -> None:
    sql = "select 'nan'::double a, 'inf'::double b, date '2026-01-02' c, 1.5::decimal(4,2) d, [1, null] e"
    assert json.loads(lines("query", sql, "--json")) == [
        {"a": None, "b": None, "c": "2026-01-02", "d": "1.50", "e": [1, None]}
    ]


@pytest.mark.long
def test_after_a_discard_the_next_query_is_right_and_damaged_files_are_made_again(
    sweep: Any, tmp_path: Path
) -> None:
    for name, text in FILES:
        (sweep.folder / name).write_text(text)
    only = ("--only", "rate=0.1", "launcher.workers=1")
    sweep("launch", "lines.yaml", *only)
    count = "select count(*) n, max(accuracy) best from results"
    assert query(sweep, count) == query(sweep, count) == [{"n": 4, "best": 0.05}]
    sweep("discard", "lines", "rate=0.1 seed=0", "--stage", "score", "--reason", "a bug")
    assert query(sweep, count) == [{"n": 2, "best": 0.05}]
    (sweep.folder / "lines.py").write_text(dict(FILES)["lines.py"].replace("* 0.5}", "* 0.7}"))
    sweep("launch", "lines.yaml", *only)
    assert query(sweep, count) == [{"n": 4, "best": pytest.approx(0.07)}]
    for path in (tmp_path / "cache").glob("index-*/rows/*/*"):
        path.write_bytes(path.read_bytes()[:-3])
    assert query(sweep, count) == [{"n": 4, "best": pytest.approx(0.07)}]


def test_segments_hold_each_key_once_whoever_wrote_them(tmp_path: Path) -> None:
    import pyarrow.parquet

    made: list[str] = []

    def rows_of(key: str) -> Any:
        return lambda: made.append(key) or [{"value": key}]

    def read() -> list[str]:
        found = []
        for segment in RowSegments(tmp_path).update({key: rows_of(key) for key in wanted}):
            rows = pyarrow.parquet.read_table(segment.path).to_pylist()
            found += [row["value"] for row in rows if row["value"] in segment.keys]
        return sorted(found)

    wanted: list[str] = []
    for number in range(3 * MAX_SEGMENTS):
        wanted.append(f"k{number:02}")
        assert read() == wanted
    assert len(list(tmp_path.glob("*.parquet"))) <= MAX_SEGMENTS
    before = len(made)
    wanted = wanted[::2]
    assert read() == wanted and len(made) == before


def test_an_array_has_the_axes_as_dimensions_and_no_silent_holes(lines: Any) -> None:
    pytest.importorskip("xarray", reason="the extra `xarray` is not installed")
    sweep = Store(lines.store).open("lines")
    grid = sweep.rows("rate=0.1,0.5").to_xarray("accuracy", keys=["language"])
    assert dict(grid.sizes) == {"rate": 2, "seed": 2, "language": 2}
    assert float(grid.accuracy.sel(rate=0.5, seed=1, language="sw")) == 0.25
    with pytest.raises(UserError, match="12 points"):
        sweep.rows().to_xarray("accuracy", keys=["language"])
    holed = sweep.rows().to_xarray("accuracy", keys=["language"], missing="nan")
    assert int(holed.accuracy.isnull().sum()) == 2
    with pytest.raises(UserError, match="several rows") as error:
        sweep.rows().to_xarray("accuracy")
    assert "language" in str(error.value)
    with pytest.raises(UserError, match="no column"):
        sweep.rows().to_xarray("acuracy")
    assert sweep.rows().num_rows == len(sweep.rows().to_pandas()) == len(sweep.rows())


def test_the_attempts_of_rehearsals_are_found_and_a_stage_that_waits_for_one_shows_it(sweep: Any) -> None:
    (sweep.folder / "gated.yaml").write_text(
        "config: {n: 0}\naxes: {n: [1, 2]}\nstages:\n"
        "  check: {run: 'steps:check', reads: [n]}\n"
        "  fit: {run: 'steps:fit', reads: [n], gated_by: [check]}\n"
    )
    (sweep.folder / "steps.py").write_text(
        "def check(config, inputs, context):\n    assert config.n == 1\n    return []\n\n\n"
        "def fit(config, inputs, context):\n    return []\n"
    )
    sweep("launch", "gated.yaml", code=1)
    found = query(sweep, "select stage, outcome from attempts order by all")
    assert [tuple(row.values()) for row in found] == [
        ("check[1]", "succeeded"),
        ("check[2]", "failed"),
        ("fit", "succeeded"),
    ]
    found = query(sweep, "select stage, state from stages order by all")
    assert [tuple(row.values()) for row in found] == [
        ("check[2]", "failed"),
        ("fit", "blocked"),
        ("fit", "done"),
    ]


def test_a_query_that_is_a_process_of_its_own_ends_without_a_word_of_the_library(lines: Any) -> None:
    words = [sys.executable, "-m", "orchestrator", "query", "select count(*) as n from cells", "--json"]
    env = {**os.environ, "SWEEP_STORE": str(lines.store)}
    done = subprocess.run(words, cwd=lines.folder, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == "" and json.loads(done.stdout)[0]["n"] > 0


def test_times_with_a_zone_are_utc_and_no_column_is_lost_for_its_name(lines: Any) -> None:
    sql = "select 1 as a, 2 as A, 3 as a_1, '2026-01-02 12:00:00+03'::timestamptz as t, hour(t) as hour"
    lines.env["TZ"] = "Asia/Tokyo"
    (found,) = lines.json("query", sql)
    del lines.env["TZ"]
    assert found == {"a": 1, "A_1": 2, "a_1_1": 3, "t": "2026-01-02T09:00:00+00:00", "hour": 9}
    assert list(query(lines, "select 1 as a, 2 as a")[0]) == ["a", "a_1"]


@pytest.mark.parametrize(
    "words", [["query", "select count(*) as n from cells"], ["nodes"], ["clean"], ["upgrade"]]
)
def test_a_place_without_a_store_is_refused_by_verbs_that_need_no_sweep(sweep: Any, words: list[str]) -> None:
    said = sweep(*words, "--store", "nowhere", code=2)
    assert f"there is no store at {sweep.folder / 'nowhere'}" in said and "--store URL" in said
    assert not (sweep.folder / "nowhere").exists()
