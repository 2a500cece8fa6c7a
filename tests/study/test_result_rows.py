"""Tables from elsewhere: what is read, what is filled in, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
import pytest

from orchestrator.errors import UserError
from orchestrator.store.table import write_table
from orchestrator.study import paper
from orchestrator.study.tables.results import languages_of, read_table, results
from tests.study.tables import minimal, report, row, study_mixtures, study_rows

BILINGUAL = {label: names for label, names in study_mixtures().items() if len(names) <= 2}
SOME = study_rows(models=["qwen3-0.6b"], tasks=["math"], mixtures=BILINGUAL)
TWO = study_rows(models=["qwen3-0.6b", "gemma3-4b"])
NUMBERS = report(TWO)


def one(**changes: Any) -> list[dict[str, Any]]:
    changed = {**row("qwen3-0.6b", "math", "en+es", ["en", "es"], "es", 100, 250), **changes}
    return [{name: value for name, value in changed.items() if value != "DROP"}]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("en,es", ("en", "es")),
        ("en, es", ("en", "es")),
        ("en+es", ("en", "es")),
        ("en/es", ("en", "es")),
        ("['en', 'es']", ("en", "es")),
        (["en", "es"], ("en", "es")),
        (("en",), ("en",)),
        ("en", ("en",)),
        *[
            (empty, ())
            for empty in ("", " ", "[]", "none", "None", "nan", "null", None, float("nan"), [], ())
        ],
    ],
)
def test_languages_are_read_however_they_are_written(value: Any, names: tuple[str, ...]) -> None:
    assert languages_of(value) == names


def test_the_order_of_a_mixtures_languages_means_nothing() -> None:
    assert results(one(languages="es,en")) == results(one(languages="en,es"))


def test_a_table_needs_no_more_than_the_minimal_columns() -> None:
    assert report(minimal(TWO)) == NUMBERS


@pytest.mark.parametrize("dropped", ["mixture", "accuracy", "num_correct", "split", "seed", "family", "cell"])
def test_each_column_that_can_be_filled_in_may_be_missing(dropped: str) -> None:
    less = [{name: value for name, value in row.items() if name != dropped} for row in TWO]
    assert report(less) == NUMBERS


def test_text_as_in_csv_means_the_same_as_numbers() -> None:
    as_text = [{name: "" if value is None else str(value) for name, value in row.items()} for row in TWO]
    assert report(as_text) == NUMBERS


def test_only_test_rows_count_and_other_stages_rows_are_passed_over() -> None:
    others = [{**row, "split": "validation", "num_correct": 0, "accuracy": 0.0} for row in SOME]
    foreign: list[dict[str, Any]] = [{"cell": "x", "loss": 1.0}, {"cell": "x", "eval_language": None}]
    assert results([*others, *SOME, *foreign]) == results(SOME)
    assert results(others) == [] and results([]) == []


def test_hub_ids_are_known_models() -> None:
    ids = {
        "Qwen/Qwen3-0.6B-Base": "qwen3-0.6b",
        "Qwen/Qwen3-8B-Base": "qwen3-8b",
        "google/gemma-3-1b-pt": "gemma3-1b",
        "gemma3-4b": "gemma3-4b",
    }
    assert {name: paper.canonical_model(name) for name in ids} == ids
    (read,) = results(one(model="google/gemma-3-4b-pt", family="DROP", num_parameters="DROP"))
    assert (read.family, read.num_parameters) == ("gemma", 3_880_263_168)


def test_the_mixtures_have_the_labels_of_the_sweep_file() -> None:
    assert {paper.label_of(paper.in_order(names)): set(names) for names in study_mixtures().values()} == {
        label: set(names) for label, names in study_mixtures().items()
    }
    assert [set(names) for names in paper.mixtures()] == [set(names) for names in study_mixtures().values()]
    assert paper.left_out(("en", "es", "ja", "bn", "fr", "th")) == "sw"
    assert paper.left_out(("en", "es", "ja", "bn", "te", "xx")) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_correct": 251}, "num_correct is 251: it is more than num_items, 250"),
        ({"num_correct": -1}, "num_correct is -1"),
        ({"num_correct": 100.5}, "a whole number"),
        ({"num_correct": "many"}, "num_correct is 'many': it must be a number"),
        ({"num_correct": True}, "num_correct is True"),
        ({"num_items": 0}, "num_items is 0"),
        ({"num_items": float("inf")}, "num_items is inf"),
        ({"num_items": None}, "num_items is None"),
        ({"num_correct": None, "accuracy": None}, "neither it nor accuracy is given"),
        ({"accuracy": 40.0}, "a share, from 0 to 1"),
        ({"accuracy": 0.9}, "the counts say 0.4000"),
        ({"accuracy": "nan?"}, "accuracy is 'nan?'"),
        ({"model": ""}, "model is ''"),
        ({"task": None}, "task is None"),
        ({"eval_language": None}, "eval_language is None"),
        ({"languages": "en,es,en"}, "a language occurs twice"),
        ({"num_parameters": "small"}, "num_parameters is 'small'"),
        ({"eval_language": "DROP", "eval_lang": "es"}, "eval_language: did you mean eval_lang"),
        ({"languages": "DROP"}, "no column languages"),
        ({"num_items": "DROP"}, "no column num_items"),
        ({"num_correct": "DROP", "accuracy": "DROP"}, "no column num_correct"),
    ],
)
def test_what_would_make_a_number_wrong_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        results(one(**changes), where="rows.csv")
    assert said in str(raised.value) and "rows.csv" in str(raised.value)


def test_two_rows_of_one_cell_and_language_are_refused_with_their_places() -> None:
    with pytest.raises(UserError, match="another label, tested in es") as raised:
        results([*SOME, {**SOME[7], "mixture": "another label"}], where="rows.csv")
    assert f"rows 8 and {len(SOME) + 1}" in str(raised.value)
    assert len(results([*SOME, {**SOME[7], "seed": 1}])) == len(SOME) + 1


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_collect_writes_is_read_back_as_the_same_results(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    write_table(TWO, path, kind)
    assert results(read_table(path)) == results(TWO)


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_a_table_made_with_pandas_is_read(tmp_path: Path, kind: str) -> None:
    frame = pandas.DataFrame(minimal(TWO)).sample(frac=1, random_state=0)
    frame["languages"] = frame["languages"].replace("", None)
    frame["good"] = frame["accuracy"] > 0.5
    path = tmp_path / f"Rows.{kind.upper()}"
    match kind:
        case "csv":
            frame.to_csv(path)
        case "parquet":
            frame.to_parquet(path)
        case "json":
            path.write_text(frame.to_json(orient="records", double_precision=15))
    read = results(read_table(path))
    assert [result.count for result in read] == [result.count for result in results(TWO)]
    assert [result.accuracy for result in read] == pytest.approx([each.accuracy for each in results(TWO)])
    assert report(read_table(path))["table2"] == NUMBERS["table2"]


def test_a_parquet_column_of_lists_is_a_column_of_languages(tmp_path: Path) -> None:
    frame = pandas.DataFrame(minimal(TWO))
    frame["languages"] = [list(filter(None, text.split(","))) for text in frame["languages"]]
    frame.to_parquet(tmp_path / "rows.parquet")
    assert report(read_table(tmp_path / "rows.parquet")) == NUMBERS


def test_baselines_alone_are_a_table_too(tmp_path: Path) -> None:
    untrained = [each for each in TWO if not each["languages"]]
    write_table([{**each, "languages": None} for each in untrained], tmp_path / "rows.parquet", "parquet")
    numbers = report(read_table(tmp_path / "rows.parquet"))
    assert numbers["fig2"] == [] and len(numbers["baselines"]) == len(untrained) == 24


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", None, "no file"),
        ("rows.xlsx", b"PK", "none of the known endings"),
        ("rows.csv", b"", "no rows"),
        ("rows.csv", b"model,task\n", "no rows"),
        ("rows.csv", b"model,task\na,b,c\n", "row 1 has more fields than the header"),
        ("rows.csv", b'model,task\n"a,b\n', "cannot be read as csv"),
        ("rows.csv", b"model,task\n\xff\xfe,b\n", "cannot be read as csv"),
        ("rows.parquet", b"", "cannot be read as parquet"),
        ("rows.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        ("rows.json", b"{}", "cannot be read as json"),
        ("rows.json", b"[1]", "cannot be read as json"),
        ("rows.json", b"[{", "cannot be read as json"),
    ],
)
def test_a_file_that_is_no_table_is_refused(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_table(tmp_path / name)
    assert said in str(raised.value) and name in str(raised.value)


def test_any_cut_of_a_parquet_file_is_refused(tmp_path: Path) -> None:
    write_table(SOME, tmp_path / "whole.parquet", "parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for size in range(1, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "cut.parquet").write_bytes(whole[:size])
        with pytest.raises(UserError):
            read_table(tmp_path / "cut.parquet")
