"""A third task is a module and its YAML in a folder of the user's: nothing of Polysweep is edited for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import Sweep

MODULE = """
from orchestrator.tasks.base import Item
from orchestrator.tasks.files import FileTask

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


class Spelling(FileTask):
    name = "spelling"
    description = "A line of spelling: id and word.\\n"

    def generate(self, split, language, num_items, seed=0):
        lines = ({"id": word, "word": word} for word in WORDS[:num_items])
        return [self.item_of(line, language) for line in lines]

    def line_of(self, row, *, id_, language, where):
        return {"id": id_, "word": row["word"]}

    def item_of(self, line, language):
        word = line["word"]
        return Item(id=line["id"], language=language, prompt=f"Spell {word}:\\n", response=word, gold=word)

    def is_correct(self, text, gold, language, *, truncated=False):
        return len(text) >= 0

    def looks_like(self, row):
        return "word" in row


SPELLING = Spelling()
"""
SWEEP = """
expect_cells: 2
axes:
  mixture:
    none: {languages: []}
    en: {languages: [en]}
columns: {languages: languages}
report: [accuracy]
stages: [tokenizer, base, prepare, train, evaluate]
overrides:
  task: spelling
  data: words
  model.tokenizer.num_items: 1
  model.pretraining.num_items: 1
  model.pretraining.num_steps: 1
  model.architecture.vocab_size: 300
  trainer.num_epochs: 1
  evaluation.languages: [en]
"""
DATA = """
defaults: [generated, _self_]
num_train: 4
num_validation: 2
num_test: 3
tasks:
  spelling:
    source: generated
    seed: 0
    num_train: ${data.num_train}
    num_validation: ${data.num_validation}
    num_test: ${data.num_test}
    max_new_tokens: 4
"""


@pytest.fixture
def project(sweep: Sweep) -> Sweep:
    """Returns the command in a folder with the module and the YAML of a task."""
    files = {
        "spell.py": MODULE,
        "sweeps/spelling.yaml": SWEEP,
        "conf/task/spelling.yaml": "name: spelling\ntarget: spell:SPELLING\n",
        "conf/data/words.yaml": DATA,
    }
    sweep.env = {**os.environ, "SWEEP_STORE": str(sweep.store), "PYTHONSAFEPATH": "1"}  # as `sweep` runs
    for name, text in files.items():
        (sweep.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (sweep.folder / name).write_text(text)
    return sweep


@pytest.mark.long
def test_it_is_trained_and_scored_and_its_rows_are_collected(project: Sweep) -> None:
    project("launch", "spelling")
    rows = project.json("collect", "spelling")
    tested = [row for row in rows if row.get("split") == "test"]
    assert [(row["task"], row["mixture"], row["num_items"], row["accuracy"]) for row in tested] == [
        ("spelling", "none", 3, 1.0),
        ("spelling", "en", 3, 1.0),
    ]


def test_its_data_sets_are_described_imported_checked_and_read(project: Sweep) -> None:
    for split, numbers in (("train", range(7)), ("test", range(7, 9))):
        (project.folder / "words" / split).mkdir(parents=True)
        for language in ("en", "es"):
            rows = ({"id": number, "word": f"{language}{number}"} for number in numbers)
            text = "\n".join(map(json.dumps, rows))
            (project.folder / "words" / split / f"{language}.jsonl").write_text(text)
    assert "A line of spelling" in project("data", "describe", "spell:SPELLING")
    made = ("data", "import", "spell:SPELLING", "words", "--num-validation", "2", "--out", "set")
    assert "data=parallel data.tasks.spelling.dir=set" in project(*made)
    assert "no problem found" in project("data", "check", "set")
    settings = ("source=parallel", "dir=set", "num_train=5", "num_test=2")
    overrides = [f"++data.tasks.spelling.{setting}" for setting in settings]
    assert "2 cells" in project("plan", "spelling", *overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: spelling\n", "unknown task 'spelling'"),
        ("name: spelling\ntarget: spell:SPELING\n", "module 'spell' has no 'SPELING'"),
        ("name: words\ntarget: spell:SPELLING\n", "the task spell:SPELLING has the name 'spelling'"),
    ],
)
def test_a_target_that_is_no_such_task_is_refused_before_anything_is_recorded(
    project: Sweep, text: str, message: str
) -> None:
    (project.folder / "conf/task/spelling.yaml").write_text(text)
    (project.folder / "conf/data/words.yaml").write_text(f"{DATA}  words: ${{data.tasks.spelling}}\n")
    assert message in project("launch", "spelling", code=2)
    assert not Path(project.store).exists()
