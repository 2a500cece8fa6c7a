"""What stores hold is as recorded, see ../recording.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recording import compare, questions
from tests.store.asked import buckets, codes, places

FOLDER = Path(__file__).parent / "recorded"
ASKED = questions(buckets, codes, places)


@pytest.mark.parametrize("name", ASKED)
def test_each_answer_is_the_recorded_one(name: str) -> None:
    compare(FOLDER / f"{name}.txt", ASKED[name]())


def test_each_recorded_file_has_its_questions() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(ASKED)
