"""What tests of stores share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Sweep


@pytest.fixture
def open_to_all() -> Iterator[Sweep]:
    """The command in a folder that every user may enter: pytest makes its own private whenever it starts."""
    with tempfile.TemporaryDirectory(prefix="polysweep-") as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "project").mkdir()
        yield Sweep(root / "project", root / "store")
