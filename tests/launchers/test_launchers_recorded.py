"""What becomes of the answers of schedulers is as recorded, see ../recording.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launchers.asked import jobs, nodes, slurm_requests, slurm_words, workers
from tests.recording import compare, questions

FOLDER = Path(__file__).parent / "recorded"
ASKED = questions(jobs, nodes, slurm_requests, slurm_words, workers)


@pytest.mark.parametrize("name", ASKED)
def test_each_answer_is_the_recorded_one(name: str) -> None:
    compare(FOLDER / f"{name}.txt", ASKED[name]())


def test_each_recorded_file_has_its_questions() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(ASKED)
