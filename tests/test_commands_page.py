"""The examples of docs/commands.md, run as they stand there."""

from __future__ import annotations

import re
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
FILES = dict(re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))

ROWS = {
    "hello": [{"loss": 0.9}, {"loss": 0.99}],
    "args": [{"args": "--lr 0.1 --opt.name adam --opt.betas 0.9 0.99 --opt.nesterov"}],
    "resume": [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}, {"epoch": 3, "loss": 1 / 3}],
    "checkpoints": None,
    "finished": None,
    "table": [
        {"language": "en", "accuracy": 0.5, "note": None},
        {"language": "te", "accuracy": 0.25, "note": "first"},
    ],
    "shell": [{"found": 1}],
    "python": None,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All examples as the stages of one sweep each, launched one after the other into one store."""
    from tests.conftest import Sweep

    folder = tmp_path_factory.mktemp("page")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    venv.create(folder / "env", symlinks=True, with_pip=False)
    return Sweep(folder, folder / "store")


def test_every_sweep_of_the_page_is_tried() -> None:
    assert {Path(name).stem for name in FILES if name.endswith(".yaml")} == set(ROWS)


SHORT = ("resume", "shell")


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in ROWS]
)
def test_an_example_of_the_page_does_what_the_page_says(finished: Any, name: str) -> None:
    finished("launch", f"{name}.yaml")
    expected = ROWS[name]
    if expected is not None:
        rows = finished.json("collect", name)
        assert [{key: row[key] for key in want} for row, want in zip(rows, expected, strict=True)] == expected
    if name == "python":
        logs = [path.read_text().strip() for path in finished.store.glob("payload/fit/*/1/log.txt")]
        assert str(finished.folder / "env") in logs and sys.prefix not in logs
