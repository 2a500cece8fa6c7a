"""Results as programs write them are read; those that cannot be cost no training."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StageFailure
from orchestrator.execution.command_text import read_rows
from orchestrator.stage import StageSpec
from tests.execution.jobs import Job, Jobs
from tests.store.builders import ledger_at

TWO = [{"name": "a", "loss": 0.5, "n": 1}, {"name": "b", "loss": 2.0, "n": None}]


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("r.jsonl", '{"name": "a", "loss": 0.5, "n": 1}\n{"name": "b", "loss": 2.0, "n": null}\n', TWO),
        (
            "r.json",
            '[\n  {"name": "a",\n "loss": 0.5, "n": 1},\n {"name": "b", "loss": 2.0, "n": null}\n]',
            TWO,
        ),
        ("r.json", '{\n  "name": "a",\n  "loss": 0.5,\n  "n": 1\n}', TWO[:1]),
        (
            "r.txt",
            '{\n "name": "a",\n "loss": 0.5, "n": 1\n}\n{\n "name": "b",\n "loss": 2.0, "n": null\n}\n',
            TWO,
        ),
        ("r.jsonl", '\ufeff{"name": "a", "loss": 0.5, "n": 1}', TWO[:1]),
        ("r.csv", "name,loss,n\na,0.5,1\nb,2.0,\n", TWO),
        ("r.csv", "\ufeffname;loss;n\r\na;0.5;1\r\nb;2e0;\r\n", TWO),
        ("r.tsv", "name\tloss\tn\na\t0.5\t1\nb\t2.0\t\n", TWO),
        ("results", "name,loss,n\na,0.5,1\nb,2.0,\n", TWO),
        ("r.csv", ',x\n0,"a,""b""\nc"\n', [{"index": 0, "x": 'a,"b"\nc'}]),
        ("r.csv", "id,flag,code\n007,True,nan\n008,false,te\n", None),
        ("r.jsonl", '{"a": [1, 2], "b": {"c": 1}}', [{"a": [1, 2], "b": {"c": 1}}]),
        ("r.json", "[]", []),
        ("r.jsonl", '\ufeff{"a": 1}\n\ufeff{"a": 2}\n', [{"a": 1}, {"a": 2}]),  # two files joined
        ("r.json", '[{"lang": "nan", "code": "NaN"}]', [{"lang": "nan", "code": "NaN"}]),
        ("r.csv", "a,b\n", []),
        ("r.csv", "n\n18446744073709551617\n", [{"n": 2**64 + 1}]),
        (
            "r.csv",
            "n,c\n1,NA\nNA,DE\n,US\n",
            [{"n": 1, "c": "NA"}, {"n": None, "c": "DE"}, {"n": None, "c": "US"}],
        ),
        ("r.csv", "test loss\n0.5\n", [{"test loss": 0.5}]),
        ("r.csv", "best model\nqwen 7b\nllama\n", [{"best model": "qwen 7b"}, {"best model": "llama"}]),
        ("r.csv", "model:name\nqwen:7b\nllama:3b\n", [{"model:name": "qwen:7b"}, {"model:name": "llama:3b"}]),
    ],
)
def test_rows_are_read_from_json_of_any_layout_and_from_tables(
    tmp_path: Path, name: str, text: str, rows: Any
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    expected = rows
    if rows is None:  # numbers with leading zeros are names, and so is a language called nan among others
        expected = [{"id": "007", "flag": True, "code": "nan"}, {"id": "008", "flag": False, "code": "te"}]
    assert list(read_rows(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("r.json", '[{"a": 1}, {"a": NaN}]', "row 2, key 'a'"),
        ("r.json", '{"a": {"b": -Infinity}}', "key 'a.b'"),
        ("r.csv", "a,loss\n1,0.5\n2,nan\n", "row 2, key 'loss'"),
        ("r.csv", "a,b\n1,2\n3\n", "line 3: 1 fields for 2 columns"),
        ("r.csv", "a,a\n1,2\n", "every column needs a name of its own"),
        ("r.jsonl", '{"a": 1}\n{"a": 2\n', "line 3"),
        ("r.csv", "loss=nan\nacc=nan\n", "is no name of a column"),
        ("r.csv", "key=value\nlr=low\n", "is no name of a column"),
        ("r.csv", "accuracy=91.2%\nmodel=resnet\n", "is no name of a column"),
        ("r.csv", "loss:nan\nacc:0.5\n", "is no name of a column"),
        ("r.csv", "loss:0.5\nstatus:ok\n", "is no name of a column"),
        ("r.jsonl", '{"a": 1}\n[1, 2]\n', "line 2: a row must be a mapping, one is 1"),
        ("r.json", "{'a': 1}", "line 1, column 2"),
        ("r.json", "nothing", "line 1, column 1"),
        ("r.jsonl", "", "it is empty"),
        ("r.csv", "\ufeff\n", "it is empty"),
        ("r.txt", "0.5\n", "a table needs a header"),
        ("r.csv", "0.1,0.2\n0.3,0.4\n", "a table needs a header"),
        ("r.txt", "loss = 0.5\n", "neither JSON nor a table"),
        ("r.txt", "loss: 0.5\nacc: 0.7\n", "'loss: 0.5' is no name of a column"),
        ("r.txt", "loss=0.5\nacc=0.7\n", "'loss=0.5' is no name of a column"),
        ("r.txt", "model=resnet\nloss=0.5\n", "'model=resnet' is no name of a column"),
        ("r.txt", "run:a\nrun:b\n", "'run:a' is no name of a column"),
        ("r.psv", "a|b\n1|2\n", "'a|b' is no name of a column"),
        ("r.txt", "loss: 0.5\nstarted: 12:30\n", "'loss: 0.5' is no name of a column"),
        ("r.txt", "loss = 0.5\nurl = http://a/?q=1\n", "'loss = 0.5' is no name of a column"),
        ("r.txt", "acc|0.5\nnote|a|b\n", "'acc|0.5' is no name of a column"),
        ("r.txt", "loss -> 0.5\nacc -> 0.9\n", "'loss -> 0.5' is no name of a column"),
        ("r.txt", "loss 0.5\nacc 0.9\n", "'loss 0.5' is no name of a column"),
        ("r.txt", "epoch 1 loss 0.5\nepoch 2 loss 0.4\n", "is no name of a column"),
        ("r.txt", "loss   acc\n 0.5   0.7\n", "'loss   acc' is no name of a column"),
        ("r.csv", "loss\nnan\n", "row 1, key 'loss'"),
        ("r.csv", "loss,n\n0.5,1\n-nan(ind),2\n", "row 2, key 'loss'"),
        ("r.csv", "loss\n1.#QNAN\n", "row 1, key 'loss'"),
        ("r.json", '{"loss": "NaN"}', "row 1, key 'loss': nan"),
        ("r.json", '[{"x": 0.5}, {"x": "-inf"}]', "row 2, key 'x': -inf"),
        ("r.csv", "loss,n\n-inf,1\n,2\n", "row 1, key 'loss': -inf"),
        ("r.json", '{"a": 1, "b": {"c": 1, "c": 2}}', "a mapping holds 'c' twice"),
        pytest.param("r.json", "[" * 100_000, "r.json", id="deep"),
    ],
)
def test_what_is_no_row_is_named_by_line_or_by_row_and_column(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(StageFailure) as caught:
        read_rows(tmp_path / name)
    assert caught.value.cause == "data" and said in str(caught.value) and name in str(caught.value)


def test_many_rows_are_read_in_a_time_that_grows_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(('{"text": "' + "x" * 500 + '"}\n') * 20_000)
    start_s = time.process_time()
    assert len(read_rows(tmp_path / "r.jsonl")) == 20_000
    assert time.process_time() - start_s < 4  # counting lines at each row took half a minute


@pytest.mark.parametrize(("kind", "make"), [("a folder", os.mkdir), ("no regular file", os.mkfifo)])
def test_results_that_are_no_file_are_refused_and_not_waited_for(
    tmp_path: Path, kind: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "r.json")
    with pytest.raises(StageFailure, match=f"r.json: it is {kind}"):
        read_rows(tmp_path / "r.json")


def test_a_missing_results_file_is_named_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").touch()
    with pytest.raises(StageFailure, match=r"no results file rows\.json.*metrics\.json"):
        read_rows(tmp_path / "rows.json")


TRAIN = 'bash -c \'echo trains; echo weights > {output}/w; echo "{\\"loss\\": LOSS}" > {output}/loss.json\''


def trained(job: Job, attempt: int) -> bool:
    return "trains" in job.log(attempt)


@pytest.mark.parametrize(
    ("loss", "results"), [("NaN", "loss.json"), pytest.param("1", "rows.json", marks=pytest.mark.long)]
)
def test_training_whose_results_cannot_be_read_is_read_again_first_and_runs_again_then(
    store: Path, run: Jobs, loss: str, results: str
) -> None:
    spec = StageSpec(command=TRAIN.replace("LOSS", loss), results=results)
    job = run(spec, retries={"data": 2})
    ends = [job.end(number) for number in (1, 2, 3)]
    assert [end.cause for end in ends] == ["data"] * 3
    assert [trained(job, number) for number in (1, 2, 3)] == [True, False, True]
    assert "will read its output again" in ends[0].message
    assert "will run the command again" in ends[1].message


@pytest.mark.long
def test_after_the_name_of_the_file_is_mended_the_training_becomes_the_product(sweep: Any) -> None:
    text = (
        "config: {seed: 1}\naxes: {seed: [1]}\nstages:\n  fit:\n    reads: [seed]\n    results: NAME\n"
        "    command: bash -c 'echo $RANDOM > {output}/log; (echo a,b; echo 1,2) > {output}/r.csv'\n"
    )
    (sweep.folder / "s.yaml").write_text(text.replace("NAME", "rows.csv"))
    assert "r.csv" in sweep("launch", "s.yaml", code=1)
    (random,) = [path.read_text() for path in sweep.store.rglob("output/log")]
    (sweep.folder / "s.yaml").write_text(text.replace("NAME", "r.csv"))
    assert "will read its output again" in str(sweep.json("plan", "s.yaml"))
    sweep("launch", "s.yaml", code=None)
    sweep("rerun", "s", code=None)
    (row,) = sweep.json("collect", "s")
    assert (row["a"], row["b"], row["attempts"]) == (1, 2, 2)
    assert (sweep.store / "payload").exists()
    assert {path.read_text() for path in sweep.store.rglob("output/log")} == {random}


def test_an_interpreter_that_is_not_there_is_not_replaced_by_another(run: Jobs) -> None:
    end = run(StageSpec(command="python -c 1", python="/nope")).end(1)
    assert (end.cause, end.message) == ("config", "there is no interpreter '/nope' here")


def test_after_a_pattern_is_mended_it_is_looked_for_in_what_the_command_had_printed(sweep: Any) -> None:
    text = (
        "config: {seed: 1}\naxes: {seed: [1]}\nstages:\n  fit:\n    reads: [seed]\n"
        "    metric: {acc: PATTERN}\n"
        "    command: bash -c 'echo acc is 0.5; echo $RANDOM > {output}/log'\n"
    )
    (sweep.folder / "s.yaml").write_text(text.replace("PATTERN", "'acc: (.*)'"))
    sweep("launch", "s.yaml", code=1)
    (random,) = [path.read_text() for path in sweep.store.rglob("output/log")]
    (sweep.folder / "s.yaml").write_text(text.replace("PATTERN", "'acc.*? ([0-9.]+)'"))
    sweep("launch", "s.yaml", code=None)
    sweep("rerun", "s", code=None)
    (row,) = sweep.json("collect", "s")
    assert (row["acc"], row["attempts"]) == (0.5, 2)
    assert {path.read_text() for path in sweep.store.rglob("output/log")} == {random}


def test_rows_of_a_function_that_cannot_be_taken_name_row_and_column_and_cost_no_checkpoint(
    store: Path, run: Jobs
) -> None:
    (store.parent / "fit_rows.py").write_text(
        "import json\n"
        "def main(config, inputs, context):\n"
        "    step = context.resume.step if context.resume else 0\n"
        "    print('from', step, flush=True)\n"
        "    if step == 0:\n"
        "        with context.checkpoint(9) as folder:\n"
        "            (folder / 'w').write_text('x')\n"
        "    return [{'a': 1}, {'a': float('nan')}]\n"
    )
    job = run(StageSpec(run="fit_rows:main"), retries={"code": 3})
    for number in (1, 2, 3, 4):
        end = job.end(number)
        assert end.cause == "code" and "row 2, key 'a'" in end.message
        assert f"from {0 if number == 1 else 9}" in job.log(number)
    assert ledger_at(store).product(job.instance, 1)[0] is None


def test_an_unread_output_that_cannot_be_kept_is_said_with_the_reason_and_costs_no_retry_of_chance(
    store: Path, run: Jobs
) -> None:
    named = 'touch {output}/$(printf "a\\377"); echo NaN > {output}/r.json'
    job = run(StageSpec(command=f"bash -c 'echo trains; {named}'", results="r.json"), retries={"data": 1})
    ends = [job.end(number) for number in (1, 2)]
    for end in ends:
        assert (end.cause, end.exception) == ("data", "UnreadResults")
        assert "r.json" in end.message and "cannot be kept" in end.message and "UTF-8" in end.message
    assert [trained(job, number) for number in (1, 2)] == [True, True]
    assert ledger_at(store).attempt(job.instance, 3) is None
