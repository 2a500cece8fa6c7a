"""A sweep that counts slowly enough to be interrupted, and launches in the background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.launches import SLOW, Running


@pytest.fixture
def slow(sweep: Any) -> Any:
    """A folder with ``slow.yaml``."""
    (sweep.folder / "slow.yaml").write_text(SLOW)
    return sweep


@pytest.fixture
def background(sweep: Any) -> Iterator[Callable[..., Running]]:
    """Starts launches, and ends what is left of them."""
    started: list[Running] = []

    def start(*words: str, is_forked: bool = True) -> Running:
        started.append(Running(sweep.folder, sweep.store, words, is_forked=is_forked))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
