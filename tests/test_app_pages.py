"""The examples of the pages on what is the user's own, run in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.apps import app
from tests.conftest import Sweep

DOCS = Path(__file__).parents[1] / "docs"
ROWS = {
    "hydra-apps": {
        "train": [0.25, 0.26, 0.0625, 0.0725],
        "grid": [0.2525, 0.41, 0.065],
        "resume": [3],
    },
    "scripts-of-your-own": {
        "fit": [0.001 / 3, 0.001 / 3, 0.001, 0.001],
        "all-keys": [0.001 / 3, 0.001],
        "steps": [3],
    },
    "own-task-or-trainer": {"reversal": [None, 16, 16]},
}

VALUES = ("value", "loss", "best", "selected_step")
"""The column of a row that is compared: the first of these that it has."""


@pytest.mark.long
@pytest.mark.parametrize("page", ROWS)
def test_a_page_works_from_the_page_alone(sweep: Sweep, page: str) -> None:
    text = (DOCS / f"{page}.md").read_text()
    for name, content in re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", text, flags=re.DOTALL):
        path = sweep.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    user = Sweep(sweep.folder, sweep.store, app.environment())
    found: dict[str, list[Any]] = {}
    for words in map(shlex.split, re.findall(r"^\$ sweep (.*)$", text, flags=re.MULTILINE)):
        if words[0] == "collect":
            rows = user.json(*words)
            found[words[1]] = [next((row[name] for name in VALUES if name in row), None) for row in rows]
        else:
            user(*words)
    assert found == {name: pytest.approx(values) for name, values in ROWS[page].items()}
