from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.execution.faults import Running, Start, small_disk, starter
from tests.execution.jobs import run as run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts real workers as processes; those that still live at the end of the test are killed."""
    started: list[Running] = []
    yield starter(tmp_path, started)
    for running in started:
        running.end()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    with small_disk(tmp_path / "disk", "2m") as folder:
        yield folder
