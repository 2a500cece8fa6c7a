"""What comes of simulations is as recorded, see ../recording.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recording import compare, questions
from tests.simulation.asked import plays

FOLDER = Path(__file__).parent / "recorded"
ASKED = questions(plays)


@pytest.mark.parametrize("name", ASKED)
def test_each_answer_is_the_recorded_one(name: str) -> None:
    compare(FOLDER / f"{name}.txt", ASKED[name]())


def test_each_recorded_file_has_its_questions() -> None:
    assert {*ASKED} <= {path.stem for path in FOLDER.iterdir()}  # others are of test_played_recorded.py
