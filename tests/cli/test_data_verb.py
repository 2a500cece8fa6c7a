"""`sweep data`: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Sweep


def problems(folder: Path, *, num: int = 20) -> Path:
    folder.mkdir()
    for language in ("en", "es"):
        rows = [{"id": n, "question": f"{language} {n}?", "answer": f"thus\n#### {n}"} for n in range(num)]
        (folder / f"{language}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_data_is_imported_checked_and_planned_with(sweep: Sweep, tmp_path: Path) -> None:
    problems(sweep.folder / "raw")
    (sweep.folder / "tests").mkdir()
    for language in ("en", "es"):
        (sweep.folder / "tests" / f"mgsm_{language}.tsv").write_text(f"{language} robe?\t2,125\n")
    words = ("data", "import", "math", "raw", "--test", "tests", "--num-validation", "5", "--out", "set")
    said = sweep(*words)
    assert "set: written" in said and "data=parallel data.math_dir=set" in said
    assert "set: is there already, the same" in sweep(*words)
    assert "error: another data set is in set" in sweep(*words, "--seed", "1", code=2)
    assert "set: written" in sweep(*words, "--seed", "1", "--force")
    assert "no problem found" in sweep("data", "check", "set")
    report = sweep.json("data", "check", "set")
    assert {split["split"]: split["num_parallel"] for split in report["splits"]} == {
        "train": 15,
        "validation": 5,
        "test": 1,
    }
    with (sweep.folder / "set" / "train" / "es.jsonl").open("a") as stream:
        stream.write("\n")
    assert "changed since it was imported" in sweep("data", "check", "set", code=1)
    planned = ("data=parallel", "data.math_dir=set", "task=math", "evaluation.languages=[en,es]")
    assert "prepare" in sweep("plan", "smoke", *planned, "mixture=en,en+es")
    assert "data.math_dir=nowhere: no folder nowhere" in sweep(
        "plan", "smoke", *planned[:1], "data.math_dir=nowhere", code=2
    )


@pytest.mark.parametrize("task", ["math", "api_calling"])
def test_the_format_is_described_with_an_example_that_is_one(task: str, sweep: Sweep) -> None:
    said = sweep("data", "describe", task)
    (example,) = [line for line in said.splitlines() if line.startswith('  {"id"')]
    assert json.loads(example)["id"]
    assert f"sweep data import {task}" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("describe maths", "unknown task 'maths'"),
        ("describe", "takes TASK"),
        ("check nowhere", "no file or folder 'nowhere'"),
        ("check raw --out x", "--out is not for sweep data check"),
        ("import math raw", "where the data set goes is not said"),
        ("import math --out x", "a source is needed"),
        ("import math raw --out x --tokenizer y", "--tokenizer is not for sweep data import"),
        ("import math raw --out x --num-train 0", "--num-train 0 is too few"),
        ("import math raw --out x --revision abc", "it has no revision"),
        ("import math raw --out raw", "raw is there and is no data set"),
        ("import math raw --out x --languages en,sw", "no train items in the language 'sw'"),
        ("import api_calling raw --out x", "no text 'instruction'"),
        ("check raw --tokenizer nowhere.json", "no tokenizer 'nowhere.json'"),
        ("check raw --task maths", "unknown task 'maths'"),
        ("frob", "invalid choice: 'frob'"),
    ],
)
def test_a_wrong_word_is_said_and_leaves_nothing(words: str, message: str, sweep: Sweep) -> None:
    problems(sweep.folder / "raw")
    said = sweep("data", *words.split(), code=2)
    assert said.startswith("error: ") and message in said
    assert [path.name for path in sweep.folder.iterdir()] == ["raw"]
