"""What the tests of mirrors share: a sweep of two cells that is done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Sweep

TWO = """
description: two cells that count
config: {seed: 0, count: {num_steps: 8, checkpoint_every: 3, step_s: 0.01, fail: null}}
axes: {seed: "range(0,2)"}
stages: [count]
"""


@pytest.fixture
def two(sweep: Any) -> Any:
    """The command in a folder with a sweep of two cells, of which nothing has run."""
    (sweep.folder / "two.yaml").write_text(TWO)
    return sweep


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which both cells are done and nothing was mirrored."""
    root = tmp_path_factory.mktemp("finished")
    (root / "two.yaml").write_text(TWO)
    Sweep(root, root / "store")("launch", "two.yaml")
    return root / "store"


@pytest.fixture
def done(two: Any, finished: Path) -> Any:
    """The command with a copy of that store."""
    shutil.copytree(finished, two.store, symlinks=True)
    return two
