"""What all parts of the engine share is as recorded, see ../recording.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recording import compare, questions
from tests.shared.asked import files, objects, stages, streams, tables

FOLDER = Path(__file__).parent / "recorded"
ASKED = questions(files, objects, stages, streams, tables)


@pytest.mark.parametrize("name", ASKED)
def test_each_answer_is_the_recorded_one(name: str) -> None:
    compare(FOLDER / f"{name}.txt", ASKED[name]())


def test_each_recorded_file_has_its_questions() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(ASKED)
